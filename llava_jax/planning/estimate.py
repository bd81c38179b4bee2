"""How long one run of a compiled TPU program takes, as a range, from its schedule; nothing runs.

The compiler notes on nearly every kernel how many cycles it thinks it takes (`estimated_cycles`); these are summed over
the schedule, loops multiplied out. What it does not know is added: attention kernels by their FLOPs, collectives by the
bytes they move and what the links carry, transfers by the bandwidth of the memory. `cost_analysis()` is of no use: it
counts a loop once, Pallas kernels as -1, and links not at all.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

from llava_jax.planning.hlo.collectives import Collective, collectives
from llava_jax.planning.hlo.flops import Kernel, has_product, kernels, product_flops
from llava_jax.planning.hlo.memory import moved
from llava_jax.planning.hlo.parse import Program, parse_program, trip_count
from llava_jax.planning.topologies import Topology

KERNEL_MXU = 0.5  # the share of the peak that an attention kernel reaches


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Times in seconds, of one run and one device; what runs at the same time on all devices is counted once."""

    matmul: float  # kernels with a matrix product in them
    other: float  # all other kernels of the compiler's own
    attention: float  # Pallas kernels
    exposed: float  # synchronous collectives: the chip waits
    hidden: float  # asynchronous ones, at full length: other work may cover all of it, or none
    memory: float  # all bytes moved, over the bandwidth of HBM: no program is faster
    traffic: dict[tuple[str, str, str], float]  # (kind, "sync" or "async", dtype) -> bytes of the arrays, times trips
    hardware_flops: float  # products and attention kernels
    hbm_bytes: float
    host_bytes: float
    kernels: tuple[Kernel, ...]
    assumptions: tuple[str, ...]

    @property
    def compute(self) -> float:
        return self.matmul + self.other + self.attention

    @property
    def lower(self) -> float:
        """Every asynchronous collective is covered by other work."""
        return max(self.compute + self.exposed, self.memory)

    @property
    def upper(self) -> float:
        """None is."""
        return max(self.compute + self.exposed + self.hidden, self.memory)

    def mfu(self, model_flops: float, topology: Topology) -> tuple[float, float]:
        """(lowest, highest) share of the peak of all devices, for the model FLOPs of one step of the whole mesh."""
        ideal = model_flops / (topology.peak_flops * topology.device_count)
        return ideal / self.upper, ideal / self.lower


def estimate(text: str | Program, topology: Topology, coords: Sequence[tuple[int, ...]]) -> Estimate:
    """text: of a program that was compiled for this slice (`compiled.as_text()`), or what `hlo.parse` made of it.
    places: coordinates of the devices in the order of the mesh, `[d.coords for d in mesh.devices.flat]`."""
    program = parse_program(text) if isinstance(text, str) else text
    coords = [tuple(coord) for coord in coords]
    cycles = {True: 0, False: 0}
    for _, instruction, times in program.walk():
        cycles[has_product(program, instruction)] += instruction.cycles * times
    transfers, (attention, unknown) = collectives(program), kernels(program)
    attention_seconds = sum(k.times * k.padded for k in attention) / (KERNEL_MXU * topology.peak_flops)
    time = {True: 0.0, False: 0.0}
    traffic: dict[tuple[str, str, str], float] = defaultdict(float)
    for transfer in transfers:
        time[transfer.is_async] += transfer.times * seconds(transfer, topology, coords)
        mode = "async" if transfer.is_async else "sync"
        traffic[transfer.kind, mode, transfer.dtype] += transfer.times * transfer.bytes
    hbm, host = moved(program)
    return Estimate(
        matmul=cycles[True] / topology.clock,
        other=cycles[False] / topology.clock,
        attention=attention_seconds,
        exposed=time[False],
        hidden=time[True],
        memory=hbm / topology.hbm_bytes_per_s,
        traffic=dict(traffic),
        hardware_flops=product_flops(program) + sum(k.times * k.flops for k in attention),
        hbm_bytes=hbm,
        host_bytes=host,
        kernels=tuple(attention),
        assumptions=_assumptions(program, topology, transfers, attention, unknown, host),
    )


def _assumptions(
    program: Program, topology: Topology, transfers: list[Collective], attention, unknown: dict[str, int], host: float
) -> tuple[str, ...]:
    """What the numbers stand on, for whoever reads them; only what this program is concerned by."""
    g = topology.generation
    lines = [
        f"kernels: the compiler's own estimate of cycles, at {g.clock_ghz:g} GHz, one after the other",
        f"memory: at least all bytes moved at {g.hbm_gbps:,} GB/s a chip; no other kernel is slowed down by them",
    ]
    if attention:
        lines.append(
            f"attention kernels: {KERNEL_MXU:.0%} of the peak, for the half of the products that a causal mask leaves"
        )
    if transfers:
        ends = "with" if topology.wraps else "without"
        lines.append(
            f"links: {g.link_gbps:g} GB/s each way, {ends} wrap-around, all those along the axes that a group spans "
            "at full speed; nobody else sends"
        )
    if any(transfer.is_async for transfer in transfers):
        lines.append(
            "asynchronous collectives: wholly covered by other work in the lower time, not at all in the upper"
        )
    if unknown:
        listed = ", ".join(f"{name} x {times}" for name, times in sorted(unknown.items()))
        lines.append(f"other Pallas kernels, which report nothing, count as 0 s: {listed}")
    if host:
        lines.append(f"{host / 1e9:.1f} GB a step to and from the host count as 0 s: they are taken to be covered")
    endless = [i.name for c, i, _ in program.walk() if i.opcode == "while" and trip_count(program, c, i) is None]
    if endless:
        lines.append(f"loops whose length only the data decide count once: {', '.join(endless)}")
    return tuple(lines)


def seconds(collective: Collective, topology: Topology, coords: Sequence[tuple[int, ...]]) -> float:
    """What the links need for it once, at their full speed, the slowest group deciding.

    places: the coordinates of each device, in the order of the mesh. In a ring or along the axes of a box, every chip
    receives what it lacks over one link per axis, or both of an axis whose ends are joined; an all-reduce does it
    twice; of an all-to-all, what crosses the middle of the longest axis counts.
    """
    if collective.kind == "collective-permute":
        return collective.bytes / topology.link_bytes_per_s
    groups = collective.groups or (tuple(range(len(coords))),)
    return max(_group_seconds(collective, topology, [coords[i] for i in group]) for group in groups)


def _group_seconds(collective: Collective, topology: Topology, coords: list[tuple[int, ...]]) -> float:
    n = len(coords)
    if n == 1:
        return 0.0
    spans = {axis: len(set(values)) for axis, values in enumerate(zip(*coords, strict=True)) if len(set(values)) > 1}
    is_box = math.prod(spans.values()) == len(set(coords))
    axes = len(spans) if is_box and spans else 1
    # Part of an axis has no joined ends.
    joined = 2 if topology.wraps and spans and all(topology.shape[a] == size for a, size in spans.items()) else 1
    if collective.kind == "all-to-all":
        longest = max(spans.values(), default=n) if is_box else n
        return longest / 4 * collective.bytes / (topology.link_bytes_per_s * joined)
    passes = 2 if collective.kind == "all-reduce" else 1
    return passes * collective.bytes * (n - 1) / n / (topology.link_bytes_per_s * joined * axes)
