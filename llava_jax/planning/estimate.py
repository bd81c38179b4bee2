"""Estimates how long one run of a compiled TPU program takes, as a range, from its schedule; nothing runs.

The compiler annotates nearly every kernel with the number of cycles that it expects (`estimated_cycles`). These are
summed over the schedule, loops multiplied out. The rest is added: attention kernels by their FLOPs, collectives by
their bytes and the bandwidth of the links, transfers by the bandwidth of the memory. `cost_analysis()` is of no use: it
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
    """Times in seconds, of one run on one device; all devices run at the same time."""

    matmul: float  # kernels that contain a matmul
    other: float  # all other kernels that the compiler generated
    attention: float  # Pallas kernels
    exposed: float  # synchronous collectives: the chip waits
    hidden: float  # asynchronous collectives, full duration: other work may hide all of it, or none
    memory: float  # all bytes moved / HBM bandwidth: a lower bound of the time
    traffic: dict[tuple[str, str, str], float]  # (kind, "sync" or "async", dtype) -> bytes of the arrays, over all runs
    hardware_flops: float  # matmuls and attention kernels
    hbm_bytes: float
    host_bytes: float
    kernels: tuple[Kernel, ...]
    assumptions: tuple[str, ...]

    @property
    def compute(self) -> float:
        return self.matmul + self.other + self.attention

    @property
    def lower(self) -> float:
        """The time if other work hides every asynchronous collective."""
        return max(self.compute + self.exposed, self.memory)

    @property
    def upper(self) -> float:
        """The time if nothing hides any of them."""
        return max(self.compute + self.exposed + self.hidden, self.memory)

    def mfu(self, model_flops: float, topology: Topology) -> tuple[float, float]:
        """(lowest, highest) MFU of all devices. model_flops: of one step of the whole mesh."""
        ideal = model_flops / (topology.peak_flops * topology.device_count)
        return ideal / self.upper, ideal / self.lower


def estimate(text: str | Program, topology: Topology, coords: Sequence[tuple[int, ...]]) -> Estimate:
    """text: `compiled.as_text()` of a program that was compiled for this slice, or what `parse_program` made of it.
    coords: coordinates of the devices in mesh order, `[d.coords for d in mesh.devices.flat]`."""
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
    """The assumptions behind the numbers; only those that apply to this program."""
    g = topology.generation
    lines = [
        f"kernels: cycles as the compiler estimates them, at {g.clock_ghz:g} GHz, one after the other",
        f"memory: a run takes at least all bytes moved at {g.hbm_gbps:,} GB/s per chip; traffic slows no kernel down",
    ]
    if attention:
        lines.append(
            f"attention kernels: {KERNEL_MXU:.0%} of the peak, for the half of the scores that a causal mask leaves"
        )
    if transfers:
        ends = "with" if topology.wraps else "without"
        lines.append(
            f"links: {g.link_gbps:g} GB/s each way, {ends} wrap-around; all links along the axes that a group "
            "spans run at full speed, without other traffic"
        )
    if any(transfer.is_async for transfer in transfers):
        lines.append("asynchronous collectives: fully hidden by other work in the lower time, not at all in the upper")
    if unknown:
        listed = ", ".join(f"{name} x {times}" for name, times in sorted(unknown.items()))
        lines.append(f"other Pallas kernels, which report no cycles, count as 0 s: {listed}")
    if host:
        lines.append(f"{host / 1e9:.1f} GB per step to and from the host count as 0 s: assumed to be hidden")
    endless = [i.name for c, i, _ in program.walk() if i.opcode == "while" and trip_count(program, c, i) is None]
    if endless:
        lines.append(f"loops whose trip count depends on the data count once: {', '.join(endless)}")
    return tuple(lines)


def seconds(collective: Collective, topology: Topology, coords: Sequence[tuple[int, ...]]) -> float:
    """Seconds that one run of a collective needs on links at full speed; the slowest group decides.

    coords: coordinates of each device, in mesh order. In a ring, or along the axes of a box, every chip receives the
    data that it lacks over one link per axis, or over two if the ends of the axis are wired to each other. An
    all-reduce does this twice. For an all-to-all, the data that crosses the middle of the longest axis counts.
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
    # The ends of a part of an axis are not wired to each other.
    joined = 2 if topology.wraps and spans and all(topology.shape[a] == size for a, size in spans.items()) else 1
    if collective.kind == "all-to-all":
        longest = max(spans.values(), default=n) if is_box else n
        return longest / 4 * collective.bytes / (topology.link_bytes_per_s * joined)
    passes = 2 if collective.kind == "all-reduce" else 1
    return passes * collective.bytes * (n - 1) / n / (topology.link_bytes_per_s * joined * axes)
