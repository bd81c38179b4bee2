"""Lenient reading of rows of every kind of source, and the search for rows after broken JSON."""

import json
import zipfile
from pathlib import Path

import pytest

from llava_jax.data.inspection.check import Duplicates, check_rows
from llava_jax.data.inspection.check_report import Report
from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.data.sources import json_index, json_scan
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.write_shards import write_shards
from llava_jax.errors import DataError
from tests.data.inspection.test_check import LIMITS
from tests.fixtures.faulty_dataset import plant, turns
from tests.fixtures.images import encoded, noise


def check(source) -> Report:
    report, duplicates = Report("x", {}), Duplicates()
    for checked in check_rows(range(len(source)), source=source, limits=LIMITS):
        report.findings += [*checked.findings, *duplicates.findings(checked)]
    return report


def kinds(source) -> list[tuple[str, str]]:
    return sorted((f.kind, f.id) for f in check(source).findings)


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for file in (folder / "images").iterdir():
            if file.is_file():
                archive.write(file, file.name)
    return folder / "images.zip"


def test_archive_and_folder_give_the_same_image_faults(tmp_path):
    planted = plant(tmp_path)
    source = LlavaJson(tmp_path / "train.json", zipped(tmp_path), is_strict=False)
    # An archive has no entry of a name outside of it.
    assert kinds(source) == sorted((k.replace("outside the folder", "missing"), name) for k, name in planted)
    pictures = check(source).to_html(source).count("<img")
    folder = LlavaJson(tmp_path / "train.json", tmp_path / "images", is_strict=False)
    assert pictures == check(folder).to_html(folder).count("<img") > 10


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three records; the third has the image of the first."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(noise(20, 20), "PNG"))
    (tmp_path / "images" / "b.png").write_bytes(encoded(noise(20, 20, 1), "PNG"))
    rows = [
        {"id": f"{i}", "image": f"{name}.png", "conversations": turns(f"<image>what is {i} ?", "x")}
        for i, name in enumerate("aba")
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    source = open_source(tmp_path / "train.json", tmp_path / "images")
    write_shards(source, tmp_path / "out", made_from=[], shard_rows=9, skip_bad=False, threads=1, log=lambda _: None)
    return tmp_path / "out"


def test_image_shared_by_two_records_is_no_duplicate(shards):
    source = open_source(shards)
    assert kinds(source) == []
    row = read_leniently(source, 0)
    assert list(row.images) == list(read_leniently(source, 2).images) != list(read_leniently(source, 1).images)


def test_unreadable_record_is_a_fault_of_its_row(shards):
    (file,) = shards.glob("*.array_record")
    data = bytearray(file.read_bytes())
    offset = data.index(encoded(noise(20, 20, 1), "PNG"))  # records are not compressed
    data[offset + 100] ^= 1
    file.write_bytes(data)
    assert [(f.kind, f.row) for f in check(open_source(shards)).findings] == [("unusable", 1)]


BREAKS = {
    "quotes": ('"what is 3 ?"', '"what "is" 3 ?"'),
    "no comma": ('}, {"id": "5"', '} {"id": "5"'),
    "truncated": ('"what is 6 ?"', '"what is'),
    "two files": ('}, {"id": "4"', '}] [{"id": "4"'),
}


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 10_000])
@pytest.mark.parametrize("name", BREAKS)
def test_search_resumes_at_any_chunk_boundary(tmp_path, monkeypatch, chunk_bytes, name):
    monkeypatch.setattr(json_scan, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(json_scan, "MAX_ROW_CHARS", 1000)
    rows = [{"id": f"{i}", "conversations": turns(f"what is {i} ?", "é漢🚌")} for i in range(20)]
    text = json.dumps(rows, ensure_ascii=False)
    old, new = BREAKS[name]
    assert text.count(old) == 1
    (tmp_path / "train.json").write_text(text.replace(old, new), encoding="utf-8")
    source = LlavaJson(tmp_path / "train.json", tmp_path, is_strict=False)
    rows_read = [read_leniently(source, i) for i in range(len(source))]
    (broken,) = [i for i, row in enumerate(rows_read) if row.faults]
    assert rows_read[broken].faults[0][0] == "broken JSON"
    lost = {"quotes": ["3"], "truncated": ["6"]}.get(name, [])
    assert [row.id for row in rows_read if not row.faults] == [f"{i}" for i in range(20) if f"{i}" not in lost]


def test_file_that_is_not_utf8_raises_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(json_scan, "CHUNK_BYTES", 17)
    rows = [{"id": f"{i}", "conversations": turns("what ?", "e" if i else "é")} for i in range(3)]
    (tmp_path / "train.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        LlavaJson(tmp_path / "train.json", tmp_path, is_strict=False)


def test_lenient_opening_stores_no_index_but_uses_one(tmp_path, monkeypatch):
    monkeypatch.setattr(json_index, "MIN_BYTES_KEPT", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"id": f"{i}", "conversations": turns("what ?", "x") if i else []} for i in range(3)]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    lenient = LlavaJson(path, tmp_path, is_strict=False)
    assert [bool(read_leniently(lenient, i).faults) for i in range(3)] == [True, False, False]
    assert [file.name for file in tmp_path.iterdir()] == ["train.json"]
    path.write_text(json.dumps(rows[1:]))
    LlavaJson(path, tmp_path)
    monkeypatch.setattr(json_index, "scan_rows", None)
    assert not any(read_leniently(LlavaJson(path, tmp_path, is_strict=False), i).faults for i in range(2))
