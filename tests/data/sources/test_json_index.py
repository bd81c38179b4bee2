"""json_index.py: rows found in pieces, and when a kept index is believed."""

import json
import os

import numpy as np
import pytest

from llava_jax.data.example import id_hash
from llava_jax.data.sources import json_index
from llava_jax.data.sources.combine import Concatenated, Subset, id_hashes, train_eval_split
from llava_jax.data.sources.json_index import open_index
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import DataError


def row(i, text="What is it?") -> dict:
    talk = [{"from": "human", "value": text}, {"from": "gpt", "value": "é漢🚌"}]
    return {"id": f"№{i}", "conversations": talk}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(json_index, "KEPT_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "data" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps([row(i) for i in range(40)], ensure_ascii=False), encoding="utf-8")
    return path


def kept(path):
    return path.with_name("train.json.index.npz")


@pytest.fixture
def scans(monkeypatch):
    """How often a file was parsed."""
    calls, scan = [], json_index._scan
    monkeypatch.setattr(json_index, "_scan", lambda *args: calls.append(args) or scan(*args))
    return calls


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("layout", [dict(), dict(indent=3), dict(ensure_ascii=False), dict(separators=(",", ":"))])
def test_rows_are_found_wherever_the_pieces_are_cut(tmp_path, monkeypatch, piece, layout):
    monkeypatch.setattr(json_index, "PIECE", piece)
    rows = [row(i, '"]},[' + "\\" * i) for i in range(9)]
    path = tmp_path / "train.json"
    path.write_text("\ufeff \n" + json.dumps(rows, **({"ensure_ascii": False} | layout)) + "\n\n", encoding="utf-8")
    index, _ = open_index(path)
    data = path.read_bytes()
    assert [json.loads(data[start:end]) for start, end, _ in index.tolist()] == rows
    assert index[:, 2].tolist() == [id_hash(r["id"]) for r in rows]


@pytest.mark.parametrize("piece", [1, 5, 64, 10_000])
def test_the_place_of_a_fault_does_not_depend_on_the_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(json_index, "PIECE", piece)
    path = tmp_path / "train.json"
    text = json.dumps([row(0), row(1), row(2)], indent=1, ensure_ascii=False)
    for at, fault in ((text.index("№2") + 3, "~"), (text.index('"№1'), "]")):
        broken = text[:at] + fault + text[at:]
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(json.JSONDecodeError) as whole:
            json.loads(broken)
        place = f"line {whole.value.lineno} column {whole.value.colno}: {whole.value.msg}"
        with pytest.raises(DataError, match=r"row \d: broken JSON at " + place):
            open_index(path)
    path.write_bytes(text.encode().replace("漢".encode(), "漢".encode()[:2]))
    with pytest.raises(UnicodeDecodeError) as whole:
        path.read_bytes().decode()
    with pytest.raises(DataError, match=f"not UTF-8 text .byte {whole.value.start}.. Save"):
        open_index(path)


def test_a_row_without_an_end_is_not_read_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_index, "PIECE", 100)
    monkeypatch.setattr(json_index, "MAX_ROW", 1000)
    path = tmp_path / "train.json"
    path.write_text('[{"id": "' + "x" * 100_000)
    read = []
    more = json_index._Text.more
    monkeypatch.setattr(json_index._Text, "more", lambda self: read.append(len(self.text)) or more(self))
    with pytest.raises(DataError, match="row 0: broken JSON at line 1 column 9: Unterminated string.*beyond"):
        open_index(path)
    assert max(read) <= 1100


def test_the_second_opening_parses_nothing(path, scans):
    first, _ = open_index(path)
    second, _ = open_index(path)
    assert len(scans) == 1 and kept(path).exists()
    assert np.array_equal(first, second)
    assert [p.name for p in path.parent.iterdir() if "partial" in p.name] == []


def test_a_small_file_keeps_no_index(path, scans, monkeypatch):
    monkeypatch.setattr(json_index, "KEPT_FROM", path.stat().st_size + 1)
    open_index(path)
    open_index(path)
    assert len(scans) == 2 and not kept(path).exists()


def test_where_the_folder_is_not_writable_it_is_kept_in_the_cache(path, scans, tmp_path):
    kept(path).mkdir()  # root may write into any folder, but not replace a folder by a file
    for _ in range(2):
        open_index(path)
    assert len(scans) == 1
    assert len(list((tmp_path / "cache" / "llava_jax").iterdir())) == 1
    other = path.with_name("other.json")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    (path.parent / "other.json.index.npz").mkdir()
    open_index(other)
    assert len(scans) == 2, "the index of another path was taken"


def test_where_it_can_be_kept_nowhere_it_says_so_and_goes_on(path, scans, tmp_path, capsys):
    kept(path).mkdir()
    (tmp_path / "cache").write_text("a file")
    assert len(open_index(path)[0]) == 40
    assert "train.json: its index cannot be kept" in capsys.readouterr().err


def cut(data: bytes, index) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, index) -> bytes:
    middle = data.index(index[0, 0].tobytes()) + 300
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda *_: b"", lambda *_: b"not a zip", lambda *_: b"\x80\x04N."])
def test_a_damaged_index_is_made_anew(path, scans, damage):
    good, _ = open_index(path)
    kept(path).write_bytes(damage(kept(path).read_bytes(), good))
    assert np.array_equal(open_index(path)[0], good)
    assert len(scans) == 2
    open_index(path)
    assert len(scans) == 2, "the repaired one was not kept"


def plant(path, change):
    """An index that is whole but wrong."""
    with np.load(kept(path), allow_pickle=False) as old:
        stamp, rows = old["stamp"].copy(), old["rows"].copy()
    stamp, rows = change(stamp, rows)
    with open(kept(path), "wb") as file:
        np.savez(file, stamp=stamp, rows=rows)


LIES = {
    "another version": lambda stamp, rows: (stamp + [1, 0, 0], rows),
    "another size": lambda stamp, rows: (stamp + [0, 1, 0], rows),
    "another time": lambda stamp, rows: (stamp + [0, 0, 1], rows),
    "float": lambda stamp, rows: (stamp, rows.astype(float)),
    "flat": lambda stamp, rows: (stamp, rows.ravel()),
    "no rows": lambda stamp, rows: (stamp, rows[:0]),
    "out of order": lambda stamp, rows: (stamp, rows[::-1]),
    "beyond the file": lambda stamp, rows: (stamp, rows + [10**6, 10**6, 0]),
    "negative": lambda stamp, rows: (stamp, rows - [10**6, 0, 0]),
    "no hash": lambda stamp, rows: (stamp, rows - [0, 0, 2**50]),
    "pickled": lambda stamp, rows: (stamp, rows.astype(object)),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_cannot_be_true_is_made_anew(path, scans, lie):
    good, _ = open_index(path)
    plant(path, LIES[lie])
    assert np.array_equal(open_index(path)[0], good)
    assert len(scans) == 2


def test_a_changed_file_is_indexed_again(path, scans):
    open_index(path)
    path.write_text(json.dumps([row(7)]))
    assert len(open_index(path)[0]) == 1
    assert len(scans) == 2


@pytest.mark.parametrize(
    "change",
    [lambda stamp, rows: (stamp, rows + [1, 0, 0]), lambda stamp, rows: (stamp, rows + [0, 0, 1]),
     lambda stamp, rows: (stamp, np.concatenate([rows[1:, :2], rows[1:, 2:] * 0 + 3], 1))],
)  # fmt: skip
def test_what_a_plausible_lie_leads_to_is_never_taken_for_a_row(path, change):
    open_index(path)
    plant(path, change)
    source = LlavaJson(path, path.parent)
    with pytest.raises(DataError, match="train.json: row 3 is not where its index says.*train.json.index.npz"):
        source[3]


def test_a_file_that_grows_while_it_is_read_is_refused(path, monkeypatch):
    scan = json_index._scan

    def slow(file, path, broken):
        rows = scan(file, path, broken)
        with open(path, "a") as more:
            more.write(" ")
        return rows

    monkeypatch.setattr(json_index, "_scan", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        open_index(path)
    assert not kept(path).exists()


def test_hashes_come_from_the_index_and_are_those_of_the_ids(path, monkeypatch):
    source = LlavaJson(path, path.parent)
    expected = [id_hash(f"№{i}") for i in range(40)]
    both = Concatenated([source, Subset(source, range(3))])
    assert id_hashes(both).tolist() == expected + expected[:3]
    slow = train_eval_split(Subset(source, range(40)), 0.2, 3)[1]
    monkeypatch.setattr(type(source), "raw", None)  # no row is read
    assert np.array_equal(train_eval_split(source, 0.2, 3)[1].indices, slow.indices)


def test_joined_sources_are_one_behind_the_other():
    joined = Concatenated(["ab", "", "cde"])
    assert [joined[i] for i in range(len(joined))] == list("abcde") and joined[-1] == "e"
    with pytest.raises(IndexError):
        joined[5]
