import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_jax.evaluation.scienceqa.parse import index_of, lenient, stated_letter, strict

CHOICES = ("red", "blue", "a dog")
# a model's text: (strict letter, lenient letter) with three choices
EDGES = {
    "A": ("A", "A"),
    "The answer is B.": ("B", "B"),
    "Because of this. The answer is C.": ("C", "C"),
    "B. blue": ("B", "B"),
    "The answer is B": (None, "B"),  # no character after the letter
    "The answer is B\n": (None, "B"),  # the original's dot does not match a line break
    "The answer is B!": ("B", "B"),
    "The answer is Blue.": ("B", "B"),
    "The answer is a dog.": (None, "C"),
    "The answer is Antarctica.": ("A", None),  # strict accepts any character after the letter
    "The answer is B because it is.": ("B", "B"),
    "B. blue. The answer is A.": ("B", None),
    "The answer is A. No. The answer is A.": (None, "A"),
    "The answer is A. No. The answer is B.": (None, None),
    "A.": (None, "A"),
    "(A)": (None, "A"),
    "(b) blue": (None, "B"),
    "B) blue": (None, "B"),
    "a": (None, "A"),
    "Answer: A": (None, "A"),
    "ANSWER: B.": (None, "B"),
    "###\nANSWER:\nC.": (None, "C"),
    "the correct answer is (c)": (None, "C"),
    "the answer is b.": (None, "B"),
    "The answer is a dog": (None, "C"),
    "The answer is a cat": (None, None),
    "a dog.": (None, "C"),  # a full choice
    "Blue": (None, "B"),
    "A dog": (None, "C"),
    "E": ("E", None),  # not one of the choices
    "The answer is D.": ("D", None),
    "The answer is Z.": ("Z", None),
    "F": (None, None),
    "": (None, None),
    " A": (None, "A"),
    "A B": (None, None),
    "I do not know.": (None, None),
    "FAILED": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("text", EDGES)
def test_letters_of_edge_cases(text):
    assert (strict(text), lenient(text, CHOICES)) == EDGES[text]


def published(text: str) -> str:
    """The published rule, implemented independently."""
    if text in ["A", "B", "C", "D", "E"]:
        return text
    if len(text) >= 3 and text[0] in ["A", "B", "C", "D", "E"] and text[1:3] == ". ":
        return text[0]
    letters = re.compile(r"The answer is ([A-Z]).").findall(text)
    return letters[0] if len(letters) == 1 else "FAILED"


PIECES = st.sampled_from(["The answer is ", "A", "B", "E", "F", ".", " ", ". ", "\n", "\r", "!", "é", "(", ")", "a"])


@given(st.lists(PIECES, max_size=8).map("".join))
def test_strict_equals_the_published_rule(text):
    assert (strict(text) or "FAILED") == published(text)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_lenient_differs_from_strict_only_inside_a_word(text):
    letter, strict_letter = lenient(text, CHOICES), strict(text)
    assert letter in (None, "A", "B", "C")
    assert None in (letter, strict_letter) or letter == strict_letter or re.search(r"The answer is [A-Z]\w", text)


def test_empty_text_matches_no_empty_choice():
    assert lenient("", ("", "x")) is lenient("The answer is .", (".", "x")) is None


def test_long_runs_of_spaces_are_fast():
    began = time.process_time()
    for start in ("answer", "answer is", "the answer is a"):
        assert lenient(start + " " * 50_000 + "@", CHOICES) is None
    assert time.process_time() - began < 2  # with backtracking it takes half a minute


def test_stated_letter_applies_only_the_last_rule():
    assert [stated_letter(text) for text in ("A", "A. red", "The answer is A.", "The answer is A")] == [
        None,
        None,
        "A",
        None,
    ]


@pytest.mark.parametrize(
    "letter, choices, index", [("A", 2, 0), ("B", 2, 1), ("C", 2, -1), ("F", 5, -1), (None, 5, -1)]
)
def test_index_of_letters_within_and_beyond_the_choices(letter, choices, index):
    assert index_of(letter, choices) == index
