"""The mesh, the one table that maps logical axes to mesh axes, and the helpers that apply it.

Mesh axes: `data` replicates weights, `fsdp` shards them over their embed axis and gathers them on use, `tensor` splits
heads, MLP and vocabulary. The batch is split over `data` and `fsdp` together. Only `data` goes over several TPU slices.
"""

import math

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llava_jax.errors import ConfigError

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


def global_batch(batch, mesh: Mesh):
    """This process's rows -> global device arrays split along the first axis. batch: a pytree of numpy arrays."""
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_batch(batch, mesh: Mesh):
    """All rows, the same on every process -> global device arrays split along the first axis. batch: a pytree of numpy
    arrays."""
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)


def gather_to_host(x: jax.Array) -> np.ndarray:
    """All of a global array, on every process. Every process must call it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))
