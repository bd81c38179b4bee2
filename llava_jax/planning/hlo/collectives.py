"""Finds the collectives of a compiled program: what it sends between chips.

A collective is synchronous if the chip waits for it, asynchronous if the schedule has other work between its start and
its end. The compiler writes it in several ways: as an instruction; as a pair `-start`, `-done`; wrapped in an
`async-start`; for v5e as a fusion that starts it, fusions of matmuls that each continue it, and one that ends it; and
as an all-reduce inside a fusion that keeps a slice of it, which is a reduce-scatter.
"""

import dataclasses
import math
import re

import numpy as np

from llava_jax.planning.hlo.parse import Array, Instruction, Program

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """`payload`: the whole arrays of one device: the output of a gather, the input of a reduction or an exchange."""

    kind: str
    is_async: bool
    payload: tuple[Array, ...]
    groups: tuple[tuple[int, ...], ...]  # device numbers in mesh order; empty: all devices in one group
    times: int  # per run of the program
    op_name: str

    @property
    def dtype(self) -> str:
        return max(self.payload, key=lambda a: a.bytes).dtype

    @property
    def bytes(self) -> int:
        """Of one run."""
        return sum(array.bytes for array in self.payload)


def collectives(program: Program) -> list[Collective]:
    """Every collective that runs; a start and its end count once."""
    wrapped = {c for _, i, _ in program.walk() if i.opcode == "async-start" for c in i.called}
    transfers, started_channels = [], set()
    for computation, instruction, times in program.walk():
        is_async = computation in wrapped or instruction.opcode.endswith("-start")
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            transfers.append(_collective(kind, is_async, instruction, times))
        elif instruction.opcode == "fusion":
            body = [i for _, i in program.inside(instruction)]
            starts = any(i.target == "AsyncCollectiveStart" for i in body)
            for inner in (i for i in body if i.opcode in KINDS):
                is_step = '"async_collective_fusion_config"' in inner.rest
                # Fusions that continue or end it repeat the instruction, with the same channel.
                if is_step and not starts or inner.number("channel_id") in started_channels and not starts:
                    continue
                if starts:
                    started_channels.add(inner.number("channel_id"))
                slices = any(i.opcode == "dynamic-slice" for i in body)
                kind = "reduce-scatter" if inner.opcode == "all-reduce" and slices else inner.opcode
                transfers.append(_collective(kind, starts, inner, times))
    return transfers


def _collective(kind: str, is_async: bool, instruction: Instruction, times: int) -> Collective:
    payload, groups = instruction.results, replica_groups(instruction.head)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # (inputs ..., as many outputs ..., flags ...)
        payload = tuple(array for array in payload if array.shape)
        payload = payload[len(payload) // 2 :]
    if kind == "reduce-scatter" and instruction.opcode != "all-reduce":
        payload = tuple(dataclasses.replace(a, shape=(*a.shape, len(groups[0]) if groups else 1)) for a in payload)
    return Collective(kind, is_async, payload, groups, times, instruction.op_name)


def replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Parses the device groups of a collective from any of XLA's four formats, or the pairs of a permutation.

    `{{0,1},{2,3}}`; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`: numbers counted up, transposed and reshaped; and
    `mesh['a'=2,'b'=2] {'b'}`: devices that differ only along the named axes, numbered in the order that
    `, device_ids=([2,2]T(1,0))` gives, if present. Empty without groups: all devices. Raises ValueError for others.
    """
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", text):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", match[1]))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        numbers = _numbering(match[3], match[4]).reshape(int(match[1]), int(match[2]))
        return tuple(map(tuple, numbers.tolist()))
    ordered = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if match := re.search(rf"replica_groups=mesh\[([^\]]*)\]{ordered} *\{{([^}}]*)\}}", text):
        axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
        chosen = re.findall(r"'([^']*)'", match[4])
        if set(chosen) <= set(axes) and ":" not in match[4]:
            numbers = _numbering(match[2] or str(math.prod(axes.values())), match[3]).reshape(list(axes.values()))
            kept = [i for i, name in enumerate(axes) if name not in chosen]
            order = kept + [list(axes).index(name) for name in chosen]
            groups = numbers.transpose(order).reshape(-1, math.prod(axes[name] for name in chosen))
            return tuple(map(tuple, groups.tolist()))
    if "replica_groups=" in text and "replica_groups={}" not in text:
        raise ValueError(f"cannot read the groups of devices in {re.search('replica_groups=.{0,120}', text)[0]!r}")
    return ()


def _numbering(sizes: str, permutation: str | None) -> np.ndarray:
    """`4,2` and `1,0`: the numbers from 0 in shape [4, 2], transposed by (1, 0)."""
    shape = [int(n) for n in sizes.split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose([int(n) for n in permutation.split(",")]) if permutation else numbers
