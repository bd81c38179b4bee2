"""The mesh, the one table that maps logical axes to mesh axes, and the helpers that apply it.

Mesh axes: `data` replicates weights, `fsdp` shards them over their embed axis and gathers them on use, `tensor` splits
heads, MLP and vocabulary. The batch is split over `data` and `fsdp` together. Only `data` goes over several TPU slices.
"""

import math

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llava_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

RULES = (
    ("batch", ("data", "fsdp")),
    ("rows", "data"),  # of a batch whose features are split over fsdp
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("head_size", None),
    ("vision_embed", "fsdp"),
    ("position", None),
    ("pixel", None),
)


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """A mesh of shape (data, fsdp, tensor) over `devices` (default: all). One size may be -1: what is left over.

    Raises ConfigError when the sizes do not multiply to the number of devices, or `data` does not go over TPU slices.
    """
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
    # Auto axes: flax's logical constraints act as asserts under Explicit ones, make_mesh's default.
    auto = (AxisType.Auto,) * 3
    slices = count_slices(devices)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)
    return Mesh(over_slices(sizes, slices, devices), AXES, axis_types=auto)


def count_slices(devices) -> int:
    """TPU slices, which chips' links do not join. (Of GPUs it is 1, whatever joins them.)"""
    # Devices that are only described (`plan`) have no such attribute where there is one slice.
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def over_slices(sizes: list[int], slices: int, devices) -> np.ndarray:
    """The devices of several TPU slices as [data, fsdp, tensor]. Between slices there is only the network of the data
    centre, so nothing but `data` goes over it: once a step, gradients.

    Raises ConfigError where `data` is no multiple of the slices.
    """
    data, fsdp, tensor = sizes
    if data % slices:
        raise ConfigError(
            f"mesh.data={data} does not go over {slices} TPU slices; set it to {slices}, or a multiple, and "
            f"mesh.fsdp=-1: within a slice weights are split, between slices they are copied"
        )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)


def replicating(mesh: Mesh) -> Mesh:
    """The same devices in the same order with `fsdp` made part of `data`: weights are copied, not split. Rows of the
    batch lie where they lay; where the weights are frozen, then only the gradient of the others travels."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    return Mesh(mesh.devices.reshape(data * fsdp, 1, tensor), AXES, axis_types=mesh.axis_types)


def check_processes(mesh: Mesh) -> None:
    """Raises ConfigError where devices of several processes share rows of the batch, of which each process reads its
    own: JAX would take different rows for copies of one."""
    of_rows = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(-1, mesh.shape["tensor"])
    if (of_rows != of_rows[:, :1]).any():
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} spreads rows of the batch over several processes; it must divide the "
            f"{len(mesh.local_devices)} devices of a process"
        )


def param(module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str | None, ...]):
    """Declares one float32 parameter and names its logical axes; the only way a model makes a weight."""
    assert len(shape) == len(axes), f"{name}: shape {shape} and axes {axes} differ in length"
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how an activation is laid out. Acts only under `jax.set_mesh` + `logical_rules()`."""
    return nn.with_logical_constraint(x, axes)


def logical_rules():
    """Context in which `constrain` knows the table."""
    return nn.logical_axis_rules(RULES)


def param_specs(boxed) -> dict:
    """Tree of PartitionSpec (mesh axes) for a boxed (abstract) parameter tree."""
    logical = nn.get_partition_spec(boxed)
    return nn.logical_to_mesh(logical, RULES)


def param_sharding(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter. Raises ConfigError where mesh axes do not divide what they are to split."""
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise ConfigError(
                f"mesh {' x '.join(names)} = {parts} does not divide {path} of shape {shape}, which it splits along "
                f"the axis of {size}; choose a mesh size that divides {size}"
            )
    return NamedSharding(mesh, spec)


def batch_spec() -> PartitionSpec:
    """Every batch array is split along its first axis only."""
    return PartitionSpec(("data", "fsdp"))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> global device arrays split along the first axis; `index`, which the host alone needs
    (int64 of which sample a row is), is left out."""
    sharding = NamedSharding(mesh, batch_spec())
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items() if k != "index"}
