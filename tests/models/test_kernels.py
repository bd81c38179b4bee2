"""The attention kernels equal the plain attention: values and gradients. Splash attention runs interpreted, on CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_weights import SMALL

from llava_jax.architectures import IMAGE_TOKEN_ID, REMAT
from llava_jax.models import kernels, layers, llama
from llava_jax.models.llava import Llava, init_params
from llava_jax.sharding import make_mesh

# (rows, tokens, query heads, key/value heads, head size, lengths of the segments of each row)
CASES = {
    "one segment": (1, 128, 2, 2, 128, [[128]]),
    "packed, padded, no multiple of 128": (2, 200, 2, 2, 64, [[70, 1, 60], [200]]),
    "grouped heads": (2, 256, 6, 2, 64, [[256], [3, 130, 120]]),
    "several blocks": (1, 640, 2, 1, 128, [[300, 5, 290]]),
    "a row of padding": (2, 130, 2, 2, 64, [[], [129]]),
}


def example(b, t, h, k, e, lengths):
    rng = np.random.default_rng(0)
    q, keys, values, weights = (
        jnp.array(rng.normal(size=(b, t, n, e)), jnp.float32) for n in (h, k, k, h)
    )  # fmt: skip
    segments, positions = np.zeros((b, t), np.int32), np.zeros((b, t), np.int32)
    for row, sizes in enumerate(lengths):
        at = 0
        for number, size in enumerate(sizes, start=1):
            segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
            at += size
    return q, keys, values, weights, segments, positions


def both(case, kernel):
    """(values and gradients of the kernel, those of plain attention), where there is no padding."""
    q, k, v, weights, segments, positions = example(*CASES[case])
    real = jnp.array(segments > 0)[..., None, None]
    mask = layers.attention_mask(positions, positions, segments, segments)

    def run(attend):
        def loss(q, k, v):
            y = jnp.where(real, attend(q, k, v), 0)
            return jnp.sum(y * weights), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return y, *gradients

    return run(lambda *x: kernel(*x, segments, mask)), run(lambda *x: layers.attention(*x, mask))


def splash(q, k, v, segments, mask):
    return kernels.splash_attention(q, k, v, jnp.array(segments), interpret=True)


def cudnn(q, k, v, segments, mask):
    return kernels.cudnn_attention(q, k, v, mask)  # float32, so that XLA computes what cuDNN would be asked for


@pytest.mark.parametrize("kernel", [splash, cudnn])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_plain_attention(case, kernel):
    for ours, theirs, name in zip(*both(case, kernel), ("values", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)


def test_on_a_mesh_each_device_attends_for_its_rows_and_heads():
    q, k, v, _, segments, _ = example(4, 128, 4, 2, 64, [[60, 68], [128], [1, 2, 3], [100]])
    alone = splash(q, k, v, segments, None)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        attend = jax.jit(lambda *x: splash(*x, None))
        np.testing.assert_allclose(attend(q, k, v, segments), alone, atol=1e-6)
        text = attend.lower(q, k, v, segments).compile().as_text()
    # What is not laid out yet is split by slicing; nothing has to come from another device but to show the result.
    assert "all-to-all" not in text and "collective-permute" not in text


def test_cudnn_is_asked_for_what_it_takes_only(monkeypatch):
    asked = []

    def attention(q, k, v, mask, implementation):
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    for dtype, size in (("bfloat16", 128), ("bfloat16", 64), ("float32", 64), ("bfloat16", 256), ("bfloat16", 20)):
        x = jnp.zeros((1, 8, 2, size), dtype)
        kernels.cudnn_attention(x, x, x, jnp.ones((1, 8, 8), bool))
    assert asked == ["cudnn", "cudnn", "xla", "xla", "xla"]


def loss_and_gradients(config):
    """Of a small LLaVA on two packed rows with an image each."""
    rng = np.random.default_rng(1)
    model, t = Llava(config), 24
    params = init_params(config, jax.random.key(0))
    tokens = rng.integers(1, 50, (2, t)).astype(np.int32)
    tokens[:, 1 : 1 + config.features] = IMAGE_TOKEN_ID
    segments = np.repeat([[1] * 14 + [2] * 7 + [0] * 3], 2, axis=0).astype(np.int32)
    positions = np.repeat([[*range(14), *range(7), 0, 0, 0]], 2, axis=0).astype(np.int32)
    size = config.image_size
    images = rng.integers(0, 255, (2, 1, size, size, 3)).astype(np.uint8)
    real = (segments > 0)[..., None]

    def loss(params):
        logits = model.apply({"params": params}, tokens, images, positions, segments)
        return jnp.mean(jnp.where(real, logits, 0) ** 2)

    return jax.value_and_grad(loss), params


def products(config) -> int:
    """Matrix products in the loss and its gradients, those of a loop's body once."""
    compute, params = loss_and_gradients(config)
    return str(jax.make_jaxpr(compute)(params)).count("dot_general")


@pytest.mark.parametrize("policy", [name for name in REMAT if name not in ("none", "offload_qkv")])
def test_a_remat_policy_changes_no_number(policy):
    compute, params = loss_and_gradients(SMALL)
    again, _ = loss_and_gradients(dataclasses.replace(SMALL, remat=policy))
    for ours, theirs in zip(jax.tree.leaves(again(params)), jax.tree.leaves(compute(params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_a_policy_keeps_is_not_computed_again():
    counts = {name: products(dataclasses.replace(SMALL, remat=name)) for name in REMAT}
    least = counts["none"]
    assert counts["full"] > counts["save_qkv"] > counts["save_qkv_context"] > least
    assert counts["full"] > counts["save_context"] > least
    # Of the decoder none; the tower, whose blocks name q, k, v alone, makes its others again.
    tower_alone = counts["save_products"] - least
    assert 0 < tower_alone < counts["save_qkv_context"] - least


def test_splash_takes_no_mask_of_all_with_all():
    """It would be T numbers for each token, for every row of the batch."""
    t = 384
    config = dataclasses.replace(SMALL, attention="splash")
    arrays = [jax.ShapeDtypeStruct((2, t), jnp.int32)] * 2
    model, embedded = llama.Llama(config), jax.ShapeDtypeStruct((2, t, config.llm.width), jnp.float32)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))["llm"]
    hidden = lambda params, *x: model.apply({"params": params}, *x, method=llama.Llama.hidden)[0]  # noqa: E731
    text = str(jax.make_jaxpr(hidden)(params, embedded, *arrays))
    assert "splash" in text and f"2,{t},{t}" not in text
