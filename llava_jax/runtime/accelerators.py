"""Peak FLOP/s, memory and link speed of TPU generations; peak FLOP/s and memory of GPUs.

Sources: for TPUs Google's page on each generation (cloud.google.com/tpu/docs), but usable memory is what the compiler's
out-of-memory message states (libtpu 0.0.42); for GPUs the vendors' data sheets.
"""

import dataclasses

from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
    """Peak numbers of one chip, and the slice shapes that libtpu 0.0.42 compiles for."""

    name: str
    kind: str  # `device_kind` in JAX
    peak_tflops: float  # dense bfloat16
    hbm_gbps: float  # 1e9 bytes/s
    hbm_gib: float  # usable, per device
    link_gbps: float  # 1e9 bytes/s, one link in one direction
    clock_ghz: float  # unit of `estimated_cycles`; peak = multiply-adds per cycle x 2 x clock
    cores: int  # devices per chip
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
        # Two devices per chip: libtpu has no megacore configuration for it.
        TpuGeneration("tpu7x", "TPU7x", 2307, 7370, 94.75, 90, 2.2, 2, ("2x2x1", "2x2x2", "2x2x4", "4x4x4")),
    )
}

# `device_kind` -> dense bf16 peak in TFLOP/s and memory in GiB, per device.
_GPUS = {
    "NVIDIA A100-SXM4-40GB": (312, 40), "NVIDIA A100-SXM4-80GB": (312, 80), "NVIDIA H100 80GB HBM3": (989, 80),
    "NVIDIA H200": (989, 141),
}  # fmt: skip
_TPUS = {g.kind: (g.peak_tflops / g.cores, g.hbm_gib) for g in GENERATIONS.values()}
_TPUS["TPU v5p"] = _TPUS["TPU v5"]  # the other name of v5p
PEAK_TFLOPS = {kind: peak for kind, (peak, _) in (_TPUS | _GPUS).items()}
MEMORY_GIB = {kind: memory for kind, (_, memory) in (_TPUS | _GPUS).items()}


def platform_of(mesh: Mesh) -> str:
    """Platform of the mesh for `config.model_config`: tpu | cuda | rocm | cpu. Works on topology descriptions too."""
    device = mesh.devices.flat[0]
    if device.platform == "gpu":
        return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return device.platform
