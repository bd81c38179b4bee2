"""What accelerators do at best: peak, memory and links of TPU generations, peak and memory of GPUs.

TPUs: peaks, memory and links are those of Google's pages on each generation (cloud.google.com/tpu/docs); usable memory
is what the compiler's own out-of-memory message gives (libtpu 0.0.42). GPUs: the makers' data sheets.
"""

import dataclasses

from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
    """What one chip does at best, and which slices of it libtpu 0.0.42 compiles for."""

    name: str
    kind: str  # as jax names the device
    peak_tflops: float  # dense bfloat16
    hbm_gbps: float  # 1e9 bytes/s
    hbm_gib: float  # usable, of one device
    link_gbps: float  # 1e9 bytes/s, one link in one direction
    clock_ghz: float  # what estimated_cycles are cycles of; peak = multiply-adds per cycle x 2 x clock
    cores: int  # devices of a chip
    shapes: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
GENERATIONS = {
    g.name: g
    for g in (
        TpuGeneration("v4", "TPU v4", 275, 1228, 30.75, 45, 1.05, 1, _CUBES),
        TpuGeneration("v5e", "TPU v5 lite", 197, 819, 15.75, 45, 1.5, 1, ("1x1", *_FLAT)),
        TpuGeneration("v5p", "TPU v5", 459, 2765, 95.74, 90, 1.75, 1, _CUBES),
        TpuGeneration("v6e", "TPU v6 lite", 918, 1640, 31.25, 90, 1.75, 1, ("1x1", *_FLAT)),
        # Two devices a chip: libtpu has no megacore configuration for it.
        TpuGeneration("tpu7x", "TPU7x", 2307, 7370, 94.75, 90, 2.2, 2, ("2x2x1", "2x2x2", "2x2x4", "4x4x4")),
    )
}

# Dense bf16 peak, TFLOP/s, and memory, GiB, per device, as jax names it.
_GPUS = {
    "NVIDIA A100-SXM4-40GB": (312, 40), "NVIDIA A100-SXM4-80GB": (312, 80), "NVIDIA H100 80GB HBM3": (989, 80),
    "NVIDIA H200": (989, 141),
}  # fmt: skip
_TPUS = {g.kind: (g.peak_tflops / g.cores, g.hbm_gib) for g in GENERATIONS.values()}
_TPUS["TPU v5p"] = _TPUS["TPU v5"]  # its other name
PEAK_TFLOPS = {kind: peak for kind, (peak, _) in (_TPUS | _GPUS).items()}
MEMORY_GIB = {kind: memory for kind, (_, memory) in (_TPUS | _GPUS).items()}


def platform_of(mesh: Mesh) -> str:
    """What runs the mesh, as `config.model_config` asks it: tpu | cuda | rocm | cpu. The devices may be those of a
    topology that is not there."""
    device = mesh.devices.flat[0]
    if device.platform == "gpu":
        return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return device.platform
