"""Odd JSON files: which rows are accepted, and what is reported of the others. Lenient reading is that of `data check`,
strict reading that of training."""

import bz2
import gzip
import json
import lzma
import re

import pytest

from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import UserError


def row(i, **more) -> dict:
    turns = [{"from": "human", "value": f"What is {i}?"}, {"from": "gpt", "value": "é漢🚌"}]
    return {"id": f"{i}", "conversations": turns} | more


def text(i, **more) -> str:
    return json.dumps(row(i, **more), ensure_ascii=False)


def with_value(value: str, key: str = '"score"') -> str:
    """A row with one more key, whose value is this text."""
    return text(1)[:-1] + f", {key}: {value}}}"


def array_of(*rows: str) -> str:
    return "[" + ",\n".join(rows) + "]"


def between(odd: str) -> str:
    """An array with a good row before and after the odd one."""
    return array_of(text(0), odd, text(2))


def lines(*rows: str, end: str = "\n") -> str:
    return end.join(rows) + end


def nested(opening: str, closing: str, depth: int = 30_000) -> str:
    return opening * depth + "1" + closing * depth


DIGITS = "9" * 5000
TURNS = '"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
NOT_JSON = "expected one array of samples"

# name: (content, the rows in order, "" for an accepted one, else a part of its fault; or a part of the file's fault)
ARRAYS = {
    "plain": (array_of(text(0), text(1)), ["", ""]),
    "byte order mark": ("\ufeff" + array_of(text(0)), [""]),
    "CRLF": (json.dumps([row(0), row(1)], indent=2).replace("\n", "\r\n"), ["", ""]),
    "CR": (json.dumps([row(0)], indent=2).replace("\n", "\r"), [""]),
    "space around it": (" \r\n\t" + array_of(text(0)) + "\n \n", [""]),
    "escaped characters": (json.dumps([row("\u00e9\U0001f68c")]), [""]),
    "NUL as an escape": (json.dumps([row(0, note="a\0b")]), [""]),
    "line separator in a text": (array_of(text("a\u2028b\x85c")), [""]),
    "keys that nobody reads": (between(text(1, model="x", score=1.5e3, tags=[None, True, {"a": []}])), [""] * 3),
    "big but allowed integer": (between(with_value("9" * 4300)), [""] * 3),
    "integer of 5,000 digits": (between(with_value(DIGITS)), ["", "row 1: broken JSON, .*5,000 digits", ""]),
    "negative one": (between(with_value("-" + DIGITS)), ["", "5,001 digits", ""]),
    "5,000 digits inside": (between(with_value(f'{{"a": [{DIGITS}]}}')), ["", "5,000 digits", ""]),
    "5,000 digits as the id": (array_of(f'{{"id": {DIGITS}, {TURNS}}}', text(1)), ["5,000 digits", ""]),
    "float of 5,000 digits": (between(with_value(f"0.{DIGITS}")), [""] * 3),
    "1e999": (between(with_value("1e999")), ["", "line 2 column 1: the number 1e999 is too large", ""]),
    "-1e999": (between(with_value("-1e999")), ["", "too large", ""]),
    "1e-999": (between(with_value("1e-999")), [""] * 3),
    "NaN": (between(with_value("NaN")), ["", "NaN is not JSON; write null", ""]),
    "Infinity": (between(with_value("Infinity")), ["", "Infinity is not JSON", ""]),
    "-Infinity": (between(with_value("-Infinity")), ["", "-Infinity is not JSON", ""]),
    "NaN as the id": (between(f'{{"id": NaN, {TURNS}}}'), ["", "NaN is not JSON", ""]),
    "NaN after a broken row": (array_of("{broken", with_value("NaN"), text(2)), ["broken JSON at", "NaN", ""]),
    "NaN without conversations": (between('{"a": NaN}'), ["", "NaN is not JSON", ""]),
    "a key twice": (between(with_value("1", '"id"')), ["", "the key 'id' occurs twice", ""]),
    "conversations twice": (between(f'{{"id": "1", {TURNS}, {TURNS}}}'), ["", "'conversations' occurs twice", ""]),
    "a key twice in a turn": (
        between('{"id": "1", "conversations": [{"from": "human", "value": "a", "value": "b"}]}'),
        ["", "'value' occurs twice", ""],
    ),
    "a key twice, one escaped": (between(with_value('"x"', r'"\u0069d"')), ["", "'id' occurs twice", ""]),
    "lists nested deeply": (between(with_value(nested("[", "]"))), ["", "row 1: .*nested too deeply", ""]),
    "objects nested deeply": (between(with_value(nested('{"a":', "}"))), ["", "nested too deeply", ""]),
    "deep row of the file": (array_of(nested("[", "]"), text(1)), ["nested too deeply", ""]),
    "deep and not closed": ("[" + "[" * 30_000, ["nested too deeply"]),
    "deep after a broken row": (array_of("{broken", with_value(nested('{"a":', "}")), text(2)), ["broken JSON at", ""]),
    "nested but allowed": (between(with_value(nested("[", "]", 100))), [""] * 3),
    "brackets in a deep row's text": (
        between(with_value(nested("[", "]").replace("1", r'"\"]}"'))),
        ["", "nested too deeply", ""],
    ),
    "lone surrogate in a text": (
        between(text(1).replace("What", r"\ud83d")),
        ["", r"conversations.0. has a lone surrogate", ""],
    ),
    "lone surrogate in an id": (between(f'{{"id": "\\ud83d", {TURNS}}}'), ["", '"id" has a lone surrogate', ""]),
    "lone surrogate elsewhere": (between(with_value('"\\ud83d"')), [""] * 3),
    "NUL in a text": (between(text(1).replace("What", "\0")), ["", "Invalid control character", ""]),
    "line break in a text": (between(text(1).replace("What", "\n")), ["", "line 2 column .*Invalid control", ""]),
    "tab in a text": (between(text(1).replace("What", "\t")), ["", "Invalid control character", ""]),
    "wrong escape": (between(text(1).replace("What", r"\x41")), ["", "Invalid .escape", ""]),
    "single quotes": ("[{'id': '0'}]", ["row 0: broken JSON at line 1 column 3: Expecting property name"]),
    "one row in single quotes": (between("{'id': '1', 'conversations': []}"), ["", "Expecting property name", ""]),
    "Python's True and None": (between(with_value("True")), ["", "Expecting value", ""]),
    "trailing comma in a row": (between(text(1)[:-1] + ",}"), ["", "Expecting property name", ""]),
    "trailing comma in the array": ("[" + text(0) + ",]", ["", "Expecting value"]),
    "two commas": ("[" + text(0) + ",," + text(1) + "]", ["", "Expecting value", ""]),
    "comment": ("[" + text(0) + ", // two\n" + text(1) + "]", ["", "line 1 .*Expecting value", ""]),
    "comment at the start": ("// rows\n[" + text(0) + "]", f"begins with '// rows.*{NOT_JSON}"),
    "hexadecimal number": (between(with_value("0x10")), ["", "Expecting ',' delimiter", ""]),
    "number with a leading zero": (between(with_value("007")), ["", "Expecting ',' delimiter", ""]),
    "no quotes around a key": (between('{id: "1"}'), ["", "Expecting property name", ""]),
    "no comma between rows": ("[" + text(0) + text(1) + "]", ["", "no comma or ] after it", ""]),
    "concatenated arrays": (array_of(text(0)) + array_of(text(1)), ["", "text after the end of the array", ""]),
    "NULs after the end": (array_of(text(0)) + "\0" * 100, ["", "text after the end of the array"]),
    "list in a list": ("[" + array_of(text(0), text(1)) + "]", ["expected an object, found list"]),
    "a list of texts": ('["a", "b"]', ["expected an object, found str"] * 2),
    "null rows": ("[null, " + text(1) + "]", ["found NoneType", ""]),
    "empty list": ("[]", "the array has no samples"),
    "truncated": (array_of(text(0), text(1))[:-30], ["", "Is the download complete"]),
    "truncated after a row": (array_of(text(0))[:-1], ["", "no comma or ]"]),
    "only a bracket": ("[", ["broken JSON"]),
    "id is a list": (between(f'{{"id": [1], {TURNS}}}'), ["", '"id" must be a string', ""]),
    "id is 1.0": (between(f'{{"id": 1.0, {TURNS}}}'), ["", '"id" must be a string', ""]),
    "id is null": (between(f'{{"id": null, {TURNS}}}'), ["", '"id" must be a string', ""]),
    "conversations are an object": (between('{"id": "1", "conversations": {}}'), ["", "must be a list", ""]),
    "pairs of image and caption": ('[{"image": "a.jpg", "caption": "A bus."}]', "data captions"),
    "bad UTF-8": (array_of(text(0)).encode().replace("漢".encode(), b"\xe6\xbc"), "not UTF-8 text .byte"),
    "Latin-1": (array_of(text(0).replace("漢🚌", "")).encode("latin-1"), "not UTF-8 text .byte"),
}
LINES = {
    "plain": (lines(text(0), text(1)), ["", ""]),
    "one line": (text(0), [""]),
    "no line break at the end": (lines(text(0), text(1)).rstrip(), ["", ""]),
    "CRLF": (lines(text(0), text(1), end="\r\n"), ["", ""]),
    "blank lines": ("\n\n" + lines(text(0), "", " \t", with_value("NaN"), "", text(2)), ["", "line 6: .*NaN", ""]),
    "byte order mark": ("\ufeff" + lines(text(0), text(1)), ["", ""]),
    "byte order mark in the middle": (lines(text(0), "\ufeff" + text(1)), ["", ""]),
    "line separator in a text": (lines(text("a\u2028b\x85c"), text(1)), ["", ""]),
    "broken line": (lines(text(0), "{broken", text(2)), ["", "line 2: broken JSON at column 2: Expecting", ""]),
    "first line broken": (lines('{"id": 1,', text(1)), ["line 1: broken JSON at column", ""]),
    "last line cut off": (lines(text(0), text(1))[:-20], ["", "line 2: .*Is the download complete"]),
    "5,000 digits": (lines(text(0), with_value(DIGITS), text(2)), ["", "line 2: .*5,000 digits", ""]),
    "1e999": (lines(with_value("1e999"), text(1)), ["line 1: .*too large", ""]),
    "a key twice": (lines(text(0), with_value("1", '"id"'), text(2)), ["", "line 2: .*'id' occurs twice", ""]),
    "deep": (lines(text(0), with_value(nested("[", "]")), text(2)), ["", "line 2: .*nested too deeply", ""]),
    "first line deep": (lines(with_value(nested("[", "]")), text(1)), ["line 1: .*nested too deeply", ""]),
    "two objects on a line": (lines(text(0), text(1) + text(2)), ["", "line 2: .*Write one object on each line"]),
    "commas after the objects": (text(0) + ",\n" + text(1), ["line 1: .*text after the object", ""]),
    "single quotes": (lines(text(0), str(row(1))), ["", "line 2: .*Expecting property name"]),
    "comment": (lines(text(0), "# two", text(2)), ["", "line 2: .*Expecting value", ""]),
    "lines that are no objects": (lines(text(0), "3", "[]", "null"), ["", "found int", "found list", "NoneType"]),
    "no id": (lines(text(0), "{" + TURNS + "}"), ["", 'line 2: key "id" must be a string']),
    "NUL in a line": (lines(text(0), text(1).replace("What", "\0")), ["", "line 2: .*Invalid control"]),
    "NULs at the end": (lines(text(0)) + "\0" * 50, ["", "line 2: broken JSON at column 1"]),
    "bad UTF-8 in a line": (
        lines(text(0), text(1), text(2)).encode().replace(b"1?", b"\xff?"),
        ["", "line 2: not UTF-8 text .byte", ""],
    ),
    "lone surrogate": (lines(json.dumps(row("\ud83d")), text(1)), ["line 1: .*lone surrogate", ""]),
    "objects over several lines": (lines(json.dumps(row(0), indent=1), json.dumps(row(1), indent=1)), "not JSON Lines"),
    "one object over several lines": (json.dumps(row(0), indent=1), f"not a JSON array.*{NOT_JSON}"),
    "an object with the list inside": (json.dumps({"a": 1, "data": [row(0)]}), "samples are in its key 'data'"),
    "the same, indented": (json.dumps({"data": [row(0)]}, indent=1), "samples are in its key 'data'"),
    "another object": ('{"loss": 3}', f"not a JSON array.*{NOT_JSON}"),
    "pairs of image and caption": (lines('{"image": "a.jpg", "caption": "A bus."}') * 2, "data captions"),
}
OTHER_FILES = {
    "empty": (b"", "is empty"),
    "white space": (b" \n\t\r\n", "is empty"),
    "byte order mark only": ("\ufeff", "is empty"),
    "UTF-16": (array_of(text(0)).encode("utf-16"), "UTF-16. Save it as UTF-8"),
    "UTF-16, big endian": (b"\xfe\xff" + array_of(text(0)).encode("utf-16-be"), "UTF-16"),
    "UTF-16 without a mark": (array_of(text(0)).encode("utf-16-le"), "UTF-16"),
    "UTF-32": (array_of(text(0)).encode("utf-32"), "UTF-16|not UTF-8"),
    "gzip": (gzip.compress(array_of(text(0)).encode(), mtime=0), r"compressed \(gzip\). Unpack it"),
    "bzip2": (bz2.compress(array_of(text(0)).encode()), "bzip2"),
    "xz": (lzma.compress(array_of(text(0)).encode()), "xz"),
    "git-lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "web page": ("<!DOCTYPE html>\n<html>404</html>", "web page"),
    "server's reply": ("Entry not found", "server's reply"),
    "server's reply in JSON": ('{"error":"Repository not found"}', "server's reply"),
    "a number": ("17", f"begins with '17'.*{NOT_JSON}"),
    "a text": ('"rows"', NOT_JSON),
    "null": ("null", NOT_JSON),
    "YAML": ("- id: 0\n  conversations: []\n", f"begins with '- id: 0.*{NOT_JSON}"),
    "CSV": ("id,image,caption\n0,a.jpg,x\n", f"begins with 'id,image.*{NOT_JSON}"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "begins with 'PK|not UTF-8"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8"),
    "random bytes": (bytes(range(250, 0, -1)), "not UTF-8"),
    "NULs": (b"\0" * 4096, NOT_JSON),
    "terminal escape": ("\x1b[2J", NOT_JSON),
}
CASES = {
    **{f"array, {name}": case for name, case in ARRAYS.items()},
    **{f"lines, {name}": case for name, case in LINES.items()},
    **OTHER_FILES,
}


@pytest.mark.parametrize("name", CASES)
def test_odd_file_has_the_decided_rows_and_faults(tmp_path, name):
    content, expected = CASES[name]
    path = tmp_path / "rows.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if isinstance(expected, str):
        for is_strict in (True, False):
            with pytest.raises(UserError, match=f"rows.json:? .*{expected}") as caught:
                LlavaJson(path, is_strict=is_strict)
            assert "\x1b" not in str(caught.value)
        return
    source = LlavaJson(path, is_strict=False)
    faults = ["; ".join(message for _, message in read_leniently(source, i).faults) for i in range(len(source))]
    assert len(faults) == len(expected), faults
    for fault, pattern in zip(faults, expected, strict=True):
        assert bool(fault) == bool(pattern) and re.search(pattern, fault), faults
    if first := next(filter(None, faults), None):
        with pytest.raises(UserError) as caught:
            LlavaJson(path)
        assert str(caught.value) == first
    else:
        assert len(LlavaJson(path)) == len(expected)


def test_there_are_enough_odd_files():
    assert len(CASES) >= 120
