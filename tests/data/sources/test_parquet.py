"""Parquet as Hugging Face writes it: row groups, with images inside the file or beside it."""

import pickle
import sys
from pathlib import Path

import pytest

from llava_jax.data.example import id_hash
from llava_jax.data.sources import parquet as parquet_source
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.sources.parquet import ParquetSource
from llava_jax.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ONE_IMAGE = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "é"}]
TWO_IMAGES = [{"from": "human", "value": "<image> <image>"}, {"from": "gpt", "value": "x"}]
TEXT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def write(path: Path, group=2, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def rows(folder: Path, name="a.parquet", count=7) -> Path:
    images = [{"bytes": f"{name}{i}".encode(), "path": None} for i in range(count)]
    return write(
        folder / name, id=[f"{name}{i}" for i in range(count)], image=images, conversations=[ONE_IMAGE] * count
    )


def test_rows_of_every_group_are_read(tmp_path):
    source = open_source(rows(tmp_path))
    assert isinstance(source, ParquetSource) and len(source) == 7
    for i in (6, 0, 3, 4, -1):
        assert source[i].id == f"a.parquet{i % 7}" and source[i].images == (f"a.parquet{i % 7}".encode(),)
    assert source[0].turns == (("human", "<image>\nWhat?"), ("gpt", "é"))
    with pytest.raises(IndexError):
        source[7]


def test_folder_reads_its_files_in_order_and_can_be_pickled(tmp_path):
    rows(tmp_path, "b.parquet", 3)
    rows(tmp_path, "a.parquet", 4)
    source = open_source(tmp_path)
    source[0]
    assert source.rows._cache and not pickle.loads(pickle.dumps(source)).rows._cache
    ids = [f"a.parquet{i}" for i in range(4)] + [f"b.parquet{i}" for i in range(3)]
    assert [pickle.loads(pickle.dumps(source))[i].id for i in range(7)] == ids
    assert source.id_hashes().tolist() == [id_hash(name) for name in ids]


def test_row_groups_are_cached_up_to_a_limit(tmp_path, monkeypatch):
    source, opened = ParquetSource(rows(tmp_path)), []
    monkeypatch.setattr(parquet_source, "_open", lambda file, o=parquet_source._open: opened.append(file) or o(file))
    for i in range(7):
        source[i]
    assert len(opened) == 4 and len(source.rows._cache) == 2
    source[6], source[4], source[0]
    assert len(opened) == 5


def test_every_representation_of_an_image_is_read(tmp_path):
    (tmp_path / "c.png").write_bytes(b"C")
    image_file = ((tmp_path / "c.png").resolve(),)
    cases = {
        "bytes": (dict(image=[b"x"]), ONE_IMAGE, (b"x",)),
        "struct": (dict(image=[{"bytes": b"x", "path": "a.png"}]), ONE_IMAGE, (b"x",)),
        "struct with a path": (dict(image=[{"bytes": None, "path": "c.png"}]), ONE_IMAGE, image_file),
        "path": (dict(image=["c.png"]), ONE_IMAGE, image_file),
        "list of structs": (dict(images=[[{"bytes": b"x"}, {"bytes": b"y"}]]), TWO_IMAGES, (b"x", b"y")),
        "list of bytes": (dict(images=[[b"x", b"y"]]), TWO_IMAGES, (b"x", b"y")),
        "null": (dict(image=pyarrow.array([None], pyarrow.binary())), TEXT, ()),
        "empty list": (dict(images=pyarrow.array([[]], pyarrow.list_(pyarrow.binary()))), TEXT, ()),
        "no column": (dict(), TEXT, ()),
    }
    for name, (columns, turns, images) in cases.items():
        source = ParquetSource(write(tmp_path / "x.parquet", id=["1"], conversations=[turns], **columns), tmp_path)
        assert source[0].images == images, name


def test_faults_name_file_and_row(tmp_path):
    bad = [{"from": "human", "value": "<image>"}]
    path = write(
        tmp_path / "x.parquet", id=["0", "1", "2"], image=[b"x"] * 3, conversations=[ONE_IMAGE, ONE_IMAGE, bad]
    )
    with pytest.raises(DataError, match=r"x.parquet: row 0 of group 1 \(id '2'\): conversations must alternate"):
        ParquetSource(path)[2]
    path = write(tmp_path / "x.parquet", id=["0"], image=["../c.png"], conversations=[ONE_IMAGE])
    with pytest.raises(DataError, match="sample '0': image '../c.png' is outside of"):
        ParquetSource(path, tmp_path)[0]
    with pytest.raises(DataError, match="sample '0': image '../c.png' is not in the file. Pass the image folder"):
        ParquetSource(path)[0]
    with pytest.raises(DataError, match="needs the columns id and conversations; it has id, text"):
        ParquetSource(write(tmp_path / "x.parquet", id=["0"], text=["x"]))
    with pytest.raises(DataError, match="x.parquet: no rows"):
        ParquetSource(write(tmp_path / "x.parquet", id=[], conversations=[]))
    path = rows(tmp_path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-9])
    with pytest.raises(DataError, match="a.parquet: not a readable Parquet file"):
        open_source(path)
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(DataError, match="a.parquet: group 0 cannot be read"):
        open_source(path)[0]


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = rows(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'llava_jax\[parquet\]'"):
        open_source(path)
