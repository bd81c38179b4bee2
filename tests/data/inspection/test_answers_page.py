import pytest

from llava_jax.data.example import Example
from llava_jax.data.inspection.answers_page import format_answers, is_right


@pytest.mark.parametrize(
    "kind, reference, answer, expected",
    [
        ("reasoning", "the cross is top , so left", "the circle is middle , so left", True),
        ("reasoning", "the cross is top , so left", "the cross is top , so right", False),
        ("relation", "it is top and it is middle , so above", "above", True),
        ("color", "red", "red", True),
        ("color", "red", "Red", False),  # as in the accuracy table
        ("conversation", "yes", "no", False),
        ("detail", "one object .", "one object .", None),
        ("caption", "a cat", "a cat", None),
        ("", "A cat", "a  cat.", True),
        ("", "The answer is A.", "The answer is B.", False),
        ("", "A cat sits on a mat", "A cat sits on a mat", None),
        ("", "red", "so red", False),  # not a scene question: no conclusion
    ],
)
def test_answers_are_graded_where_texts_can_be_compared(kind, reference, answer, expected):
    assert is_right(kind, reference, answer) is expected


def test_format_answers_gives_three_lines_per_example():
    examples = [Example(name, (("human", "<image>\nwhat is it ?"), ("gpt", "red")), ()) for name in "ab"]
    lines = format_answers(examples, ["blue", "red", "more"])
    assert lines[:3] == ["  a: what is it ?", "    reference: red", "    answer:    blue"] and len(lines) == 6
