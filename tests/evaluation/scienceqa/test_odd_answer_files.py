"""Odd answers files: the answers that are read, or what is reported."""

import gzip
import json

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.answers_file import read_texts
from llava_jax.evaluation.scienceqa.files import read_answers

LINES = ['{"question_id": "1", "text": "The answer is B."}', '{"question_id": "2", "text": "é\u2028"}']
TEXT = "\n".join(LINES) + "\n"
ANSWERS = {"1": "The answer is B.", "2": "é\u2028"}
RESULT = {"acc": 0.0, "correct": 0, "count": 2, "results": {"1": 1, "2": 0}, "outputs": ANSWERS}
DEEP = "[" * 30_000 + "]" * 30_000

READ = {  # name: content of JSON Lines that holds ANSWERS
    "plain": TEXT,
    "byte order mark": "\ufeff" + TEXT,
    "UTF-16, as PowerShell's > writes": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16, big endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "CRLF": TEXT.replace("\n", "\r\n"),
    "blank lines": "\n\n" + TEXT.replace("\n", "\n \n"),
    "no line break at the end": TEXT.rstrip("\n"),
    "numbers as ids": TEXT.replace('"1"', "1").replace('"2"', "2"),
    "white space around the lines": "\n".join(f" {line}\t" for line in LINES),
    "more keys": TEXT.replace("}", ', "metadata": {}, "score": 1e5}'),
    "escapes": TEXT.replace("é", r"\u00e9"),
}
FAULTS = {  # name: (content, part of the message)
    "empty": ("", "empty"),
    "white space": (" \n\r\n", "empty"),
    "cut off": (TEXT[:-9], "line 2 is broken JSON"),
    "first line cut off": (TEXT[9:], "line 1 is broken JSON"),
    "two objects on a line": ("".join(LINES) + "\n" + LINES[0].replace("1", "3"), "line 1 is broken JSON (Extra data"),
    "trailing comma": (TEXT.replace("}", "},"), "line 1 is broken JSON (Extra data"),
    "single quotes": (TEXT + "{'question_id': '3', 'text': 'A'}", "line 3 is broken JSON (Expecting property name"),
    "NaN": (TEXT.replace("}", ', "score": NaN}'), "line 1 is broken JSON (NaN is not JSON"),
    "1e999": (TEXT.replace("}", ', "score": 1e999}'), "line 1 is broken JSON (the number 1e999 is too large"),
    "5,000 digits": (TEXT.replace("}", f', "score": {"9" * 5000}}}'), "an integer has 5,000 digits"),
    "deep": (TEXT.replace("}", f', "score": {DEEP}}}'), "line 1 is broken JSON (it is nested too deeply"),
    "a key twice": (TEXT.replace("}", ', "text": "A"}'), "line 1 is broken JSON (the key 'text' occurs twice"),
    "two answers to one question": (TEXT + LINES[0], "line 3: question 1 again, after line 1"),
    "the same, once as a number": (TEXT + LINES[0].replace('"1"', "1"), "line 3: question 1 again, after line 1"),
    "id is 1.0": (TEXT.replace('"1"', "1.0"), 'line 1: needs the keys "question_id"'),
    "no text": (TEXT.replace('"text"', '"answer"'), 'needs the keys "question_id" and "text"'),
    "null": ("null", "NoneType"),
    "list of answers": (f"[{', '.join(LINES)}]", "found list"),
    "result file with an id twice": ('{\n"outputs": {"1": "A",\n"1": "B"}}', "broken JSON (the key '1' occurs twice"),
    "result file cut off": (json.dumps(RESULT, indent=2)[:-9], "answers.jsonl: broken JSON ("),
    "Latin-1": (TEXT.replace("\u2028", "").encode("latin-1"), "is not UTF-8 text (byte"),
    "git-lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "web page": ("<!DOCTYPE html>\n<html></html>\n", "web page"),
    "gzip": (gzip.compress(TEXT.encode(), mtime=0), "compressed (gzip). Unpack it"),
    "CSV": ("question_id,text\n1,A\n", "line 1 is broken JSON"),
    "NULs": (b"\0" * 64, "line 1 is broken JSON"),
}


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", READ)
def test_odd_but_valid_file_holds_the_answers(tmp_path, name):
    path = write(tmp_path / "answers.jsonl", READ[name])
    assert read_answers(path).texts == read_texts(path) == ANSWERS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("indent", [None, 2])
def test_result_file_is_read_in_any_encoding(tmp_path, encoding, indent):
    text = json.dumps(RESULT, indent=indent, ensure_ascii=False)
    answers = read_answers(write(tmp_path / "result.json", text.encode(encoding)))
    assert answers.texts == ANSWERS and answers.results == {"1": 1, "2": 0}


@pytest.mark.parametrize("name", FAULTS)
def test_invalid_answers_are_named_with_file_and_line(tmp_path, name):
    content, message = FAULTS[name]
    path = write(tmp_path / "answers.jsonl", content)
    with pytest.raises(DataError) as caught:
        read_answers(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_missing_answers_name_a_similar_file_and_urls_are_refused(tmp_path):
    write(tmp_path / "answers.jsonl", TEXT)
    with pytest.raises(DataError, match=r"there is answers.jsonl"):
        read_answers(tmp_path / "answer.jsonl")
    with pytest.raises(ConfigError, match="is a URL"):
        read_answers("https://host/answers.jsonl")
