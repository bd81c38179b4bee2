"""Parameters of a model: their shapes and axes, initial values, and flat paths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from llava_jax.config.architectures import ModelConfig
from llava_jax.models.llava import Llava
from llava_jax.runtime.sharding import param_specs

Params = dict[str, jax.Array]
Specs = dict[str, PartitionSpec]


def _create(config: ModelConfig, key: jax.Array):
    config = dataclasses.replace(config, attention="xla")  # parameters are the same, and a mesh cannot split one row
    tokens = jnp.zeros((1, 1), jnp.int32)
    size = config.image_size
    return Llava(config).init(key, tokens, jnp.zeros((1, 0, size, size, 3), jnp.uint8), tokens, tokens)["params"]


@functools.cache  # tracing takes longer than anything else that a small model does before its first step
def abstract_params(config: ModelConfig) -> dict:
    """Shapes, dtypes and logical axes of every parameter, boxed (nn.LogicallyPartitioned); allocates nothing. Every
    caller gets the same tree: do not modify it.

    Raises ConfigError for an unknown name in the config.
    """
    return jax.eval_shape(lambda key: _create(config, key), jax.random.key(0))


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Initial float32 parameters, unboxed. Raises ConfigError for an unknown name in the config."""
    return jax.jit(lambda key: nn.unbox(_create(config, key)))(key)


def nested(params: Params) -> dict:
    """Flat paths -> the nested tree that a model is applied to."""
    return unflatten_dict(params, sep="/")


def abstract_model(config: ModelConfig) -> tuple[dict[str, jax.ShapeDtypeStruct], Specs]:
    """(path -> shape and dtype, path -> PartitionSpec over mesh axes) of every parameter; computes nothing."""
    boxed = abstract_params(config)
    return flatten_dict(nn.unbox(boxed), sep="/"), flatten_dict(param_specs(boxed), sep="/")
