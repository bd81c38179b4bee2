import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from llava_jax.config.architectures import RopeScaling
from llava_jax.errors import ConfigError
from llava_jax.models.cache import KVCache
from llava_jax.models.llama import Llama
from tests.fixtures.hf_models import hf_llama, llama_params, weights
from tests.fixtures.tiny_models import uneven
from tests.models.products import products

RNG = np.random.default_rng(0)
B, T = 2, 9
TOKENS = RNG.integers(0, 64, (B, T), dtype=np.int32)
POSITIONS = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
ONES = np.ones((B, T), np.int32)


def hidden(model, tokens, positions, segment_ids, cache=None):
    return model.hidden(model.embed(tokens), positions, segment_ids, cache)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, positions, segment_ids, cache=None):
    """float32[B, T, V], or with a cache (that, the new cache)."""

    def run(model):
        x, new = hidden(model, tokens, positions, segment_ids, cache)
        return model.logits(x) if cache is None else (model.logits(x), new)

    return nn.apply(run, Llama(config))({"params": params})


def create(config):
    model = hf_llama(config.llm)
    return model, llama_params(weights(model), config)


@pytest.fixture(scope="module")
def params():
    return create(uneven())[1]


@pytest.mark.parametrize(
    "changes",
    [
        dict(kv_heads=4),
        dict(kv_heads=2),
        dict(kv_heads=1, tied_head=True),
        dict(qkv_bias=True),
        dict(head_size=16),  # heads * head_size is not the width
        dict(rope_base=500_000.0),
        dict(rope_scaling=RopeScaling("linear", 2.0)),
        dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32)),
    ],
    ids=str,
)
def test_logits_match_hugging_face(changes):
    config = uneven(llm=changes)
    model, params = create(config)
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS).long()).logits.numpy()
    ours = logits(config, params, TOKENS, POSITIONS, ONES)
    assert ours.dtype == jnp.float32
    assert np.abs(ours - theirs).max() <= 1e-4
    assert np.abs(theirs).max() > 1  # the bound is not trivial


def test_logits_depend_on_no_later_token(params):
    def run(embeddings):
        score = lambda model: model.logits(model.hidden(embeddings, POSITIONS, ONES)[0])  # noqa: E731
        return nn.apply(score, Llama(uneven()))({"params": params})

    embeddings = RNG.standard_normal((B, T, 40), dtype=np.float32)
    depends = jax.jit(jax.jacobian(lambda e: run(e)[0].sum(-1)))(embeddings)  # [T, B, T, D]
    depends = np.abs(depends).sum(-1)
    np.testing.assert_array_equal(depends[:, 0] > 0, np.tril(np.ones((T, T), bool)))
    assert not depends[:, 1].any()  # nor on another row


def test_padding_and_packing_do_not_change_logits(params):
    expected = logits(uneven(), params, TOKENS, POSITIONS, ONES)
    pad = lambda x, value: np.pad(x, ((0, 0), (0, 4)), constant_values=value)  # noqa: E731
    padded = logits(uneven(), params, pad(TOKENS, 3), pad(POSITIONS, 0), pad(ONES, 0))
    np.testing.assert_allclose(padded[:, :T], expected, atol=1e-5)

    segments = np.repeat([[1, 2]], T, axis=1).astype(np.int32)
    packed = logits(uneven(), params, TOKENS.reshape(1, -1), POSITIONS.reshape(1, -1), segments)
    np.testing.assert_allclose(packed.reshape(B, T, -1), expected, atol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_cached_decoding_matches_a_full_pass(params, unroll):
    config = uneven(unroll=unroll)
    expected = logits(config, params, TOKENS, POSITIONS, ONES)
    cache = KVCache.empty(config.llm, B, T + 3, "float32")
    for start, stop in [(0, 4), (4, 5), (5, 6), (6, 9)]:  # a prompt, two single tokens, three at once
        part = (x[:, start:stop] for x in (TOKENS, POSITIONS, ONES))
        ours, cache = logits(config, params, *part, cache)
        np.testing.assert_allclose(ours, expected[:, start:stop], atol=1e-5)
    assert int(cache.index) == T
    np.testing.assert_array_equal(cache.segment_ids, [[1] * T + [0] * 3] * B)


def test_dynamic_scaling_in_a_cache_equals_transformers():
    """Beyond the original context each token has the rotation of its length, and keys keep that of their time."""
    config = uneven(llm=dict(rope_scaling=RopeScaling("dynamic", 3.0, original_max_positions=4), max_positions=12))
    model, params = create(config)
    parts, past = [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7)], None
    cache = KVCache.empty(config.llm, 1, T, "float32")
    for start, stop in parts:
        with torch.no_grad():
            out = model(torch.tensor(TOKENS[:1, start:stop]).long(), cache=past, use_cache=True)
        past = out.cache
        tokens, positions, ones = (x[:1, start:stop] for x in (TOKENS, POSITIONS, ONES))
        ours, cache = logits(config, params, tokens, positions, ones, cache)
        np.testing.assert_allclose(ours, out.logits.numpy(), atol=1e-4)
    full = logits(config, params, TOKENS[:1, :7], POSITIONS[:1, :7], ONES[:1, :7])
    assert np.abs(full[:, -1] - ours[:, 0]).max() > 1e-3, "a full pass rotates all keys by the final length"


def test_rows_of_unequal_length_decode_together(params):
    """Prompts of 2 and 5 tokens, right padded to 5; each row then continues at its own position, in the same slot."""
    lengths, steps = np.array([2, 5]), 4
    expected = logits(uneven(), params, TOKENS, POSITIONS, ONES)
    slots = np.arange(5)
    real = slots < lengths[:, None]
    prompt = np.where(real, TOKENS[:, :5], 63), np.where(real, slots, 0), real.astype(int)
    cache = KVCache.empty(uneven().llm, B, 5 + steps, "float32")
    ours, cache = logits(uneven(), params, *(x.astype(np.int32) for x in prompt), cache)
    for b in range(B):
        np.testing.assert_allclose(ours[b, : lengths[b]], expected[b, : lengths[b]], atol=1e-5)
    for i in range(steps):
        positions = (lengths + i).astype(np.int32)[:, None]
        ours, cache = logits(uneven(), params, np.take_along_axis(TOKENS, positions, 1), positions, ONES[:, :1], cache)
        np.testing.assert_allclose(ours[:, 0], np.take_along_axis(expected, positions[..., None], 1)[:, 0], atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params):
    return jax.value_and_grad(lambda p: (logits(config, p, TOKENS, POSITIONS, ONES) ** 2).mean())(params)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])  # the others: test_attention
def test_remat_and_unroll_keep_loss_gradients_and_parameter_tree(params, remat, unroll):
    config = uneven(remat=remat, unroll=unroll)
    expected, ours = loss_and_gradient(uneven(), params), loss_and_gradient(config, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, expected)
    init = lambda c: jax.eval_shape(nn.init(lambda m: logits_of(m), Llama(c)), jax.random.key(0))  # noqa: E731
    assert init(config) == init(uneven())


def logits_of(model):
    return model.logits(hidden(model, TOKENS, POSITIONS, ONES)[0])


def test_unroll_compiles_without_a_loop(params):
    for unroll in (False, True):
        config = uneven(unroll=unroll, remat="full")
        text = loss_and_gradient.lower(config, params).as_text()
        assert ("stablehlo.while" in text) != unroll


def test_unknown_remat_policy_raises(params):
    with pytest.raises(ConfigError, match="most"):
        logits(uneven(remat="most"), params, TOKENS, POSITIONS, ONES)


def test_bfloat16_is_close_and_all_matmuls_use_bfloat16(params):
    config = dataclasses.replace(uneven(), dtype="bfloat16", remat="full")
    expected, ours = loss_and_gradient(uneven(), params), loss_and_gradient(config, params)
    assert abs(ours[0] - expected[0]) < 0.03 * abs(expected[0])
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.abs(a - b).max() < 0.1 * np.abs(b).max()

    dtypes = products(lambda p: loss_and_gradient(config, p), params)
    assert set(dtypes) == {("bfloat16", "bfloat16", "float32")}
