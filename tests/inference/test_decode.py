"""Cached decoding compared with full passes over all tokens, and what the compiled step copies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llava_jax.inference.decode import decode as decode_loop
from llava_jax.inference.decode import decode_view, prefill
from llava_jax.inference.sampling import SamplingParams
from llava_jax.inference.slots import decode_slots, empty_slots
from llava_jax.models.cache import KVCache
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model, nested
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.token_row import Batch, EncodedExample, stack_rows, token_row
from llava_jax.train.state import abstract_state
from tests.fixtures.decoding import IMAGE, MODEL, UNUSED, compilations, decoding_params, variant

NEW = 6
PROMPTS = [[1, *IMAGE, 5, 6, 7], [1, 8], [1, *IMAGE, 9, *IMAGE, 10, 11], [1, 12, 13, 14, *IMAGE]]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 2, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def params():
    return decoding_params(MODEL)


def padded(rows, length, images=PIXELS) -> Batch:
    """Padded on the right; the values in the padding must not matter."""
    size = images.shape[2]
    layout = dict(length=length, image_slots=images.shape[1], image_size=size, pad_id=17)
    examples = [EncodedExample(row, np.zeros(len(row), bool), pixels) for row, pixels in zip(rows, images, strict=True)]
    return stack_rows([token_row([example], **layout) for example in examples])


def greedy(model: Llava, params: dict, prompt: Batch, stop_ids, new: int) -> jax.Array:
    """The likeliest continuation of every prompt: int32[B, new], filled with stop_ids[0] after a stop."""
    view, b = decode_view(params), len(prompt.tokens)
    zeros = np.zeros(b, np.uint32)
    sampling = SamplingParams(zeros.astype(np.float32), zeros.astype(np.int32), np.ones(b, np.float32), zeros, zeros)
    state = prefill(model, view, prompt, sampling, stop_ids, np.full(b, new, np.int32), new)
    return decode_loop(model, view, state, np.int32(new), np.zeros(b, bool)).answer


@functools.cache
def forward():
    def logits(params, batch):
        arrays = batch.tokens, batch.images, batch.positions, batch.segment_ids
        return MODEL.apply({"params": params}, *arrays)

    return jax.jit(logits)


def decode_by_full_passes(params, stops, n=NEW) -> np.ndarray:
    """The definition: append the likeliest token and run everything again."""
    rows, done = [list(p) for p in PROMPTS], [False] * len(PROMPTS)
    for _ in range(n):
        batch = padded(rows, 16 + NEW)
        scores = np.asarray(forward()(params, batch))
        for i, row in enumerate(rows):
            token = stops[0] if done[i] else int(np.argmax(scores[i, len(row) - 1]))
            done[i] |= token in stops
            row.append(token)
    return np.array([row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)])


def decode(params, stops, n=NEW, length=16, mesh=None, prompts=PROMPTS, images=PIXELS):
    prompt = padded(prompts, length, images)
    if mesh:
        prompt = global_batch(prompt, mesh)
    stops = np.resize(stops, 16)  # one shape compiles once; a stop may occur twice
    return np.asarray(greedy(MODEL, params, prompt, jnp.array(stops, jnp.int32), n))


def test_greedy_decoding_matches_full_passes_without_a_cache(params):
    expected = decode_by_full_passes(params, [UNUSED])
    assert len({tuple(row) for row in expected}) == 4 and len(np.unique(expected)) > 6  # the answers vary
    np.testing.assert_array_equal(decode(params, [UNUSED]), expected)


def test_answers_depend_on_the_images(params):
    changed = decode(params, [UNUSED], images=PIXELS[::-1].copy()) != decode(params, [UNUSED])
    assert changed[[0, 2, 3]].any(axis=1).sum() >= 2 and not changed[1].any()


def test_longer_padding_keeps_the_answers(params):
    np.testing.assert_array_equal(decode(params, [UNUSED], length=20), decode(params, [UNUSED]))


@pytest.mark.parametrize("stop_position", [0, 2])
def test_row_ends_at_its_stop_id_and_is_filled(params, stop_position):
    """Any stop id ends a row; it is filled with the first one. The other rows continue."""
    free = decode(params, [UNUSED])
    stop = int(free[0, stop_position])
    assert stop not in free[0, :stop_position]
    stopped = decode(params, [UNUSED, stop])
    np.testing.assert_array_equal(stopped, decode_by_full_passes(params, [UNUSED, stop]))
    np.testing.assert_array_equal(stopped[0], [*free[0, : stop_position + 1], *[UNUSED] * (NEW - stop_position - 1)])
    assert (stopped != UNUSED).all(axis=1).any(), "some row does not stop"


def test_decoding_ends_when_every_row_has_stopped(params):
    """Only filler follows the last stop."""
    free = decode(params, [UNUSED])
    stopped = decode(params, [UNUSED, *np.unique(free[:, 1]).tolist()])
    assert (stopped[:, 2:] == UNUSED).all()


def test_filler_rows_are_done_and_change_no_other_row(params):
    """The last batch of an evaluation is filled with rows without tokens."""
    filled = decode(params, [UNUSED], prompts=[*PROMPTS[:2], [], []])
    np.testing.assert_array_equal(filled[:2], decode(params, [UNUSED])[:2])
    assert (filled[2:, 1:] == UNUSED).all()


def test_answer_of_one_token(params):
    np.testing.assert_array_equal(decode(params, [UNUSED], n=1), decode(params, [UNUSED])[:, :1])


def test_decoding_on_a_mesh_gives_the_same_answers(params):
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(decode(params, [UNUSED], mesh=mesh), decode(params, [UNUSED]))


def test_prefill_and_step_logits_match_a_full_pass(params):
    """For one batch with and without images; each row is fed its own greedy answer."""
    answers = decode(params, [UNUSED])
    rows = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, answers.tolist(), strict=True)]
    expected = np.asarray(forward()(params, padded(rows, 16 + NEW)))
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    view, prompt = decode_view(params), padded(PROMPTS, 16)

    @jax.jit
    def run(view, cache, tokens, images, positions, segment_ids):
        def hidden_and_logits(model):
            hidden, new = model.hidden(tokens, images, positions, segment_ids, cache)
            return model.logits(hidden), new

        return MODEL.apply({"params": view}, method=hidden_and_logits)

    cache = KVCache.empty(MODEL.config.llm, 4, 16, "float32")
    ours, cache = run(view, cache, prompt.tokens, PIXELS, prompt.positions, prompt.segment_ids)
    cache = cache.with_capacity(NEW)
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(ours[i, :n], expected[i, :n], atol=1e-5)
    for step in range(NEW):
        positions = (lengths + step)[:, None].astype(np.int32)
        ours, cache = run(view, cache, answers[:, step : step + 1], PIXELS[:, :0], positions, np.ones_like(positions))
        np.testing.assert_allclose(ours[:, 0], np.take_along_axis(expected, positions[..., None], 1)[:, 0], atol=1e-5)
    assert np.abs(expected).max() > 1  # the bound is not trivial


def start_state(model: Llava, view, b: int, prompt=None, new: int = 37):
    zeros = np.zeros(b, np.uint32)
    sampling = SamplingParams(zeros.astype(np.float32), zeros.astype(np.int32), np.ones(b, np.float32), zeros, zeros)
    prompt = prompt or padded([[1, 2, 3]] * b, 16, PIXELS[:1, :0].repeat(b, axis=0))
    return prefill(model, view, prompt, sampling, np.array([UNUSED], np.int32), np.full(b, new, np.int32), new)


def test_finished_rows_generate_nothing_more(params):
    view, prompt = decode_view(params), padded(PROMPTS, 16)
    finished = np.array([True, False, True, False])
    state = decode_loop(MODEL, view, start_state(MODEL, view, 4, prompt), np.int32(9), finished)
    answer = np.asarray(state.answer)
    np.testing.assert_array_equal(answer[[1, 3], :NEW], decode(params, [UNUSED])[[1, 3]])
    assert (answer[[0, 2], 1:] == UNUSED).all()


def test_decode_view_of_a_view_is_itself(params):
    view = decode_view(params)
    assert decode_view(view) is view
    assert view["llm"]["embed"] is params["llm"]["embed"] and view["vision"] is params["vision"]


def test_decode_view_keeps_the_sharding():
    mesh = make_mesh(2, 2, 2)
    abstract = nested(
        abstract_state(MODEL.config, dict.fromkeys(abstract_model(MODEL.config)[0]), optax.identity(), mesh).frozen
    )
    params = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, np.float32), x.sharding), abstract)
    for block in decode_view(params)["llm"]["layers"]:
        for (path, weight), stacked in zip(
            jax.tree_util.tree_leaves_with_path(block), jax.tree.leaves(params["llm"]["layers"]), strict=True
        ):
            spec = (*stacked.sharding.spec, *[None] * weight.ndim)[1 : 1 + weight.ndim]
            assert (*weight.sharding.spec, *[None] * weight.ndim)[: weight.ndim] == spec, path


IN_PLACE = {"parameter", "get-tuple-element", "bitcast", "bitcast-convert", "dynamic-update-slice"}


def moved(compiled: str, sizes: set[int]) -> list[str]:
    """Instructions of a compiled program that make an array of one of these sizes, other than in place."""
    copies, fused, computation = [], set(re.findall(r" fusion\(.*calls=%([\w.-]+)", compiled)), ""
    for line in compiled.splitlines():
        if header := re.match(r"%([\w.-]+) .*{$", line):
            computation = header[1]
        if computation in fused:  # within one, only its result becomes an array
            continue
        match = re.match(r" *(?:ROOT )?%?([\w.-]+) = \w+\[([\d,]+)\]\S* ([\w-]+)\(", line)
        if match and int(np.prod([int(n) for n in match[2].split(",")])) in sizes:
            in_place = match[3] in IN_PLACE or match[3] == "fusion" and "dynamic-update-slice" in match[1]
            if not in_place and not (match[3] == "fusion" and re.match(r"(bitcast[-_])+", match[1])):
                copies.append(line.strip()[:120])
    return copies


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("dtype, b", [("float32", 1), ("float32", 4), ("bfloat16", 4)])
def test_compiled_step_copies_neither_cache_nor_weights(dtype, b, kv_heads):
    """Both grow with the model; copying either for each token would cost as much as the step itself. (In bfloat16 a
    batch has at least two rows.)"""
    model = variant(dtype, width=38, mlp_width=46, kv_heads=kv_heads)  # sizes that occur nowhere else
    c = model.config.llm
    weights = jax.tree.map(lambda x: x.astype(dtype), decoding_params(model))
    view = decode_view(weights)
    state = start_state(model, view, b)
    sizes = {state.cache.layers[0][0].size} | {x.size for x in jax.tree.leaves(view["llm"]["layers"][0]) if x.ndim > 1}
    assert state.cache.layers[0][0].shape == (max(b, 2), kv_heads, 16 + 37, 8) and c.width not in sizes
    slots = empty_slots(model.config, b, 16 + 37)
    single = decode_slots.lower(model, view, slots, np.zeros(b, bool), np.bool_(False)).compile().as_text()
    loop = decode_loop.lower(model, view, state, np.int32(5), np.zeros(b, bool)).compile().as_text()
    assert "dynamic-update-slice" in single and "dynamic-update-slice" in loop
    assert moved(single, sizes) == [] and moved(loop, sizes) == []


def test_one_shape_compiles_at_most_three_programs(params):
    """Those of the view, the prefill and the loop."""
    model = variant(norm_eps=3e-5)
    prompt = padded(PROMPTS, 16)
    with compilations() as compiled_names:
        for stop in (UNUSED, 5, 6):
            greedy(model, params, prompt, np.array([stop], np.int32), NEW)
    assert len(compiled_names) <= 3
