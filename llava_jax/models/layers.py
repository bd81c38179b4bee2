"""Modules that both towers share: matmuls, norms, activations, and the scan over layers.

Axis letters, in einsum strings and in shapes:
    B batch   T query tokens   S key tokens   D width   H query heads   K key/value heads   G = H / K
    E head size   F MLP width   V vocabulary   L layers   C channels of a pixel or feature
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from llava_jax.config.architectures import REMAT, ModelConfig
from llava_jax.errors import ConfigError
from llava_jax.models.matmul import dot
from llava_jax.runtime.sharding import param


class Linear(nn.Module):
    """dot(spec, x, kernel, dtype, out), plus a bias over the last `bias` axes of the kernel (0: none).

    Kernels start from a normal of variance 1 / fan_in, with which towers of any width train (LLaMA's constant, 0.02, is
    this for a width of 2,500), times `init_scale`; biases start from 0. An `init` is used for both instead.
    """

    spec: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: str
    bias: int = 0
    out: str | None = None
    init_scale: float = 1.0
    init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x):
        inputs, outputs = self.spec.split("->")
        kernel_axes = inputs.split(",")[1]
        fan_in = math.prod(n for axis, n in zip(kernel_axes, self.shape, strict=True) if axis not in outputs)
        init = self.init or nn.initializers.normal(self.init_scale * fan_in**-0.5)
        y = dot(self.spec, x, param(self, "kernel", init, self.shape, self.axes), self.dtype, self.out)
        if self.bias:
            init = self.init or nn.initializers.zeros
            y += param(self, "bias", init, self.shape[-self.bias :], self.axes[-self.bias :]).astype(y.dtype)
        return y


class Embedding(nn.Module):
    """A table, returned whole. Starts from a normal of `variance`, by default 1 / width, as in CLIP."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    variance: float | None = None

    @nn.compact
    def __call__(self):
        init = nn.initializers.normal((self.variance or 1 / self.shape[-1]) ** 0.5)
        return param(self, "embedding", init, self.shape, self.axes)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype (arXiv 1910.07467)."""

    eps: float
    axis: str

    @nn.compact
    def __call__(self, x):
        scale = param(self, "scale", nn.initializers.ones, x.shape[-1:], (self.axis,))
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis, in float32, returned in x's dtype."""

    eps: float
    axis: str

    @nn.compact
    def __call__(self, x):
        scale = param(self, "scale", nn.initializers.ones, x.shape[-1:], (self.axis,))
        bias = param(self, "bias", nn.initializers.zeros, x.shape[-1:], (self.axis,))
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # with erf
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
}


def scan_layers(block: type[nn.Module], config: ModelConfig, length: int, in_axes=()) -> type[nn.Module]:
    """`length` blocks in sequence, parameters stacked on a leading `layers` axis: block(carry, ...) -> carry, None.

    `config.remat` selects what the backward pass recomputes. `config.unroll` compiles straight-line code from the same
    parameters. Raises ConfigError for an unknown policy.
    """
    if config.remat not in REMAT:
        raise ConfigError(f"remat policy {config.remat!r} is unknown; use {', '.join(REMAT)}")
    remat = REMAT[config.remat]
    if remat is not None:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=remat.keep, names_which_can_be_offloaded=remat.offload,
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
        # Inside a loop the compiler cannot merge the recomputation with the forward pass; in straight-line code it can.
        block = nn.remat(block, prevent_cse=config.unroll, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=length if config.unroll else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
