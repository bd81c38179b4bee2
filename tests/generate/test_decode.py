import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from llava_jax.architectures import IMAGE_TOKEN_ID, LlamaConfig, ModelConfig, VisionConfig
from llava_jax.generate.decode import greedy
from llava_jax.models.llava import Llava, abstract_params
from llava_jax.sharding import global_batch, make_mesh

VISION = VisionConfig(
    image_size=24, patch_size=12, width=32, layers=2, heads=4, mlp_width=48,
    activation="quick_gelu", norm_eps=1e-5, select_layer=-2, select_feature="patch",
)  # fmt: skip
LLM = LlamaConfig(
    vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_width=48, norm_eps=1e-5,
    rope_base=10_000.0, rope_scaling=None, qkv_bias=False, tied_head=False, max_positions=64,
)  # fmt: skip
MODEL = Llava(
    ModelConfig(
        VISION,
        LLM,
        projector="linear",
        dtype="float32",
        feature_dtype="float32",
        remat="none",
        unroll=False,
        attention="xla",
    )  # fmt: skip
)
NEW = 6
UNUSED = 63  # as a stop it never comes, see below

RNG = np.random.default_rng(0)
IMAGE = [IMAGE_TOKEN_ID] * VISION.features
PROMPTS = [[1, *IMAGE, 5, 6, 7], [1, 8], [1, *IMAGE, 9, *IMAGE, 10, 11], [1, 12, 13, 14, *IMAGE]]
PIXELS = RNG.integers(0, 256, (len(PROMPTS), 2, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def params():
    """Random, large enough that neighbours, positions and images all decide; the token UNUSED is never likeliest."""
    draw = lambda x: jnp.asarray(0.3 * RNG.standard_normal(x.shape), jnp.float32)  # noqa: E731
    made = jax.tree.map(draw, nn.unbox(abstract_params(MODEL.config)))
    made["llm"]["head"]["kernel"] = made["llm"]["head"]["kernel"].at[:, UNUSED].set(0)
    return made


def padded(rows, length) -> dict[str, np.ndarray]:
    """Right padded; what stands in the padding must not matter."""
    batch = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "positions", "segment_ids")}
    batch["tokens"] += 17
    for i, row in enumerate(rows):
        n = len(row)
        batch["tokens"][i, :n], batch["positions"][i, :n], batch["segment_ids"][i, :n] = row, range(n), 1
    return batch


@functools.cache
def forward():
    def logits(params, batch):
        arrays = (batch[k] for k in ("tokens", "images", "positions", "segment_ids"))
        return MODEL.apply({"params": params}, *arrays)

    return jax.jit(logits)


def one_pass_per_token(params, stops, n=NEW) -> np.ndarray:
    """The definition: append the likeliest token, run everything again."""
    rows, done = [list(p) for p in PROMPTS], [False] * len(PROMPTS)
    for _ in range(n):
        batch = padded(rows, 16 + NEW) | {"images": PIXELS}
        scores = np.asarray(forward()(params, batch))
        for i, row in enumerate(rows):
            token = stops[0] if done[i] else int(np.argmax(scores[i, len(row) - 1]))
            done[i] |= token in stops
            row.append(token)
    return np.array([row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)])


def decode(params, stops, n=NEW, length=16, mesh=None, prompts=PROMPTS, images=PIXELS):
    prompt = padded(prompts, length) | {"images": images}
    if mesh:
        prompt = global_batch(prompt, mesh)
    stops = np.resize(stops, 16)  # one shape, one compilation; a stop may come twice
    return np.asarray(greedy(MODEL, params, prompt, jnp.array(stops, jnp.int32), n))


def test_every_token_is_the_likeliest_after_a_full_pass_without_a_cache(params):
    expected = one_pass_per_token(params, [UNUSED])
    assert len({tuple(row) for row in expected}) == 4 and len(np.unique(expected)) > 6  # no model of one word
    np.testing.assert_array_equal(decode(params, [UNUSED]), expected)


def test_answers_depend_on_the_images(params):
    changed = decode(params, [UNUSED], images=PIXELS[::-1].copy()) != decode(params, [UNUSED])
    assert changed[[0, 2, 3]].any(axis=1).sum() >= 2 and not changed[1].any()


def test_longer_padding_changes_nothing(params):
    np.testing.assert_array_equal(decode(params, [UNUSED], length=20), decode(params, [UNUSED]))


@pytest.mark.parametrize("place", [0, 2])
def test_a_row_ends_with_its_stop_and_is_filled_with_the_first_stop(params, place):
    """Any stop ends a row, the others go on."""
    free = decode(params, [UNUSED])
    stop = int(free[0, place])
    assert stop not in free[0, :place]
    stopped = decode(params, [UNUSED, stop])
    np.testing.assert_array_equal(stopped, one_pass_per_token(params, [UNUSED, stop]))
    np.testing.assert_array_equal(stopped[0], [*free[0, : place + 1], *[UNUSED] * (NEW - place - 1)])
    assert (stopped != UNUSED).all(axis=1).any(), "some row never stops"


def test_decoding_stops_when_every_row_has(params):
    """Seen from outside: nothing is computed after the last stop, so nothing but filler is there."""
    free = decode(params, [UNUSED])
    stopped = decode(params, [UNUSED, *np.unique(free[:, 1]).tolist()])
    assert (stopped[:, 2:] == UNUSED).all()


def test_rows_of_filler_hold_nobody_up_and_change_nobody(params):
    """The last batch of an evaluation is filled with rows without a token."""
    filled = decode(params, [UNUSED], prompts=[*PROMPTS[:2], [], []])
    np.testing.assert_array_equal(filled[:2], decode(params, [UNUSED])[:2])
    assert (filled[2:, 1:] == UNUSED).all()


def test_an_answer_of_one_token(params):
    np.testing.assert_array_equal(decode(params, [UNUSED], n=1), decode(params, [UNUSED])[:, :1])


def test_a_mesh_decodes_the_same(params):
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(decode(params, [UNUSED], mesh=mesh), decode(params, [UNUSED]))
