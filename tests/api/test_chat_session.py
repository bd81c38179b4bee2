"""LlavaModel.chat reads no turn twice, and its answers are those without a cache, also where they overlap."""

import jax
import numpy as np
import pytest

import llava_jax
from llava_jax.api import chat_session
from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.data.sources.scene_world import draw_scene, render_scene
from llava_jax.errors import DataError
from llava_jax.inference import slots
from llava_jax.runtime.mesh import make_mesh

QUESTIONS = ["how many shapes are there ?", "what color is it ?", "is there a circle ?", "where is the square ?"]
PICTURE = render_scene(draw_scene(3, 0, True), 64)


@pytest.fixture(scope="module")
def loaded():
    return llava_jax.load(built_in_model(), dtype="float32", mesh=make_mesh(1, 1, 1, jax.devices()[:1]))


@pytest.fixture
def model(loaded):
    """Nothing is cached."""
    loaded.__dict__.pop("_session", None)
    return loaded


def question(text: str, with_image: bool = True) -> list[dict]:
    return [{"role": "user", "content": [*[{"type": "image"}] * with_image, {"type": "text", "text": text}]}]


def conversation(model, forgets: bool = False) -> list[str]:
    """The answers to QUESTIONS. forgets: nothing of an earlier turn is kept."""
    messages, answers = [], []
    for text in QUESTIONS:
        messages += question(text, not messages)
        answers.append(model.chat(messages, images=[PICTURE], max_new_tokens=16))
        messages.append({"role": "assistant", "content": answers[-1]})
        if forgets:
            model.__dict__.pop("_session")
    return answers


def engines(model) -> list:
    return model._session._idle


def test_turns_are_read_once_and_answered_as_without_a_cache(model):
    expected = conversation(model, forgets=True)
    assert conversation(model) == expected
    (engine,) = engines(model)
    prompt = model._prompt([*question(QUESTIONS[0])], [PICTURE])
    assert engine.counters.images_encoded == 1
    assert engine.counters.prompt_tokens_cached > 2 * len(prompt.tokens)
    assert engine.counters.prompt_tokens_read < 2 * len(prompt.tokens) + 60


def test_overlapping_streams_answer_as_alone(model):
    expected = [model.chat(question(text), images=[PICTURE], max_new_tokens=12) for text in QUESTIONS[:3]]
    streams = [model.chat(question(text), images=[PICTURE], max_new_tokens=12, stream=True) for text in QUESTIONS[:3]]
    texts = [""] * 3
    for _ in range(14):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert [text.strip() for text in texts] == expected
    assert len(engines(model)) == 3
    model.chat("hello", max_new_tokens=1)
    assert len(engines(model)) == 3, "idle engines are used again"


def test_abandoned_stream_frees_its_engine(model):
    stream = model.chat(question(QUESTIONS[0]), images=[PICTURE], stream=True)
    next(stream)
    assert engines(model) == []
    stream.close()
    (engine,) = engines(model)
    assert not engine.is_busy


def test_longer_conversations_get_longer_slots(model, monkeypatch):
    monkeypatch.setattr(chat_session, "SHORTEST", 32)
    lengths = []
    for text, new in (("hello", 1), ("is it a circle ? " * 20, 1), ("hello", 1), ("hello", 10_000)):
        model.chat(question(text, False), max_new_tokens=new, stop="?" if new > 1 else ())
        lengths.append([engine.length for engine in engines(model)])
    assert lengths[0] < lengths[1] == lengths[2] <= lengths[3] == [model.config.llm.max_positions]


def test_values_that_are_no_numbers_are_named(model, monkeypatch):
    choose = slots._chosen

    def not_finite(*arguments):
        chosen = choose(*arguments)
        return chosen.replace(is_finite=np.zeros(1, bool))

    monkeypatch.setattr(slots, "_chosen", not_finite)
    slots.read_chunk.clear_cache()
    with pytest.raises(DataError, match="no answer: the model computed values that are not numbers; check the model's"):
        model.chat("hello", max_new_tokens=1)
    slots.read_chunk.clear_cache()
    monkeypatch.undo()
    assert model.chat("hello", max_new_tokens=1) is not None
