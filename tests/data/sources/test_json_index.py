"""Scanning a JSON in chunks, and which stored indexes are accepted."""

import json
import os

import numpy as np
import pytest

from llava_jax.data.example import id_hash
from llava_jax.data.sources import json_index, json_scan
from llava_jax.data.sources.combine import Concatenated, Subset, id_hashes, train_eval_split
from llava_jax.data.sources.json_index import open_index
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import ConfigError, DataError


def row(i, text="What is it?") -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "é漢🚌"}]
    return {"id": f"№{i}", "conversations": turns}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(json_index, "MIN_BYTES_KEPT", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "data" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps([row(i) for i in range(40)], ensure_ascii=False), encoding="utf-8")
    return path


def index_file(path):
    return path.with_name("train.json.index.npz")


@pytest.fixture
def scans(monkeypatch):
    """The calls of the function that parses a file."""
    calls, scan = [], json_index.scan_rows
    monkeypatch.setattr(json_index, "scan_rows", lambda *args: calls.append(args) or scan(*args))
    return calls


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("layout", [dict(), dict(indent=3), dict(ensure_ascii=False), dict(separators=(",", ":"))])
def test_rows_are_found_at_any_chunk_boundary(tmp_path, monkeypatch, chunk_bytes, layout):
    monkeypatch.setattr(json_scan, "CHUNK_BYTES", chunk_bytes)
    rows = [row(i, '"]},[' + "\\" * i) for i in range(9)]
    path = tmp_path / "train.json"
    path.write_text("\ufeff \n" + json.dumps(rows, **({"ensure_ascii": False} | layout)) + "\n\n", encoding="utf-8")
    index = open_index(path).rows
    data = path.read_bytes()
    assert [json.loads(data[start:end]) for start, end, *_ in index.tolist()] == rows
    assert index[:, 2].tolist() == [id_hash(r["id"]) for r in rows]


@pytest.mark.parametrize("chunk_bytes", [1, 5, 64, 10_000])
def test_error_position_does_not_depend_on_chunk_size(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(json_scan, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "train.json"
    text = json.dumps([row(0), row(1), row(2)], indent=1, ensure_ascii=False)
    for offset, fault in ((text.index("№2") + 3, "~"), (text.index('"№1'), "]")):
        broken = text[:offset] + fault + text[offset:]
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(broken)
        position = f"line {expected.value.lineno} column {expected.value.colno}: {expected.value.msg}"
        with pytest.raises(DataError, match=r"row \d: broken JSON at " + position):
            open_index(path)
    path.write_bytes(text.encode().replace("漢".encode(), "漢".encode()[:2]))
    with pytest.raises(UnicodeDecodeError) as expected:
        path.read_bytes().decode()
    with pytest.raises(DataError, match=f"not UTF-8 text .byte {expected.value.start}.. Save"):
        open_index(path)


def as_lines(rows) -> str:
    return "\r\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)


def test_json_lines_are_indexed_with_their_line_numbers(path, scans):
    path.write_text("\ufeff\n" + as_lines([row(i) for i in range(40)]), encoding="utf-8", newline="")
    index, again = open_index(path), open_index(path)
    assert len(scans) == 1 and np.array_equal(index.rows, again.rows)
    assert index.rows[:, 2].tolist() == [id_hash(f"№{i}") for i in range(40)]
    assert index.rows[:, 3].tolist() == [2 + 2 * i for i in range(40)]
    source = LlavaJson(path)
    assert source.raw(39) == (row(39), f"{path}: line 80") and source[0].id == "№0"


def test_line_that_is_too_long_is_skipped_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_scan, "MAX_ROW_CHARS", 500)
    path = tmp_path / "train.json"
    path.write_text("\n".join(json.dumps(row(i, "x" * (1700 if i == 1 else 9))) for i in range(3)))
    broken = {}
    assert open_index(path, broken).rows[:, 3].tolist() == [1, 2, 3]
    assert LlavaJson(path, is_strict=False).raw(2)[0]["id"] == "№2"
    assert "line 2: more than" in str(broken.pop(1)) and not broken


@pytest.mark.parametrize("form", [json.dumps, as_lines])
@pytest.mark.parametrize("is_strict", [True, False])
def test_rows_with_images_need_a_folder_at_every_opening(path, form, is_strict):
    rows = [row(i) for i in range(3)]
    path.write_text(form(rows), encoding="utf-8")
    assert len(LlavaJson(path, is_strict=is_strict)) == 3
    with_image = row(3, "<image>") | {"images": ["a.jpg"]}
    path.write_text(form([*rows, row(4) | {"image": None}, with_image]), encoding="utf-8")
    for _ in range(2):  # the second one reads the index
        with pytest.raises(ConfigError, match="(row 4|line 9) names the image 'a.jpg', so .*image_folder"):
            LlavaJson(path, is_strict=is_strict)
    assert len(LlavaJson(path, path.parent, is_strict=is_strict)) == 5


@pytest.mark.parametrize("name", ["trian.json", "train.jsonl", "Train.json"])
def test_missing_file_names_a_similar_one(path, name):
    with pytest.raises(DataError, match=f"{name}: cannot be read .No such file.*; there is train.json"):
        open_index(path.with_name(name))


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_index(tmp_path / "pipe")


def test_unterminated_row_is_read_up_to_the_limit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(json_scan, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_scan, "MAX_ROW_CHARS", 1000)
    path = tmp_path / "train.json"
    path.write_text('[{"id": "' + "x" * 100_000)
    lengths = []
    read_more = json_scan._TextReader.read_more
    monkeypatch.setattr(
        json_scan._TextReader, "read_more", lambda self: lengths.append(len(self.text)) or read_more(self)
    )
    with pytest.raises(DataError, match="row 0: broken JSON at line 1 column 9: Unterminated string.*a row of more"):
        open_index(path)
    assert max(lengths) <= 1100


def test_the_second_opening_parses_nothing(path, scans):
    first = open_index(path).rows
    second = open_index(path).rows
    assert len(scans) == 1 and index_file(path).exists()
    assert np.array_equal(first, second)
    assert [p.name for p in path.parent.iterdir() if "partial" in p.name] == []


def test_small_file_stores_no_index(path, scans, monkeypatch):
    monkeypatch.setattr(json_index, "MIN_BYTES_KEPT", path.stat().st_size + 1)
    open_index(path)
    open_index(path)
    assert len(scans) == 2 and not index_file(path).exists()


def test_index_goes_to_the_cache_if_folder_is_read_only(path, scans, tmp_path):
    index_file(path).mkdir()  # root can write anywhere, but not replace a folder by a file
    for _ in range(2):
        open_index(path)
    assert len(scans) == 1
    assert len(list((tmp_path / "cache" / "llava_jax").iterdir())) == 1
    other = path.with_name("other.json")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    (path.parent / "other.json.index.npz").mkdir()
    open_index(other)
    assert len(scans) == 2, "must not use the index of another path"


def test_index_that_cannot_be_stored_is_only_a_warning(path, scans, tmp_path, capsys):
    index_file(path).mkdir()
    (tmp_path / "cache").write_text("a file")
    assert len(open_index(path).rows) == 40
    assert "train.json: its index cannot be stored" in capsys.readouterr().err


def truncated(data: bytes, index) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, index) -> bytes:
    middle = data.index(index[0, 0].tobytes()) + 300
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [truncated, flipped, lambda *_: b"", lambda *_: b"not a zip", lambda *_: b"\x80\x04N."]
)
def test_damaged_index_is_rebuilt(path, scans, damage):
    good = open_index(path).rows
    index_file(path).write_bytes(damage(index_file(path).read_bytes(), good))
    assert np.array_equal(open_index(path).rows, good)
    assert len(scans) == 2
    open_index(path)
    assert len(scans) == 2, "the rebuilt index must be stored"


def plant(path, change):
    """Stores an index that is undamaged but wrong."""
    with np.load(index_file(path), allow_pickle=False) as archive:
        arrays = {name: archive[name].copy() for name in archive}
    arrays["stamp"], arrays["rows"] = change(arrays["stamp"], arrays["rows"])
    with open(index_file(path), "wb") as file:
        np.savez(file, **arrays)


WRONG_INDEXES = {
    "another version": lambda stamp, rows: (stamp + [1, 0, 0], rows),
    "another size": lambda stamp, rows: (stamp + [0, 1, 0], rows),
    "another time": lambda stamp, rows: (stamp + [0, 0, 1], rows),
    "float": lambda stamp, rows: (stamp, rows.astype(float)),
    "flat": lambda stamp, rows: (stamp, rows.ravel()),
    "no rows": lambda stamp, rows: (stamp, rows[:0]),
    "out of order": lambda stamp, rows: (stamp, rows[::-1]),
    "beyond the file": lambda stamp, rows: (stamp, rows + [10**6, 10**6, 0, 0]),
    "negative": lambda stamp, rows: (stamp, rows - [10**6, 0, 0, 0]),
    "no hash": lambda stamp, rows: (stamp, rows - [0, 0, 2**50, 0]),
    "pickled": lambda stamp, rows: (stamp, rows.astype(object)),
}


@pytest.mark.parametrize("name", WRONG_INDEXES)
def test_implausible_index_is_rebuilt(path, scans, name):
    good = open_index(path).rows
    plant(path, WRONG_INDEXES[name])
    assert np.array_equal(open_index(path).rows, good)
    assert len(scans) == 2


def test_a_changed_file_is_indexed_again(path, scans):
    open_index(path)
    path.write_text(json.dumps([row(7)]))
    assert len(open_index(path).rows) == 1
    assert len(scans) == 2


@pytest.mark.parametrize(
    "change",
    [lambda stamp, rows: (stamp, rows + [1, 0, 0, 0]), lambda stamp, rows: (stamp, rows + [0, 0, 1, 0]),
     lambda stamp, rows: (stamp, np.concatenate([rows[1:, :2], rows[1:, 2:] * 0 + [3, 0]], 1))],
)  # fmt: skip
def test_plausible_but_wrong_index_never_yields_a_row(path, change):
    open_index(path)
    plant(path, change)
    source = LlavaJson(path, path.parent)
    with pytest.raises(DataError, match="train.json: row 3 does not match the index.*train.json.index.npz"):
        source[3]


def test_a_file_that_grows_while_it_is_read_is_refused(path, monkeypatch):
    scan = json_index.scan_rows

    def slow(file, table):
        scan(file, table)
        with open(path, "a") as more:
            more.write(" ")

    monkeypatch.setattr(json_index, "scan_rows", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        open_index(path)
    assert not index_file(path).exists()


def test_id_hashes_come_from_the_index(path, monkeypatch):
    source = LlavaJson(path, path.parent)
    expected = [id_hash(f"№{i}") for i in range(40)]
    both = Concatenated([source, Subset(source, range(3))])
    assert id_hashes(both).tolist() == expected + expected[:3]
    slow = train_eval_split(Subset(source, range(40)), 0.2, 3)[1]
    monkeypatch.setattr(type(source), "raw", None)  # no row is read
    assert np.array_equal(train_eval_split(source, 0.2, 3)[1].indices, slow.indices)


def test_concatenated_sources_follow_one_another():
    joined = Concatenated(["ab", "", "cde"])
    assert [joined[i] for i in range(len(joined))] == list("abcde") and joined[-1] == "e"
    with pytest.raises(IndexError):
        joined[5]
