"""The matmul of the models, forward and backward, in the dtype and layout that are fast on each platform."""

import functools

import jax
import jax.numpy as jnp

from llava_jax.errors import ConfigError


def dtype_of(name: str) -> jnp.dtype:
    """`float32` | `bfloat16` as a dtype. Raises ConfigError for any other name."""
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return jnp.dtype(name)


def dot(spec: str, x: jax.Array, w: jax.Array, dtype: str, out: str | None = None) -> jax.Array:
    """einsum(spec, x, w) with operands in `dtype`, sums in float32, the result in `out` (default: `dtype`).

    Every matmul of the model comes through here. The two matmuls of the backward pass have operands in `dtype` too;
    plain autodiff would hand them a float32 cotangent, which does not use the matrix units for bfloat16. `float32`
    means float32 on every device (no TF32, no bfloat16 passes). `spec` names every axis, repeats none within an
    operand, and each axis of an operand appears in the other operand or in the result.
    """
    x, w = x.astype(dtype_of(dtype)), w.astype(dtype_of(dtype))
    return _dot(spec, x, w).astype(dtype_of(out or dtype))


def _product(spec: str, x: jax.Array, w: jax.Array, out=jnp.float32) -> jax.Array:
    # bfloat16 does not use the matrix units if the result's dtype is left open, nor if a precision is given.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(spec, x, w, precision=precision, preferred_element_type=out)


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
    weight_spec = f"{y_axes},{x_axes}->{w_axes}"
    dw = jax.lax.platform_dependent(
        g, x,
        # The gradient of a weight is the largest array of a layer. A matrix unit sums in float32 whatever dtype it
        # returns; otherwise a TPU would write the whole gradient in float32 first.
        tpu=lambda g, x: _product(weight_spec, g, x, out=w.dtype),
        cpu=lambda g, x: _transposed_product(weight_spec, g, x).astype(w.dtype),
        default=lambda g, x: _product(weight_spec, g, x).astype(w.dtype),
    )  # fmt: skip
    return dx.astype(x.dtype), dw


_dot.defvjp(_dot_forward, _dot_backward)


def _transposed_product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`_product` for a CPU, of operands that are both summed over leading axes, as in the gradient of a weight.

    The smaller operand is transposed first, so that its summed axes come last. Otherwise XLA transposes one that it
    picks regardless of size (half an MLP, with the activation function, column by column), has no matmul in bfloat16
    (it converts both operands), and a slower one in float32.
    """
    inputs, out_axes = spec.split("->")
    (a, a_axes), (b, b_axes) = sorted(zip((a, b), inputs.split(","), strict=True), key=lambda operand: operand[0].size)
    summed = "".join(i for i in a_axes if i not in out_axes)
    shared = "".join(i for i in out_axes if i in a_axes and i in b_axes)
    of_a, of_b = ("".join(i for i in axes if i not in shared + summed) for axes in (a_axes, b_axes))
    transposed = jnp.einsum(f"{a_axes}->{shared}{of_a}{summed}", a)
    y = _product(f"{shared}{of_a}{summed},{b_axes}->{shared}{of_a}{of_b}", transposed, b)
    # Without the barrier XLA swaps the operands to get the result transposed, which undoes the above.
    return jnp.einsum(f"{shared}{of_a}{of_b}->{out_axes}", jax.lax.optimization_barrier(y))
