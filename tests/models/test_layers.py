import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import gelu as torch_gelu
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from llava_jax.config.architectures import RopeScaling
from llava_jax.errors import ConfigError
from llava_jax.models import attention, layers, matmul, rope
from tests.fixtures.hf_models import llama_config
from tests.fixtures.tiny_models import UNEVEN
from tests.models.products import products

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


SPEC, X, W = "btd,dhe->bthe", normal(2, 3, 8), normal(8, 2, 4)


def test_float32_dot_matches_einsum():
    np.testing.assert_allclose(matmul.dot(SPEC, X, W, "float32"), np.einsum(SPEC, X, W), rtol=1e-5, atol=1e-5)


def test_bfloat16_dot_accumulates_in_float32_and_casts_once():
    y = matmul.dot(SPEC, X, W, "bfloat16")
    assert y.dtype == jnp.bfloat16
    assert matmul.dot(SPEC, X, W, "bfloat16", out="float32").dtype == jnp.float32
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32) for a in (X, W)]
    np.testing.assert_array_equal(y, jnp.asarray(np.einsum(SPEC, *rounded), jnp.bfloat16))


def test_bfloat16_dot_has_bfloat16_operands_in_both_passes():
    def loss(x, w):
        return matmul.dot(SPEC, x, w, "bfloat16", out="float32").sum()

    assert products(jax.grad(loss, (0, 1)), X, W) == [("bfloat16", "bfloat16", "float32")] * 3


@pytest.mark.parametrize("spec, x, w", [(SPEC, X, W), ("btkge,bske->bkgts", normal(2, 3, 2, 2, 4), normal(2, 5, 2, 4))])
def test_bfloat16_dot_gradients_are_close_to_float32(spec, x, w):
    def gradients(dtype):
        return jax.grad(lambda x, w: (matmul.dot(spec, x, w, dtype, out="float32") ** 2).sum(), (0, 1))(x, w)

    for ours, exact in zip(gradients("bfloat16"), gradients("float32"), strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - exact).max() < 0.02 * np.abs(exact).max()


SPECS = {
    "up": ("btd,df->btf", (4, 64, 96), (96, 128)),
    "down": ("btf,fd->btd", (4, 64, 128), (128, 96)),
    "one row": ("btf,fd->btd", (1, 256, 128), (128, 96)),
    "q": ("btd,dhe->bthe", (4, 64, 96), (96, 4, 32)),
    "o": ("bthi,hid->btd", (4, 64, 4, 32), (4, 32, 96)),
    "tied head": ("btd,vd->btv", (4, 64, 96), (512, 96)),
    "odd head": ("btd,vd->btv", (4, 64, 96), (513, 96)),
    "scores": ("btkge,bske->bkgts", (4, 64, 2, 3, 32), (4, 64, 2, 32)),
    "context": ("bkgts,bske->btkge", (4, 2, 3, 64, 64), (4, 64, 2, 32)),
}


@pytest.mark.parametrize("name", SPECS)
def test_dot_gradients_match_einsum(name):
    spec, x_shape, w_shape = SPECS[name]
    x, w = normal(*x_shape), normal(*w_shape)

    def gradients(product):
        return jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), (0, 1))(x, w)

    ours = gradients(lambda x, w: matmul.dot(spec, x, w, "float32"))
    expected = gradients(lambda x, w: jnp.einsum(spec, x, w, precision="highest"))
    for gradient, expected_gradient in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_cpu_dots_need_no_transpose_or_conversion(name, dtype):
    """XLA for CPU multiplies bfloat16 directly only if the summed axes are the last of the left and the first or last
    of the right operand. Any other matmul converts both to float32 first, or finds no implementation at run time."""
    spec, x_shape, w_shape = SPECS[name]
    x, w = jnp.zeros(x_shape, dtype), jnp.zeros(w_shape, dtype)
    gradients = jax.jit(jax.grad(lambda x, w: jnp.sin(matmul.dot(spec, x, w, dtype)).sum(), (0, 1)))
    compiled = gradients.lower(x, w).compile()
    dots = re.findall(r" dot\((.*?)\), .*?lhs_contracting_dims=\{(\d)\}", compiled.as_text())
    types = dict(re.findall(r"%(\S+) = (\w+\[[\d,]*\])", compiled.as_text()))
    assert len(dots) == 3
    for names, summed in dots:
        left, right = (types[name.strip().lstrip("%")] for name in names.split(","))
        assert int(summed) == left.count(",")
        if dtype == "bfloat16":
            assert left.startswith("bf16") and right.startswith("bf16")
    compiled(x, w)


def test_unknown_dtype_raises():
    with pytest.raises(ConfigError, match="float16"):
        matmul.dot(SPEC, X, W, "float16")


def test_activations_match_torch():
    x = normal(100) * 3
    np.testing.assert_allclose(layers.ACTIVATIONS["gelu"](x), torch_gelu(torch.tensor(x)), atol=1e-6)
    np.testing.assert_allclose(layers.ACTIVATIONS["quick_gelu"](x), ACT2FN["quick_gelu"](torch.tensor(x)), atol=1e-6)


def test_norms_match_torch_and_compute_in_float32():
    x, scale, bias = normal(2, 3, 16) * 5 + 1, normal(16), normal(16)
    theirs = layer_norm(torch.tensor(x), [16], torch.tensor(scale), torch.tensor(bias), eps=1e-3)
    ours = layers.LayerNorm(1e-3, "embed").apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    rms = LlamaRMSNorm(16, eps=1e-3)
    rms.weight.data = torch.tensor(scale)
    ours = layers.RMSNorm(1e-3, "embed").apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(ours, rms(torch.tensor(x)).detach(), atol=1e-5)

    exact = layers.RMSNorm(1e-3, "embed").apply({"params": {"scale": scale}}, jnp.asarray(x, jnp.bfloat16))
    assert exact.dtype == jnp.bfloat16
    np.testing.assert_allclose(exact.astype(np.float32), ours, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=64)],
    ids=["plain", "linear", "llama3"],  # dynamic and yarn: tests/checkpoint/huggingface/test_every_field.py
)
def test_rope_matches_hugging_face(scaling):
    config = dataclasses.replace(UNEVEN.llm, head_size=16, width=64, rope_scaling=scaling)
    positions = np.array([[0, 1, 2, 50, 51], [7, 0, 0, 127, 3]], np.int32)
    q, k = normal(2, 5, 4, 16), normal(2, 5, 2, 16)
    rotation = rope.rope_rotation(config, positions)

    cos, sin = LlamaRotaryEmbedding(llama_config(config))(torch.tensor(q), torch.tensor(positions).long())
    theirs = apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), cos, sin, unsqueeze_dim=2)
    for ours, expected in zip((rope.rope(q, rotation), rope.rope(k, rotation)), theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rope_via_matmul_gives_the_same_values(dtype):
    """And the same gradients, except for the rounding of a bfloat16 cotangent."""
    positions = jnp.array([[0, 1, 2, 50, 127]])
    rotation = rope.rope_rotation(dataclasses.replace(UNEVEN.llm, head_size=16, width=64), positions)
    x, w = jnp.asarray(normal(1, 5, 4, 16), dtype), jnp.asarray(normal(1, 5, 4, 16), dtype)
    actual, expected = (rope.rope(x, rotation, via_matmul) for via_matmul in (True, False))
    assert actual.dtype == x.dtype
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), atol=1e-6, rtol=2**-7)
    assert np.mean(np.asarray(actual != expected)) < 0.05, "only last bits may differ, here and there"

    def gradient(via_matmul):
        return jax.grad(lambda x: jnp.sum((rope.rope(x, rotation, via_matmul) * w).astype(jnp.float32)))(x)

    tolerance = 1e-6 if dtype == "float32" else 0.05
    np.testing.assert_allclose(gradient(True).astype(jnp.float32), gradient(False).astype(jnp.float32), atol=tolerance)


def test_weight_gradients_are_bfloat16_on_tpu_float32_on_cpu():
    """Read from the lowered program of each platform; neither has to be present."""

    def results(platform):
        f = jax.jit(jax.grad(lambda w, x: matmul.dot(SPEC, x, w, "bfloat16", out="float32").sum()))
        text = f.trace(jnp.asarray(W, jnp.bfloat16), jnp.asarray(X)).lower(lowering_platforms=(platform,)).as_text()
        return [line.rsplit("x", 1)[1].rstrip("> ") for line in text.splitlines() if "dot_general" in line]

    assert results("tpu") == ["bf16"] and results("cpu") == ["f32"]


def test_unknown_rope_scaling_raises():
    with pytest.raises(ConfigError, match="longrope"):
        rope.rope_frequencies(dataclasses.replace(UNEVEN.llm, rope_scaling=RopeScaling("longrope", 2.0)))


def test_attention_mask_is_causal_within_segments():
    positions = jnp.array([[0, 1, 0, 1, 0]])
    segments = jnp.array([[1, 1, 2, 2, 0]])  # two samples of two tokens, then padding
    mask = attention.attention_mask(positions, positions, segments, segments)
    np.testing.assert_array_equal(
        mask[0].astype(int),
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 0, 0, 1],
        ],
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_reference_attention_matches_torch(kv_heads):
    q, k, v = normal(2, 3, 4, 8), normal(2, 6, kv_heads, 8), normal(2, 6, kv_heads, 8)
    mask = RNG.random((2, 3, 6)) < 0.5
    mask[..., 0] = True
    heads_first = [torch.tensor(x).transpose(1, 2) for x in (q, k, v)]
    for ours_mask, theirs_mask in ((mask, torch.tensor(mask)[:, None]), (None, None)):
        theirs = scaled_dot_product_attention(*heads_first, attn_mask=theirs_mask, enable_gqa=True).transpose(1, 2)
        np.testing.assert_allclose(attention.reference_attention(q, k, v, ours_mask), theirs, atol=1e-5)


def test_fully_masked_query_stays_finite():
    q = k = v = normal(1, 2, 1, 4)
    assert np.isfinite(attention.reference_attention(q, k, v, np.zeros((1, 2, 2), bool))).all()
