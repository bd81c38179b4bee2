"""The parts both towers share: products, norms, rotary positions, attention, and the loop over layers.

Axis letters, in einsum strings and in shapes:
    B batch   T query tokens   S key tokens   D width   H query heads   K key/value heads   G = H / K
    E head size   F MLP width   V vocabulary   L layers   C channels of a pixel or feature
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from llava_jax.config.architectures import REMAT, LlamaConfig, ModelConfig
from llava_jax.errors import ConfigError
from llava_jax.runtime.sharding import param


def dtype_of(name: str) -> jnp.dtype:
    """`float32` | `bfloat16` as a dtype. Raises ConfigError for any other name."""
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return jnp.dtype(name)


def dot(spec: str, x: jax.Array, w: jax.Array, dtype: str, out: str | None = None) -> jax.Array:
    """einsum(spec, x, w) with operands in `dtype`, sums in float32, the result in `out` (default: `dtype`).

    Every matrix product of the model comes through here. The two products of the backward pass take operands in `dtype`
    too; plain autodiff would hand them a float32 cotangent, which misses the matrix units for bfloat16. `float32`
    means float32 on every device (no TF32, no bfloat16 passes). `spec` names every axis, repeats none within an
    operand, and each axis of an operand appears in the other or in the result.
    """
    x, w = x.astype(dtype_of(dtype)), w.astype(dtype_of(dtype))
    return _dot(spec, x, w).astype(dtype_of(out or dtype))


def _product(spec: str, x: jax.Array, w: jax.Array, out=jnp.float32) -> jax.Array:
    # bfloat16 misses the matrix units where the result's dtype is left open, and any where the precision is given.
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(spec, x, w, precision=exact, preferred_element_type=out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(spec, x, w):
    return _product(spec, x, w)


def _dot_forward(spec, x, w):
    return _dot(spec, x, w), (x, w)


def _dot_backward(spec, operands, g):
    x, w = operands
    inputs, y_axes = spec.split("->")
    x_axes, w_axes = inputs.split(",")
    g = g.astype(x.dtype)
    dx = _product(f"{y_axes},{w_axes}->{x_axes}", g, w)
    of_weight = f"{y_axes},{x_axes}->{w_axes}"
    dw = jax.lax.platform_dependent(
        g, x,
        # The gradient of a weight is the largest array of a layer. A matrix unit adds up in float32 whatever it hands
        # out, and a TPU would write all of it in float32 first.
        tpu=lambda g, x: _product(of_weight, g, x, out=w.dtype),
        cpu=lambda g, x: _turned_product(of_weight, g, x).astype(w.dtype),
        default=lambda g, x: _product(of_weight, g, x).astype(w.dtype),
    )  # fmt: skip
    return dx.astype(x.dtype), dw


_dot.defvjp(_dot_forward, _dot_backward)


def _turned_product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`_product` for a CPU of operands that are both summed over leading axes, as in the gradient of a weight.

    The smaller one is turned around first, so that its summed axes lie last. XLA would turn one that it picks without
    looking (half an MLP, with the activation function, column by column), has no product in bfloat16 otherwise (it
    converts both operands), and a slower one in float32.
    """
    inputs, out_axes = spec.split("->")
    (a, a_axes), (b, b_axes) = sorted(zip((a, b), inputs.split(","), strict=True), key=lambda operand: operand[0].size)
    summed = "".join(i for i in a_axes if i not in out_axes)
    both = "".join(i for i in out_axes if i in a_axes and i in b_axes)
    of_a, of_b = ("".join(i for i in axes if i not in both + summed) for axes in (a_axes, b_axes))
    turned = jnp.einsum(f"{a_axes}->{both}{of_a}{summed}", a)
    y = _product(f"{both}{of_a}{summed},{b_axes}->{both}{of_a}{of_b}", turned, b)
    # Without the barrier XLA swaps the operands to have the result turned, and is where it was.
    return jnp.einsum(f"{both}{of_a}{of_b}->{out_axes}", jax.lax.optimization_barrier(y))


class Linear(nn.Module):
    """dot(spec, x, kernel, dtype, out), plus a bias over the last `bias` axes of the kernel (0: none).

    Kernels start from a normal of variance 1 / fan_in, which a tower of any width trains from (0.02, LLaMA's constant,
    is that for a width of 2,500), times `init_scale`; biases from 0. An initializer given instead is used for both.
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
    """A table, returned whole. Starts from a normal of `variance`, by default 1 / width, as CLIP's do."""

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


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """The exact, erf form; the projector's activation."""
    return jax.nn.gelu(x, approximate=False)


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each pair of channels: float32[E / 2], falling from 1 (arXiv 2104.09864).

    `linear` scaling divides all of them by `factor`. `llama3` leaves waves shorter than original / high_freq_factor,
    divides those longer than original / low_freq_factor, and goes smoothly from one to the other between (Llama 3.1).
    Raises ConfigError for any other kind.
    """
    e, scaling = config.head_size, config.rope_scaling
    frequencies = 1.0 / config.rope_base ** (np.arange(0, e, 2, dtype=np.float32) / e)
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling.kind == "linear":
        return (frequencies / scaling.factor).astype(np.float32)
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        waves_in_context = scaling.original_max_positions * frequencies / (2 * np.pi)
        keep = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
        return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)
    raise ConfigError(f"rope_scaling kind {scaling.kind!r} is unknown; use linear, llama3 or None")


def rope_rotation(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """positions int32[B, T] -> sine and cosine of each pair's angle, float32[B, T, 1, E / 2] each."""
    angles = positions[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.sin(angles), jnp.cos(angles)


def rope(x: jax.Array, rotation: tuple[jax.Array, jax.Array], by_product: bool = False) -> jax.Array:
    """Rotates channel i together with channel i + E/2 (Hugging Face's order of LLaMA's channels), in float32.

    x [B, T, heads, E], rotation from rope_rotation -> as x. by_product: the same numbers, for a TPU. Half a head, 64
    channels, costs it as much as 128; a product brings the other half to its place instead, and a step of 2 s became
    0.1 s shorter (7B, compiled for v5e:4x4).
    """
    sin, cos = rotation
    if by_product:
        half = x.shape[-1] // 2
        i, j = np.indices((2 * half, 2 * half))
        swap = (i + half == j).astype(np.float32) - (i == j + half)  # one number in each column: nothing is rounded
        other = dot("bthe,ef->bthf", x, jnp.asarray(swap), x.dtype.name).astype(jnp.float32)
        twice = lambda a: jnp.concatenate([a, a], axis=-1)  # noqa: E731
        return (x.astype(jnp.float32) * twice(cos) + other * twice(sin)).astype(x.dtype)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attention_mask(
    q_positions: jax.Array, k_positions: jax.Array, q_segments: jax.Array, k_segments: jax.Array
) -> jax.Array:
    """bool[B, T, S]: a query sees the keys of its own segment at its own or an earlier position.

    All arguments int32[B, T] or int32[B, S]. Padding is segment 0, so real tokens never see it, wherever it lies.

    positions 0 1 0, segments 1 1 2 (two packed samples):   1 0 0
                                                            1 1 0
                                                            0 0 1
    """
    same = q_segments[:, :, None] == k_segments[:, None, :]
    return same & (k_positions[:, None, :] <= q_positions[:, :, None])


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Grouped-query attention, softmax in float32: query head h reads key/value head h // (H / K).

    q [B, T, H, E]; k, v [B, S, K, E]; mask bool[B, T, S] or None for all to all -> [B, T, H, E] in q's dtype.
    The plain one, which makes all scores; see kernels for others.
    """
    b, t, h, e = q.shape
    dtype = q.dtype.name
    grouped = q.reshape(b, t, k.shape[2], -1, e)
    scores = dot("btkge,bske->bkgts", grouped, k, dtype, out="float32") / np.sqrt(e)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return checkpoint_name(dot("bkgts,bske->btkge", weights, v, dtype).reshape(b, t, h, e), "context")


def name_qkv(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives them the names that remat policies know, see architectures.REMAT."""
    return checkpoint_name(q, "q"), checkpoint_name(k, "k"), checkpoint_name(v, "v")


def stacked(block: type[nn.Module], config: ModelConfig, length: int, in_axes=()) -> type[nn.Module]:
    """`length` blocks in a row, their parameters stacked on a leading `layers` axis: block(carry, ...) -> carry, None.

    `config.remat` says what the backward pass recomputes, `config.unroll` makes straight-line code from the same
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
