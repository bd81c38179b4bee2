"""Slots: an answer depends neither on who else asks nor on what is cached, and a fault ends only its own answer."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from llava_jax.errors import ConfigError, DataError, TooLong
from llava_jax.inference import slot_engine, warm_up
from llava_jax.inference import slots as device
from llava_jax.inference.engine import GenerationConfig, Prompt, generate
from llava_jax.runtime.mesh import make_mesh
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.decoding import IMAGE, UNUSED, compilations, pictures

check = bench_script("check_schedules")
PIXELS = pictures(9)
PROMPTS = [
    Prompt([1, *IMAGE, 5, 6, 7], PIXELS[:1], row=0),
    Prompt([1, 8], row=1),
    Prompt([1, *IMAGE, 9, *IMAGE, 10, 11], PIXELS[1:3], row=2),
    Prompt([1, *IMAGE, *IMAGE, *IMAGE, 15], PIXELS[4:7], row=4),
    Prompt([1], row=5),
    Prompt([1, *(4 + i % 50 for i in range(100))], row=6),  # of two parts
]
GREEDY = GenerationConfig((UNUSED,), max_new_tokens=8)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.9, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def model_and_params():
    return check.tiny_model()


@pytest.fixture(scope="module")
def shared(model_and_params):
    """Two engines: one with a cache of prefixes, one without."""
    return check.new_engine(*model_and_params, 1 << 20), check.new_engine(*model_and_params, 0)


@pytest.fixture
def engine(shared):
    yield shared[0]
    for slot, conversation in enumerate(shared[0].conversations):
        if conversation:
            shared[0].close(slot)


def answers(engine, prompts, settings=GREEDY) -> list[list[int] | str]:
    """The ids of each answer, or its fault."""
    requests = {engine.open(prompt, settings): [] for prompt in prompts}
    results = list(requests.values())
    while engine.is_busy:
        for token in engine.advance():
            ids = requests[token.slot]
            ids.append(token.fault or token.id)
            if token.fault or token.id in settings.stop_ids or len(ids) == settings.max_new_tokens:
                engine.close(token.slot)
    return [ids[-1] if isinstance(ids[-1], str) else ids for ids in results]


def test_random_schedules_answer_as_alone(model_and_params):
    counts = check.check_schedules(*model_and_params, 50, seed=0)
    assert counts["differing"] == 0
    assert counts["crowded"] > 20 and counts["cancelled"] > 50 and counts["cached tokens"] > 1000, counts


@pytest.mark.parametrize("fault", ["key", "cache", "mask"])
def test_planted_faults_are_found(model_and_params, fault):
    """A sampling key of the neighbor, a prefix one token too long, a mask that depends on the part's size."""
    model, params = model_and_params
    if fault != "cache":  # which is on the host; the others need programs that are compiled with the fault
        model, params = check.tiny_model(norm_eps=1e-5 + 1e-7 * len(fault) + 1e-8 * ord(fault[0]))
    mend = check.plant_fault(fault)
    try:
        counts = check.check_schedules(model, params, 100, seed=0, stop_at_first=True)
    finally:
        mend()
    assert counts["differing"] > 0


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_slots_answer_as_generate(engine, model_and_params, settings):
    expected = [answer.ids for answer in generate(*model_and_params, PROMPTS, settings)]
    assert answers(engine, PROMPTS, settings) == expected
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)


def test_mesh_gives_the_same_answers(model_and_params):
    mesh = make_mesh(2, 2, 2)
    engine = slot_engine.SlotEngine(*model_and_params, mesh, slots=8, length=192)
    expected = [answer.ids for answer in generate(*model_and_params, PROMPTS, SAMPLED)]
    for _ in range(2):  # the second time with cached prefixes
        assert answers(engine, PROMPTS, SAMPLED) == expected
    with compilations() as programs:
        assert answers(engine, PROMPTS, SAMPLED) == expected
    assert programs == [], "all programs return the slots with one sharding"
    with pytest.raises(ConfigError, match="6 slots do not split over 4 devices"):
        slot_engine.SlotEngine(*model_and_params, mesh, slots=6, length=192)


def test_cached_turns_equal_uncached_ones(model_and_params):
    differing, largest, ratio = check.check_conversations(*model_and_params, 5, seed=0)
    assert differing == 0 and largest < 1e-5
    assert ratio > 8, "a conversation of 10 turns reads each token once"


def test_thousand_requests_compile_nothing(model_and_params):
    engine = check.new_engine(*model_and_params, 1 << 20)
    warm_up.warm_up(engine)
    rng, count = random.Random(0), 0
    with compilations() as programs:
        while count < 1000:
            requests = check.random_schedule(rng, model_and_params[0].config.features)
            check.serve(engine, requests)
            count += len(requests)
    assert programs == []


def test_warm_up_measures_parts_beside_steps(model_and_params, monkeypatch):
    """The largest part beside answers is that with which a step takes up to twice as long; nothing is kept."""
    engine = check.new_engine(*model_and_params, 1 << 20)
    seconds = iter([1.0, 2.5, 1.9, 2.1])  # a step alone, then with 16, 32 and 64 tokens
    monkeypatch.setattr(warm_up, "_seconds", lambda work: (work(), next(seconds))[1])
    warm_up.warm_up(engine)
    assert engine.part_beside_answers == 32 and list(seconds) == []
    assert len(engine.prefixes) == 0 and engine.counters == slot_engine.Counters()


def test_step_and_part_in_one_program_equal_two(model_and_params):
    """What a fused program writes and chooses, for answers and for the prompt, also where no slot is active."""
    model, params = model_and_params
    rng = np.random.default_rng(0)
    greedy = device.SamplingParams(np.float32([0]), np.int32([0]), np.float32([1]), np.uint32([0]), np.uint32([0]))
    pool = rng.standard_normal((64, model.config.llm.width)).astype(np.float32)

    def chunk(slot, start, count):
        tokens = rng.integers(4, 60, 16).astype(np.int32)
        return device.Chunk(
            *np.int32([slot, start, count]), tokens, np.arange(16, dtype=np.int32), greedy, np.bool_(True)
        )

    first, second, part = chunk(0, 0, 16), chunk(2, 0, 9), chunk(1, 0, 13)
    view = slot_engine.decode_view(params)
    for active in (np.array([True, False, True, False]), np.zeros(4, bool)):
        both = []
        for is_fused in (False, True):
            slots = device.empty_slots(model.config, 4, 64)
            for c in (first, second):
                slots, _ = device.read_chunk(model, view, slots, pool, c)
            if is_fused:
                slots, chosen = device.read_chunk(model, view, slots, pool, part, active)
                rows, last = jax.tree.map(lambda x: x[:-1], chosen), jax.tree.map(lambda x: x[-1:], chosen)
            else:
                slots, rows = device.decode_slots(model, view, slots, active, np.bool_(True))
                slots, last = device.read_chunk(model, view, slots, pool, part)
            written = [
                [np.asarray(x)[i, :, :n] for i, n in enumerate(slots.length)] for x in jax.tree.leaves(slots.layers)
            ]
            answers = [x[active] for x in jax.tree.leaves(rows)]
            both.append((answers, last, slots.token, slots.length, slots.sampling, written))
        jax.tree.map(np.testing.assert_array_equal, *both)


def test_other_image_is_not_taken_from_the_cache(engine):
    first, second = (Prompt([1, *IMAGE, *range(5, 30)], PIXELS[i : i + 1]) for i in (7, 8))
    alone = [answers(engine, [prompt])[0] for prompt in (first, second)]
    assert alone[0] != alone[1]
    before = engine.counters.images_encoded
    assert [answers(engine, [prompt])[0] for prompt in (first, second)] == alone
    assert engine.counters.images_encoded == before, "known images are not encoded again"


def test_cancelled_slot_is_free_at_once_and_answers_nothing_more(engine):
    first, second = engine.open(PROMPTS[0], GREEDY), engine.open(PROMPTS[1], GREEDY)
    while not engine.conversations[first].answer:
        engine.advance()
    engine.close(first)
    assert engine.free_slots == check.SLOTS - 1 and engine.conversations[first] is None
    steps = engine.counters.steps
    tokens = [token for _ in range(3) for token in engine.advance()]
    assert {token.slot for token in tokens} == {second}
    assert engine.counters.steps - steps == 3


def test_long_prompt_delays_running_answers_by_one_part(engine):
    running = engine.open(PROMPTS[1], dataclasses.replace(GREEDY, max_new_tokens=30))
    while not engine.conversations[running].answer:
        engine.advance()
    engine.open(Prompt([1, *(4 + i % 40 for i in range(170))]), GREEDY)
    for _ in range(3):
        before = engine.counters.prompt_tokens_read
        assert running in {token.slot for token in engine.advance()}
        assert engine.counters.prompt_tokens_read - before <= slot_engine.CHUNKS[-1]


def test_logprobs_are_those_of_the_logits(engine, model_and_params):
    model, params = model_and_params
    prompt = Prompt(PROMPTS[5].tokens[:20])
    engine.open(prompt, SAMPLED, wants_logprobs=True)
    token = None
    while token is None:
        token = next(iter(engine.advance()), None)
    tokens, ones = np.array([prompt.tokens], np.int32), np.ones((1, 20), np.int32)
    stacked = params | {
        "llm": params["llm"] | {"layers": jax.tree.map(lambda *x: np.stack(x), *params["llm"]["layers"])}
    }
    no_images = np.zeros((1, 0, 24, 24, 3), np.uint8)
    logits = model.apply({"params": stacked}, tokens, no_images, np.arange(20)[None], ones)[0, -1]
    expected = np.asarray(jax.nn.log_softmax(logits))
    assert token.logprob == pytest.approx(expected[token.id], abs=1e-5)
    assert [id for id, _ in token.top] == np.argsort(-expected)[: device.TOP].tolist()
    np.testing.assert_allclose([value for _, value in token.top], np.sort(expected)[::-1][: device.TOP], atol=1e-5)


def test_values_that_are_no_numbers_fail_one_answer(engine):
    """The next conversation in the slot is answered: a masked NaN must not remain."""
    expected = answers(engine, PROMPTS)
    poisoned = Prompt([1, *IMAGE, 5], [np.full((24, 24, 3), np.nan, np.float32)])
    results = answers(engine, [PROMPTS[0], poisoned, *PROMPTS[1:]])
    assert "not numbers" in results.pop(1) and results == expected
    assert answers(engine, [*PROMPTS, *PROMPTS[:2]])[:6] == expected, "every slot is clean"


@pytest.mark.parametrize("program", ["read_chunk", "encode_image"])
def test_device_fault_fails_its_request_and_no_other(engine, monkeypatch, program):
    """Such as a lack of memory. The program may have taken its donated arrays with it."""
    expected = answers(engine, PROMPTS)
    module = slot_engine.device if program == "read_chunk" else slot_engine.image_pool
    works, calls = getattr(module, program), []

    def fails_once(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            jax.tree.map(lambda x: x.delete(), args[2])
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return works(*args, **options)

    monkeypatch.setattr(module, program, fails_once)
    fresh = [prompt._replace(images=[image + len(program) for image in prompt.images]) for prompt in PROMPTS]
    results = answers(engine, [*PROMPTS[4:], *fresh[:3]])
    assert sum(isinstance(result, str) for result in results) == 1
    assert next(r for r in results if isinstance(r, str)) == "the model failed (JaxRuntimeError)"
    monkeypatch.undo()
    others = answers(engine, [*PROMPTS[4:], *fresh[:3]])
    assert [a == b for a, b in zip(results, others, strict=True)].count(False) == 1
    assert answers(engine, PROMPTS) == expected


def test_failing_step_fails_all_running_answers_and_the_next_is_answered(engine, monkeypatch):
    expected = answers(engine, PROMPTS)

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(device, "decode_slots", fails)
    assert set(answers(engine, PROMPTS[:2])) == {"the model failed (MemoryError)"}
    monkeypatch.undo()
    assert answers(engine, PROMPTS) == expected


def test_prompts_that_do_not_fit_are_refused(engine):
    with pytest.raises(TooLong, match="the prompt has 192 tokens; the model takes 1 to 191"):
        engine.open(Prompt([1] * 192), GREEDY)
    with pytest.raises(DataError, match="placeholder tokens"):
        engine.open(Prompt([1, *IMAGE]), GREEDY)
    slot = engine.open(Prompt([1] * 190), GREEDY)
    count = 0
    while count < 2:
        count += len(engine.advance())
    assert not engine.conversations[slot].is_running, "the last position is used"
    assert all(engine.open(PROMPTS[0], GREEDY) is not None for _ in range(check.SLOTS - 1))
    assert engine.open(PROMPTS[0], GREEDY) is None
