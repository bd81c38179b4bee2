"""scienceqa/two_steps.py: the ids of both prompts, and the final text."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from llava_jax.api.model import LlavaModel
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.evaluation.questions import PredictOptions, TaskQuestion, build_questions
from llava_jax.evaluation.runner import answer_batches, encode_question, longest_first
from llava_jax.evaluation.scienceqa.task import ScienceQATask
from llava_jax.evaluation.scienceqa.two_steps import encode_step, generate_two_steps
from llava_jax.inference.engine import Generation, GenerationConfig
from tests.fixtures.scienceqa import CONFIG

SYSTEM = "A chat between a curious human and an artificial intelligence assistant. "
SYSTEM += "The assistant gives helpful, detailed, and polite answers to the human's questions."


def decoded(model: LlavaModel, ids: np.ndarray) -> str:
    """A prompt as text, with <image> for the placeholder tokens of an image."""
    places = np.flatnonzero(ids == IMAGE_TOKEN_ID)
    if not len(places):
        return model.tokenizer.decode(ids.tolist())
    assert len(places) == CONFIG.features and places[-1] - places[0] == CONFIG.features - 1
    text = [model.tokenizer.decode(part.tolist()) for part in (ids[: places[0]], ids[places[-1] + 1 :])]
    return "<image>".join(text)


def rows_of(model: LlavaModel, source: ScienceQA, options: PredictOptions, count: int):
    questions, _ = build_questions(ScienceQATask(source), options)
    return longest_first(model, questions, encode_step)[:count]


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0", "llava_llama_2"])
def test_prompt_equals_the_chat_prompt(model, template):
    model = dataclasses.replace(model, template=template)
    for images in (0, 1):
        question = TaskQuestion(0, "1", "<image>\n" * images + "what is it ?", "x.png" if images else None)
        messages = [{"role": "user", "content": "what is it ?"}]
        wanted = model._prompt(messages, [Image.new("RGB", (9, 9))] * images).tokens.tolist()
        assert encode_question(model, question).tolist() == wanted
        assert (encode_step(model, question).tolist() == wanted) == (template != "llava_v0")


def test_image_after_text_and_separator_of_v0(model):
    v0 = dataclasses.replace(model, template="llava_v0")
    question = TaskQuestion(0, "1", "what is it ?\n<image>", "x.png")
    assert decoded(v0, encode_question(v0, question)) == f"{SYSTEM}###Human: what is it ?\n<image>###Assistant:"
    assert decoded(v0, encode_step(v0, question)) == f"{SYSTEM}###Human: what is it ?\n<image>###"
    second = decoded(v0, encode_step(v0, question, " Assistant: LECTURE: north .\n"))
    assert second == f"{SYSTEM}###Human: what is it ?\n<image>### Assistant: LECTURE: north . ###\nANSWER:"
    v1 = dataclasses.replace(model, template="llava_v1")
    assert decoded(v1, encode_step(v1, question)).endswith("what is it ?\n<image> ASSISTANT:")
    assert decoded(v1, encode_step(v1, question, " LECTURE: x")).endswith(" ASSISTANT: LECTURE: x ###\nANSWER:")
    plain = dataclasses.replace(model, template="plain")  # ends with the image
    assert decoded(plain, encode_step(plain, question, "x")) == "<image>x ###\nANSWER:"


def test_second_step_continues_after_the_reasoning(model, folder, monkeypatch):
    """The first generation returns reasoning; in the last row it leaves no room for an answer."""
    rows = rows_of(model, ScienceQA(folder, "test"), PredictOptions(limit=3, without_images=True), 3)
    calls = []

    def answers(self, prompts, settings):
        calls.append(([decoded(model, np.asarray(p.tokens)) for p in prompts], settings))
        texts = [" north is up \n", "", " up" * 900] if len(calls) == 1 else [" B.", " A. "]
        return [Generation(text=text) for text in texts]

    monkeypatch.setattr(LlavaModel, "answers", answers)
    settings = model.settings(max_new_tokens=99, temperature=0.5, seed=7)
    (batch,) = answer_batches(model, rows, None, settings, 8, generate=generate_two_steps)
    assert [text for _, text in batch] == [
        "north is up\n The answer is B.",
        "\n The answer is A.",
        ("up " * 900).strip() + "\n The answer is ",
    ]
    (first, first_settings), (second, second_settings) = calls
    assert second == [f"{first[0]} north is up ###\nANSWER:", f"{first[1]} ###\nANSWER:"]
    assert first_settings == dataclasses.replace(second_settings, max_new_tokens=99)
    assert second_settings == GenerationConfig(model.settings().stop_ids, ("###",), 64, temperature=0.5, seed=7)


def test_batched_two_steps_equal_single_ones(model, folder):
    """No row of a batch gets the reasoning or image of another."""
    source = ScienceQA(folder, "test")
    rows = rows_of(model, source, PredictOptions(missing_images="skip"), 5)
    settings = model.settings(max_new_tokens=5)

    def texts(rows, batch):
        batches = answer_batches(model, rows, source.images, settings, batch, generate=generate_two_steps)
        return [text for part in batches for _, text in part]

    together = texts(rows, 8)
    assert together == [text for row in rows for text in texts([row], 1)] and len(set(together)) == 5
