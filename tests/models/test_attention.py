"""The attention kernels compared with the reference, and the remat policies with no remat."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from llava_jax.config.architectures import IMAGE_TOKEN_ID, REMAT, LlamaConfig, ModelConfig, VisionConfig
from llava_jax.data.packing import pack
from llava_jax.data.rows import RowFormat
from llava_jax.errors import ConfigError
from llava_jax.models import attention
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_params
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.token_row import EncodedExample
from tests.models.products import equations, inner_jaxprs, products

# Tokens of the samples of each row; negative numbers are padding between them. The rest of a row is padding too.
LENGTHS = ((90, 60), (200,), (), (1, 30, 64, 64), (-10, 25, -50, 90))


def rows(length: int, samples=LENGTHS) -> tuple[np.ndarray, np.ndarray]:
    """positions, segment_ids int32[rows, length], as `RowFormat.row` makes them."""
    positions, segments = np.zeros((2, len(samples), length), np.int32)
    for b, row in enumerate(samples):
        start = number = 0
        for n in row:
            span = slice(start, min(start + abs(n), length))
            if n > 0:
                number += 1
                positions[b, span], segments[b, span] = np.arange(span.stop - start), number
            start = span.stop
    return positions, segments


def tensors(b: int, t: int, h: int, k: int, e: int):
    """q, k, v and the weights of the loss, all normal."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((b, t, heads, e), dtype=np.float32) for heads in (h, k, k, h)]


def result_and_gradients(attend, q, k, v, weights, segments):
    """(result, dq, dk, dv) of a loss that reads only real tokens, as that of the train step."""
    real = (segments > 0)[..., None, None]

    def loss(q, k, v):
        y = attend(q, k, v)
        return jnp.sum(jnp.where(real, y * weights, 0)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return y, *gradients


def reference(positions, segments):
    mask = attention.attention_mask(positions, positions, segments, segments)
    return lambda q, k, v: attention.reference_attention(q, k, v, mask)


def assert_equal_results(actual, expected, segments):
    real = (segments > 0)[..., None, None]
    assert all(np.isfinite(x).all() for x in actual)
    for name, ours, theirs in zip(("result", "dq", "dk", "dv"), actual, expected, strict=True):
        assert np.abs(np.where(real, ours - theirs, 0)).max() <= 1e-5, name
    for gradient in actual[1:]:
        assert not np.where(real, 0, gradient).any(), "real tokens attend to padding"


CASES = [  # H, K, E, T, block
    pytest.param(4, 2, 64, 200, 128, id="grouped, 2 blocks"),
    pytest.param(2, 2, 128, 200, 512, id="all heads, 1 block"),
    pytest.param(3, 1, 64, 257, 128, id="one key head, 3 blocks, the last with one token"),
    pytest.param(2, 1, 128, 256, 128, id="whole blocks"),
    pytest.param(2, 1, 16, 37, 512, id="less than a block"),
]


@pytest.mark.parametrize("h, k, e, t, block", CASES)
def test_splash_matches_reference_attention(h, k, e, t, block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    positions, segments = rows(t)
    inputs = tensors(len(LENGTHS), t, h, k, e)
    splash = functools.partial(attention.splash_attention, segment_ids=segments, interpret=True)
    actual = result_and_gradients(splash, *inputs, segments)
    assert_equal_results(actual, result_and_gradients(reference(positions, segments), *inputs, segments), segments)


@pytest.mark.parametrize("t", [200, 37])
def test_cudnn_call_matches_reference_attention(t):
    """The same call, computed by JAX's own implementation."""
    positions, segments = rows(t)
    inputs = tensors(len(LENGTHS), t, 4, 2, 16)
    cudnn = functools.partial(attention.cudnn_attention, segment_ids=segments, implementation="xla")
    actual = result_and_gradients(cudnn, *inputs, segments)
    assert_equal_results(actual, result_and_gradients(reference(positions, segments), *inputs, segments), segments)


def test_attention_on_a_mesh_is_sharded_over_rows_and_heads(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 128)
    positions, segments = rows(140, ((90, 50), (140,), (), (3, 100)))
    inputs = tensors(4, 140, 4, 2, 16)
    expected = result_and_gradients(reference(positions, segments), *inputs, segments)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        sharded = global_batch({"positions": positions, "segment_ids": segments}, mesh)

        def attend(q, k, v):
            return attention.attention(q, k, v, sharded["segment_ids"], "splash_interpreted")

        actual = result_and_gradients(attend, *inputs, segments)
        spec = actual[0].sharding.spec
        per_device = [e.params["jaxpr"] for e in equations(attend, *inputs[:3]) if e.primitive.name == "shard_map"]
    assert_equal_results(actual, expected, segments)
    assert spec[0] == ("data", "fsdp") and spec[2] == "tensor"
    shapes = [v.aval.shape for v in per_device[0].invars][-4:]  # before them: information on the kernel's blocks
    assert shapes == [(1, 140, 2, 16), (1, 140, 1, 16), (1, 140, 1, 16), (1, 140)]


@pytest.mark.parametrize(
    "length, block", [(1, 128), (128, 128), (129, 256), (384, 384), (512, 512), (513, 384), (577, 384), (768, 384),
                      (1024, 512), (1100, 384), (2048, 512), (4096, 512)],
)  # fmt: skip
def test_splash_blocks_pad_less_than_128_tokens_each(length, block):
    assert attention.splash_block(length) == block
    count = -(-length // block)
    assert count == -(-length // 512) and count * block - length < 128 * count


def test_packed_rows_are_causal_by_token_index():
    """For all tokens but padding, causal by index within segments equals the mask from positions and segments."""

    class Tokenizer:
        pad_id = 0

    rng = np.random.default_rng(0)
    sizes = np.stack([rng.integers(2, 60, 40), np.zeros(40, int)], axis=1)
    row_format = RowFormat(Tokenizer(), "plain", 128, 1, 4, 24, "pad", "error")
    ids = [np.arange(n, dtype=np.int32) for n in sizes[:, 0]]
    samples = [EncodedExample(tokens, tokens > 0, np.zeros((0, 24, 24, 3), np.uint8)) for tokens in ids]
    packed = [row_format.row([samples[i] for i in indices]) for indices in pack(sizes, 128, 1, 0)]
    positions, segments = (np.stack([getattr(row, name) for row in packed]) for name in ("positions", "segment_ids"))
    assert max(segments.max(axis=1)) > 2 and (segments == 0).any()
    same_segment = segments[:, :, None] == segments[:, None, :]
    causal = np.arange(128)[None, :] <= np.arange(128)[:, None]
    mask = attention.attention_mask(positions, positions, segments, segments)
    real = segments > 0
    np.testing.assert_array_equal(np.asarray(mask)[real], (same_segment & causal)[real])


def test_unknown_kernel_raises():
    ones = np.ones((1, 2), np.int32)
    with pytest.raises(ConfigError, match="'flash3' is unknown; use xla, splash"):
        attention.attention_mask_for(ones, ones, "flash3")
    with pytest.raises(ConfigError, match="'flash3' is unknown"):
        attention.attention(*tensors(1, 2, 1, 1, 4)[:3], ones, "flash3")


# --- remat, in a model whose sizes are all different

VISION = VisionConfig(
    image_size=24, patch_size=12, width=36, layers=3, heads=4, mlp_width=44,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
LLM = LlamaConfig(
    vocab_size=61, width=40, layers=3, heads=4, kv_heads=2, head_size=8, mlp_width=56, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=128,
)  # fmt: skip
PLAIN = ModelConfig(VISION, LLM, "linear", "float32", "float32", "none", False, "xla")
B, T = 2, 21
POSITIONS, SEGMENTS = rows(T, ((9, 8), (21,)))
TOKENS = np.random.default_rng(1).integers(3, 61, (B, T), dtype=np.int32)
TOKENS[:, 1:5] = IMAGE_TOKEN_ID
IMAGES = np.random.default_rng(2).integers(0, 256, (B, 1, 24, 24, 3), dtype=np.uint8)


def random_params():
    rng = np.random.default_rng(3)
    draw = lambda x: (x.ndim < 3) + 0.2 * rng.standard_normal(x.shape, dtype=np.float32)  # noqa: E731
    return jax.tree.map(draw, nn.unbox(abstract_params(PLAIN)))


PARAMS = random_params()


def loss_of(config: ModelConfig):
    """A loss of the language model and the projector; the vision tower is frozen."""

    def loss(trained):
        y = Llava(config).apply({"params": PARAMS | trained}, TOKENS, IMAGES, POSITIONS, SEGMENTS)
        return jnp.sum(jnp.where((SEGMENTS > 0)[..., None], jax.nn.log_softmax(y) ** 2, 0)) / y.size

    return loss, {name: PARAMS[name] for name in ("projector", "llm")}


def with_changes(**changes) -> ModelConfig:
    return dataclasses.replace(PLAIN, **changes)


@functools.cache
def expected_of():
    loss, trained = loss_of(PLAIN)
    return jax.jit(jax.value_and_grad(loss))(trained)


KERNEL = dict(attention="splash_interpreted")


@pytest.mark.parametrize(
    "changes", [*(dict(remat=name) for name in REMAT), KERNEL, KERNEL | dict(remat="save_qkv_context")], ids=str
)
def test_remat_policies_and_kernels_keep_loss_and_gradients(changes):
    loss, trained = loss_of(with_changes(**changes))
    actual, expected = jax.jit(jax.value_and_grad(loss))(trained), expected_of()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


# Per block: recomputed matmuls (q, k, v, scores, context, o, gate, up; never down, whose result no derivative needs),
# and runs of the attention kernel, forward and backward.
WORK = {
    "full": (8, 4), "save_context": (7, 3), "offload_qkv": (5, 4), "save_qkv": (5, 4), "save_qkv_context": (4, 3),
    "minimal": (1, 3), "none": (0, 3),
}  # fmt: skip
TOWER = 2 * 8 + 1  # matmuls of the frozen tower: two used blocks, and the patches


def kernel_runs(jaxpr) -> int:
    """Kernel calls in a jaxpr; the body of a loop counts once. A call whose results are not read does not count: XLA
    drops it."""
    inputs = [*(v for e in jaxpr.eqns for v in e.invars), *jaxpr.outvars]
    read = {v for v in inputs if not hasattr(v, "val")}  # without constants
    calls = [e for e in jaxpr.eqns if e.primitive.name == "pallas_call" and read & set(e.outvars)]
    return len(calls) + sum(kernel_runs(inner) for e in jaxpr.eqns for inner in inner_jaxprs(e))


@pytest.mark.parametrize("remat", REMAT)
def test_remat_policies_recompute_the_expected_matmuls(remat):
    loss, trained = loss_of(with_changes(remat=remat))
    blocks = LLM.layers * (9 + WORK[remat][0] + 18)
    # 3 of the head, 3 of the linear projector; XLA drops the gradient of the frozen features, as above.
    assert len(products(jax.grad(loss), trained)) == blocks + TOWER + 3 + 3

    loss, trained = loss_of(with_changes(remat=remat, **KERNEL))
    assert kernel_runs(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr) == WORK[remat][1]


def residuals(config: ModelConfig) -> list[jax.ShapeDtypeStruct]:
    """What the forward pass saves for the backward pass."""
    loss, trained = loss_of(config)
    return jax.tree.leaves(jax.eval_shape(lambda trained: jax.vjp(loss, trained)[1], trained))


def per_layer(arrays) -> list[tuple[int, ...]]:
    """Shapes of what is saved per block of the decoder, without parameters."""
    return sorted(x.shape[1:] for x in arrays if x.shape[:2] == (LLM.layers, B))


Q, KV, X, WIDE = (B, T, 4, 8), (B, T, 2, 8), (B, T, 40), (B, T, 56)
KEPT = {
    "full": [X], "save_context": [X, Q], "save_qkv": [X, Q, KV, KV], "offload_qkv": [X, Q, KV, KV],
    "save_qkv_context": [X, Q, Q, KV, KV], "minimal": [X, X, Q, Q, KV, KV, WIDE, WIDE],
}  # fmt: skip


@pytest.mark.parametrize("remat", KEPT)
def test_remat_policies_save_and_offload_the_expected_tensors(remat):
    saved = residuals(with_changes(remat=remat))
    assert per_layer(saved) == sorted(KEPT[remat])
    loss, trained = loss_of(with_changes(remat=remat))
    moves = [e.params for e in equations(jax.grad(loss), trained) if e.primitive.name == "device_put"]
    offloads = [params for params in moves if "host" in str(params).lower()]
    assert len(offloads) == (3 if remat == "offload_qkv" else 0)
    assert set(KEPT) == set(REMAT) - {"none"} and set(WORK) == set(REMAT)


def test_save_context_also_saves_the_kernel_log_sum_exp():
    shapes = per_layer(residuals(with_changes(remat="save_context", **KERNEL)))
    assert shapes == sorted([X, (B, 4, 128, 8), (B, 4, 128)])


@pytest.mark.parametrize("remat", ["none", "full", "minimal"])
def test_frozen_tower_saves_no_residuals(remat):
    saved = residuals(with_changes(remat=remat))
    features = (B, 1 * VISION.features, VISION.width)  # the projector's gradient needs them
    tower = [x.shape for x in saved if VISION.width in x.shape[-1:] or VISION.mlp_width in x.shape[-1:]]
    assert [shape for shape in tower if np.prod(shape) != np.prod(features)] == []
    assert len(tower) == 1


def test_remat_policy_names_match_the_checkpoint_names():
    policy_names = {name for policy in REMAT.values() if policy for name in (*policy.keep, *policy.offload)}
    tensor_names = {e.params["name"] for e in equations(*loss_of(PLAIN)) if e.primitive.name == "name"}
    assert policy_names == tensor_names
