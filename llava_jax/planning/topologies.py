"""TPU slices by name: how their chips are wired, and devices to compile for.

Links and wrap-around follow "How to scale your model" (jax-ml.github.io/scaling-book), chapter 2.
"""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from llava_jax.errors import ConfigError
from llava_jax.runtime.accelerators import GENERATIONS, TpuGeneration


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice. Rates are per device: where a chip has two devices, each has half."""

    generation: TpuGeneration
    shape: tuple[int, ...]  # chips along the axes of the torus

    @property
    def name(self) -> str:
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def device_count(self) -> int:
        return self.chips * self.generation.cores

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return self.generation.peak_tflops * 1e12 / self.generation.cores

    @property
    def hbm_bytes_per_s(self) -> float:
        return self.generation.hbm_gbps * 1e9 / self.generation.cores

    @property
    def hbm_bytes(self) -> int:
        return int(self.generation.hbm_gib * 2**30)

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.generation.clock_ghz * 1e9

    @property
    def link_bytes_per_s(self) -> float:
        """Of one link in one direction."""
        return self.generation.link_gbps * 1e9 / self.generation.cores

    @property
    def wraps(self) -> bool:
        """Whether the two ends of every axis are wired to each other: assumed for 16x16 chips in two dimensions, and
        for multiples of 4 in all three."""
        if len(self.shape) == 2:
            return self.shape == (16, 16)
        return all(size % 4 == 0 for size in self.shape)


def listing() -> str:
    """The slices that `parse_topology` accepts, one generation per line."""
    lines = [
        f"{g.name:<6}{g.peak_tflops:5.0f} TFLOP/s, {g.hbm_gib * g.cores:6.2f} GiB at {g.hbm_gbps:4.0f} GB/s per chip:  "
        + " ".join(g.shapes)
        for g in GENERATIONS.values()
    ]
    return "\n".join(lines)


def parse_topology(name: str) -> Topology:
    """Parses 'v5e:4x4'. Raises ConfigError, which lists the existing slices, for an unknown one."""
    key, _, shape = name.lower().partition(":")
    key = {"v5": "v5p"}.get(key, key)
    if key not in GENERATIONS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ConfigError(f"no TPU slice is called {name!r}; write GENERATION:SHAPE, one of these\n{listing()}")
    generation = GENERATIONS[key]
    if shape not in generation.shapes:
        raise ConfigError(f"{key} has no slice of {shape}; there are {', '.join(generation.shapes)}")
    return Topology(generation, tuple(int(size) for size in shape.split("x")))


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for; nothing can run on them. `runtime.mesh.make_mesh` accepts them like real ones.

    Raises ConfigError where libtpu is missing or fails. Without a TPU, libtpu needs JAX_PLATFORMS=cpu; beside another
    process that has loaded it, also ALLOW_MULTIPLE_LIBTPU_LOAD=1.
    """
    options = {}
    if topology.generation.name == "v4":
        options["chip_config_name"] = "megacore"  # otherwise each half of a chip is a device, with half its memory
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # one of a host's four chips
    try:
        described = topologies.get_topology_desc(topology.name, platform="tpu", **options).devices
    except Exception as error:  # its type depends on the version of jax
        raise ConfigError(
            f"libtpu cannot describe {topology.name} ({str(error).splitlines()[0]}); "
            "pip install 'jax[tpu]' installs the compiler, which needs no TPU"
        ) from error
    return list(described)
