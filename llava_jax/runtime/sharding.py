"""The table that maps logical axes to mesh axes, and the helpers that apply it.

Mesh axes: `data` replicates weights, `fsdp` shards them along their embed axis and gathers them on use, `tensor` shards
heads, MLP and vocabulary. The batch is sharded over `data` and `fsdp` together. Only `data` spans several TPU slices.
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
    ("rows", "data"),  # batch axis of arrays whose features are sharded over fsdp
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
    """Declares one float32 parameter with its logical axes. Models create every weight with it."""
    assert len(shape) == len(axes), f"{name}: shape {shape} and axes {axes} differ in length"
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation. Has an effect only under `jax.set_mesh` and `logical_rules()`."""
    return nn.with_logical_constraint(x, axes)


def logical_rules():
    """Context in which `constrain` maps logical axes by RULES."""
    return nn.logical_axis_rules(RULES)


def param_specs(boxed) -> dict:
    """Tree of PartitionSpec (mesh axes) for a boxed (abstract) parameter tree."""
    logical = nn.get_partition_spec(boxed)
    return nn.logical_to_mesh(logical, RULES)


def param_sharding(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter. Raises ConfigError where the mesh axes do not divide the shape."""
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
    """Every batch array is sharded along its first axis only."""
    return PartitionSpec(("data", "fsdp"))


def global_batch(batch, mesh: Mesh):
    """This process's rows -> global device arrays, sharded along the first axis. batch: a pytree of numpy arrays."""
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_batch(batch, mesh: Mesh):
    """Like `global_batch`, for all rows, which are the same on every process."""
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)


def gather_to_host(x: jax.Array) -> np.ndarray:
    """The whole of a global array, on every process. Every process must call it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))
