"""The training state: its abstract form, and its sharded initialization, in which no unsharded array exists.

Parameters are in two flat dicts, {"llm/layers/q/kernel": array}: `trainable` (float32, with gradients and optimizer
state) and `frozen` (compute dtype, never differentiated).
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llava_jax.config.architectures import ModelConfig
from llava_jax.models.params import Params, abstract_model, init_params
from llava_jax.runtime.sharding import param_sharding


@struct.dataclass
class TrainState:
    """step: steps of the current stage, with skipped ones (int32). rng: the key of randomly initialized parameters."""

    step: jax.Array
    trainable: Params
    frozen: Params
    opt_state: optax.OptState
    rng: jax.Array


def storage_dtype(path: str, rate: float | None, config: ModelConfig) -> jnp.dtype:
    """float32 for trained parameters, otherwise the compute dtype of their module."""
    if rate is not None:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(config.feature_dtype if path.startswith("vision/") else config.dtype)


def init_params_for(config: ModelConfig, mesh: Mesh, rng: jax.Array, paths) -> Params:
    """Randomly initialized, sharded float32 parameters for `paths`; no others are computed."""
    shapes, specs = abstract_model(config)
    shardings = {p: param_sharding(p, shapes[p].shape, specs[p], mesh) for p in sorted(paths)}

    def create(key):
        params = flatten_dict(init_params(config, key), sep="/")
        return {p: params[p] for p in shardings}

    with jax.set_mesh(mesh):
        return jax.jit(create, out_shardings=shardings)(rng)


def abstract_state(config: ModelConfig, rates: dict[str, float | None], tx: optax.GradientTransformation, mesh: Mesh):
    """A TrainState of jax.ShapeDtypeStruct with shardings, to initialize, restore and compile with.

    Adam's moments are sharded like their parameter; counters are replicated. Raises ConfigError where the mesh does not
    divide a parameter.
    """
    shapes, specs = abstract_model(config)
    replicated = NamedSharding(mesh, PartitionSpec())

    def leaf(path: str) -> jax.ShapeDtypeStruct:
        dtype, shape = storage_dtype(path, rates[path], config), shapes[path].shape
        return jax.ShapeDtypeStruct(shape, dtype, sharding=param_sharding(path, shape, specs[path], mesh))

    trainable = {p: leaf(p) for p in sorted(shapes) if rates[p] is not None}
    frozen = {p: leaf(p) for p in sorted(shapes) if rates[p] is None}

    def moment(key_path, x) -> jax.ShapeDtypeStruct:
        name = getattr(key_path[-1], "key", None)
        like = trainable.get(name)
        sharding = like.sharding if like is not None and like.shape == x.shape else replicated
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    opt_state = jax.tree_util.tree_map_with_path(moment, jax.eval_shape(tx.init, trainable))
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    rng = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated)
    return TrainState(scalar, trainable, frozen, opt_state, rng)


def init_stage_state(
    params: Params, rng: jax.Array, abstract: TrainState, tx: optax.GradientTransformation
) -> TrainState:
    """All parameters -> the state at step 0 of a stage: split, cast, resharded, with new optimizer state. Do not use
    `params` afterwards: the state may share their buffers."""

    def create(params, rng):
        def take(part):
            return {p: params[p].astype(like.dtype) for p, like in part.items()}

        trainable = take(abstract.trainable)
        return TrainState(jnp.zeros((), jnp.int32), trainable, take(abstract.frozen), tx.init(trainable), rng)

    return jax.jit(create, out_shardings=shardings_of(abstract))(params, rng)


def shardings_of(abstract) -> TrainState:
    """The same tree with each leaf's sharding."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def all_params(state: TrainState) -> Params:
    return {**state.frozen, **state.trainable}


def params_sha256(params: Params) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes. Every process must call it. Gathers one tensor at a time."""
    digest = hashlib.sha256()
    for path in sorted(params):
        value = np.asarray(multihost_utils.process_allgather(params[path], tiled=True))
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
