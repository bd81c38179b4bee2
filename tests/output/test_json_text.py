"""The strict parser: one error for everything that is not plain JSON."""

import pytest

from llava_jax.output.json_text import parse_json

REFUSED = {
    "5,000 digits": ("[" + "9" * 5000 + "]", "5,000 digits"),
    "NaN": ('{"a": NaN}', "NaN is not JSON"),
    "-Infinity": ("[-Infinity]", "-Infinity is not JSON"),
    "1e999": ("[1e999]", "too large"),
    "same key twice": ('{"a": 1, "a": 1}', "'a' occurs twice"),
    "same key twice, inside": ('[{"b": {"c": 0, "c": 1}}]', "'c' occurs twice"),
    "100,000 brackets": ("[" * 100_000, "nested too deeply"),
    "truncated": ('{"a": ', "Expecting value"),
    "empty": ("", "Expecting value"),
    "no UTF-8": (b'{"a": "\xff"}', "can't decode"),
}


@pytest.mark.parametrize("text, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_plain_json_raises_one_kind_of_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_and_encodings_do_not_matter(encoding):
    assert parse_json('{"é": [1, -2.5e3, null, true]}'.encode(encoding)) == {"é": [1, -2500.0, None, True]}
    assert parse_json("\ufeff[]") == []
