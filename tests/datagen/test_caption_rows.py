"""Files of captions: formats, faults, keys, and reading rows again."""

import json

import pytest

from llava_jax.datagen import caption_rows
from llava_jax.datagen.caption_rows import open_captions, read_captions, row_lines
from llava_jax.errors import DataError

ROWS = [{"image": f"{i}.jpg", "caption": f" caption {i} é漢 ", "url": f"https://x/{i}", "id": i} for i in range(25)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caption_rows, "BLOCK", 10)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FORMATS = {
    "lines": lines_of(ROWS),
    "lines with CRLF and blank ones": lines_of(ROWS).replace("\n", "\r\n\r\n"),
    "array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "byte order mark": "\ufeff" + lines_of(ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_and_keys(tmp_path, name):
    first = open_captions(write(tmp_path / "a.jsonl", FORMATS["lines"]))
    file = open_captions(write(tmp_path / "b.json", FORMATS[name]))
    assert len(file) == 25 and len(file.blocks) == 3 and file.blocks == first.blocks
    for keys in ("row_keys", "image_keys", "url_keys"):
        assert getattr(file, keys).tolist() == getattr(first, keys).tolist()
        assert len(set(getattr(file, keys).tolist())) == 25
    captions = [caption for block in range(3) for caption in read_captions(file, block)]
    assert captions == [row["caption"].strip() for row in ROWS]
    assert [json.loads(line) for line in row_lines(file, [3, 24, 0])] == [ROWS[3], ROWS[24], ROWS[0]]


def test_tsv_rows_get_image_names_by_line(tmp_path):
    path = write(tmp_path / "train.tsv", "\ufeffa cat \thttp://x/a\r\n[a] dog\thttps://y/b")
    file = open_captions(path)
    assert read_captions(file, 0) == ["a cat", "[a] dog"]
    assert [json.loads(line) for line in row_lines(file, [0, 1])] == [
        {"image": "GCC_train_000000000.jpg", "caption": "a cat", "url": "http://x/a"},
        {"image": "GCC_train_000000001.jpg", "caption": "[a] dog", "url": "https://y/b"},
    ]
    swapped = open_captions(write(tmp_path / "swapped", b"[a] dog\thttps://y/b\na cat\thttp://x/a\n"[4:]))
    assert swapped.url_keys.tolist() == file.url_keys.tolist()[::-1] and swapped.is_tsv
    assert file.image_keys.tolist() == [0, 0] and file.row_keys[0] == swapped.row_keys[1]


def test_a_lone_surrogate_in_another_key_stays_as_its_escape(tmp_path):
    line = '{"image": "a.jpg", "caption": "a cat", "author": "\\ud83d"}'
    assert list(row_lines(open_captions(write(tmp_path / "a.jsonl", line)), [0])) == [line + "\n"]


FAULTS = {
    "missing": (None, "missing.jsonl: cannot be read .No such file.*; there is missing.json"),
    "empty": ("", "is empty"),
    "an empty array": ("[]", "no samples"),
    "broken JSON": ('{"image": "a", "caption": "b"}\n{"image": "a"', "line 2: broken JSON"),
    "a missing caption": ('{"image": "a", "caption": "b"}\n{"image": "a"}', 'line 2: key "caption" must be'),
    "an empty caption": ('[{"image": "a", "caption": " "}]', 'row 0: key "caption" must be'),
    "a number": ('{"image": 3, "caption": "b"}', 'line 1: key "image" must be'),
    "NaN": ('{"image": "a", "caption": "b", "score": NaN}', "NaN is not JSON"),
    "a key twice": ('{"image": "a", "caption": "b", "caption": "c"}', "occurs twice"),
    "rows that are lists": ('[["a", "b"]]', 'row 0: key "image" must be'),
    "conversations": ('[{"image": "a", "conversations": []}]', 'row 0: key "caption" must be'),
    "a surrogate": ('{"image": "a", "caption": "\\ud83d"}', "line 1.*lone surrogate"),
    "a book": (json.dumps({"image": "a", "caption": "x" * 10_001}), "line 1: the caption has 10,001 characters"),
    "plain text": ("a cat\na dog\n", "begins with 'a cat"),
    "Latin-1": ('{"image": "a", "caption": "café"}'.encode("latin-1"), "not UTF-8"),
    "UTF-16": ('{"image": "a", "caption": "b"}'.encode("utf-16"), "UTF-16"),
    "gzip": (b"\x1f\x8b\x08\x00", "compressed"),
    "a TSV with its columns swapped": ("http://x/a\ta cat\n", "line 1: expected a caption, a tab and a URL"),
    "a TSV with a blank line": ("a cat\thttp://x/a\n\na dog\thttp://x/b\n", "line 2: expected a caption"),
    "a TSV in Latin-1": ("a cat\thttp://x/a\ncafé\thttp://x/b\n".encode("latin-1"), "line 2: not UTF-8"),
    "a TSV with three columns": ("a cat\thttp://x/a\t1\n", "line 1: expected"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_are_named_by_line(tmp_path, name):
    content, message = FAULTS[name]
    path = tmp_path / "missing.jsonl" if content is None else write(tmp_path / "captions", content)
    write(tmp_path / "missing.json", "[]")
    with pytest.raises(DataError, match=message) as error:
        open_captions(path)
    assert str(path) in str(error.value)


def test_a_folder_is_no_file_of_captions(tmp_path):
    with pytest.raises(DataError, match="not a regular file"):
        open_captions(tmp_path)


@pytest.mark.parametrize("change", ["other captions", "shorter", "removed"])
def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path, change):
    path = write(tmp_path / "a.jsonl", lines_of(ROWS))
    file = open_captions(path)
    if change == "other captions":
        write(path, lines_of(ROWS).replace("caption 13", "caption 99"))
    elif change == "shorter":
        write(path, lines_of(ROWS)[:300])
    else:
        path.unlink()
    with pytest.raises(DataError, match="a.jsonl: changed or removed"):
        read_captions(file, 1)
    with pytest.raises(DataError, match="a.jsonl: changed or removed"):
        list(row_lines(file, [13, 20]))
