"""A further turn continues with the ids that the model chose, not with those of the answer's text."""

import numpy as np
import pytest

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.inference import answer_memory
from llava_jax.inference.answer_memory import AnswerMemory
from llava_jax.text.encode import encode_turns

TOKENIZER = open_tokenizer("tiny")
OPTIONS = dict(tokenizer=TOKENIZER, template="vicuna_v1", features=4, wraps_images=False)
TURNS = [("human", "what color is it ?"), ("gpt", "red"), ("human", "why ?"), ("gpt", "no"), ("human", "is it ?")]


def ids_of(*turns) -> tuple[np.ndarray, np.ndarray]:
    return encode_turns(list(turns), 0, **OPTIONS)


def letters(text: str) -> list[int]:
    """The ids of a text that is split into its letters: another spelling than the tokenizer's."""
    first, *rest = text
    return TOKENIZER.encode(f" {first}") + [TOKENIZER.backend.token_to_id(letter) for letter in rest]


@pytest.fixture
def memory():
    memory = AnswerMemory(TOKENIZER)
    memory.add(ids_of(TURNS[0])[0], [*letters("red"), TOKENIZER.eos_id])
    return memory


def test_letters_are_another_spelling():
    assert TOKENIZER.decode(letters("red")).strip() == "red"
    assert letters("red") != TOKENIZER.encode(" red")


def test_known_answer_keeps_its_ids(memory):
    ids, mask = ids_of(*TURNS)
    restored = memory.restore(ids, mask, ["red", "no"])
    prompt = ids_of(TURNS[0])[0]
    expected = [*prompt, *letters("red"), TOKENIZER.eos_id]
    assert restored[: len(expected)].tolist() == expected
    spelled_out = len(letters("red")) - len(TOKENIZER.encode(" red"))
    assert restored[len(expected) :].tolist() == ids[len(expected) - spelled_out :].tolist()


def test_later_answers_are_found_after_restored_ones(memory):
    ids, mask = ids_of(*TURNS[:3])
    second = memory.restore(ids, mask, ["red"])
    memory.add(second, [*letters("no"), TOKENIZER.eos_id])
    ids, mask = ids_of(*TURNS)
    restored = memory.restore(ids, mask, ["red", "no"])
    expected = [*second, *letters("no"), TOKENIZER.eos_id]
    assert restored[: len(expected)].tolist() == expected


@pytest.mark.parametrize(
    "turns", [[("human", "what size is it ?"), *TURNS[1:3]], [TURNS[0], ("gpt", "blue"), TURNS[2]]]
)
def test_other_question_or_answer_stays(memory, turns):
    ids, mask = ids_of(*turns)
    assert memory.restore(ids, mask, [turns[1][1]]).tolist() == ids.tolist()


def test_white_space_around_the_text_makes_no_difference(memory):
    ids, mask = ids_of(TURNS[0], ("gpt", "red "), TURNS[2])
    assert memory.restore(ids, mask, ["red "]).tolist() != ids.tolist()


def test_oldest_answers_are_dropped(memory, monkeypatch):
    monkeypatch.setattr(answer_memory, "MOST", 2)
    for question in ("a", "b"):
        memory.add(ids_of(("human", question))[0], [5, TOKENIZER.eos_id])
    ids, mask = ids_of(*TURNS[:3])
    assert memory.restore(ids, mask, ["red"]).tolist() == ids.tolist()
