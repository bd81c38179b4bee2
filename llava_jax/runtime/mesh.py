"""The device mesh: its axes, and its arrangement over processes and TPU slices."""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from llava_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """A mesh of shape (data, fsdp, tensor) over `devices` (default: all). One size may be -1 and is inferred. Raises
    ConfigError where the sizes do not multiply to the number of devices, or TPU slices do not divide `data`."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ConfigError(
            f"mesh sizes must be positive, at most one of them -1; got {dict(zip(AXES, sizes, strict=True))}"
        )
    if -1 in sizes:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = len(devices) // known if len(devices) % known == 0 else 0
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not cover {len(devices)} devices; "
            f"set one of them to -1 or make their product {len(devices)}"
        )
    # Auto axes: under Explicit axes, the default of jax.make_mesh, Flax's logical constraints act as asserts.
    auto = (AxisType.Auto,) * 3
    slices = count_slices(devices)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)
    return Mesh(arrange_slices(sizes, slices, devices), AXES, axis_types=auto)


def count_slices(devices) -> int:
    """Number of TPU slices, between which there are no chip-to-chip links. Always 1 for GPUs."""
    # The devices of a topology description (`plan`) lack `slice_index` where there is one slice.
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def arrange_slices(sizes: list[int], slices: int, devices) -> np.ndarray:
    """The devices of several TPU slices as [data, fsdp, tensor]. Only the `data` axis spans slices, so that only the
    gradients cross the data-center network, once per step. Raises ConfigError where `slices` does not divide `data`."""
    data, fsdp, tensor = sizes
    if data % slices:
        raise ConfigError(
            f"mesh.data={data} does not go over {slices} TPU slices; set it to {slices}, or a multiple, and "
            f"mesh.fsdp=-1: weights are sharded within a slice and replicated over slices"
        )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)


def without_fsdp(mesh: Mesh) -> Mesh:
    """The same devices in the same order, with the `fsdp` axis merged into `data`: weights are replicated, and the rows
    of the batch stay where they were. Frozen weights then need no communication, only trained ones a gradient sum."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    return Mesh(mesh.devices.reshape(data * fsdp, 1, tensor), AXES, axis_types=mesh.axis_types)


def check_processes(mesh: Mesh) -> None:
    """Raises ConfigError where devices of several processes share rows of the batch. Each process reads its own rows,
    so JAX would treat different rows as replicas of one."""
    process_of_rows = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(-1, mesh.shape["tensor"])
    if (process_of_rows != process_of_rows[:, :1]).any():
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} spreads rows of the batch over several processes; it must divide the "
            f"{len(mesh.local_devices)} devices of a process"
        )
