"""Reading valid and invalid safetensors files and folders."""

import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from llava_jax.checkpoint.torch_tensors.safetensors_reader import INDEX, TorchFiles
from llava_jax.errors import DataError

A = np.arange(12, dtype=np.float32).reshape(3, 4)
ALL = (slice(None), slice(None))


def shards(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("name", ["01", "with space", "größe 模型"])
def test_file_folder_and_indexed_folder_are_read(tmp_path, name):
    first, second = "model-00001-of-00002", "model-00002-of-00002"
    folder = shards(tmp_path / name, **{first: {"a": A}, second: {"b": -A}})
    for source in (folder, folder / f"{first}.safetensors"):
        files = TorchFiles(source)
        assert "a" in files and files.shape("a") == (3, 4)
        np.testing.assert_array_equal(files.read("a", (slice(1, 3), slice(None))), A[1:3])
    np.testing.assert_array_equal(TorchFiles(folder).read("b", ALL), -A)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": f"{first}.safetensors"}}))
    assert TorchFiles(folder).names() == ["a"], "files missing in the index are ignored"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_values_keep_the_dtype_of_the_file(tmp_path, dtype):
    files = TorchFiles(shards(tmp_path, one={"a": A.astype(dtype)}))
    assert files.read("a", ALL).dtype == dtype
    np.testing.assert_array_equal(files.read("a", ALL), A.astype(dtype))


def test_any_part_of_a_tensor_is_read(tmp_path):
    tensors = {"before": A, "cube": np.arange(60.0).reshape(3, 4, 5), "one": np.array(7.0)}
    files = TorchFiles(shards(tmp_path, one=tensors))
    for index in ((1, 3), (0, 0), (2, None)):
        part = (slice(*index), slice(None), slice(0, 5))
        np.testing.assert_array_equal(files.read("cube", part), tensors["cube"][part])
    part = (slice(0, 2), slice(1, 3), slice(4, 5))
    np.testing.assert_array_equal(files.read("cube", part), tensors["cube"][part])
    assert files.read("one", ()) == 7 and files.read("cube", part).flags.owndata, "a copy, not a view of the map"


def test_no_file_stays_open_or_mapped(tmp_path):
    files = TorchFiles(shards(tmp_path, **{"model-00001-of-00002": {"a": A}, "model-00002-of-00002": {"b": A}}))
    parts = [files.read(name, index) for name in "ab" for index in (ALL, (slice(0, 2), slice(0, 1)))]
    assert len(parts) == 4 and str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd)]


@pytest.mark.parametrize("index", [ALL, (slice(0, 2), slice(0, 1))], ids=["rows", "columns"])
def test_file_changed_after_opening_raises_naming_it(tmp_path, index):
    file = shards(tmp_path, one={"a": A}) / "one.safetensors"
    files = TorchFiles(file)
    os.truncate(file, file.stat().st_size - 40)
    with pytest.raises(DataError, match="one.safetensors: tensor a cannot be read"):
        files.read("a", index)
    file.unlink()
    with pytest.raises(DataError, match="one.safetensors: tensor a cannot be read"):
        files.read("a", index)


def test_tensor_in_two_files_raises_naming_both(tmp_path):
    names = "model-00001-of-00002", "model-00002-of-00002"
    with pytest.raises(DataError, match=f"tensor a is in both .*{names[0]}.safetensors and .*{names[1]}.safetensors"):
        TorchFiles(shards(tmp_path, **{name: {"a": A} for name in names}))


def test_integer_tensor_raises(tmp_path):
    files = TorchFiles(shards(tmp_path, one={"a": A.astype(np.int8)}))
    with pytest.raises(DataError, match=r"one.safetensors: tensor a holds I8, not one of"):
        files.read("a", ALL)


def test_folder_without_weights_raises_naming_it(tmp_path):
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=f"{source} holds no .safetensors"):
            TorchFiles(source)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read"),
        ("[]", "holds no object"),
        ("{}", "is not an index of weights files: it has no weight_map"),
        ('{"weight_map": {}}', "is not an index of weights files: it has no weight_map"),
        ('{"weight_map": {"a": "../one.safetensors"}}', r"names '\.\./one.safetensors', which is not a file in its"),
        ('{"weight_map": {"a": 3}}', "names 3, which is not a file in its folder"),
        ('{"weight_map": {"a": "two.safetensors"}}', "names 'two.safetensors', which is not a file in its folder"),
    ],
)
def test_invalid_index_raises_naming_it(tmp_path, text, message):
    (shards(tmp_path, one={"a": A}) / INDEX).write_text(text)
    with pytest.raises(DataError, match=message):
        TorchFiles(tmp_path)


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    "data",
    [
        header(b"{}", 200_000_000) + bytes(64),
        header(b"not json"),
        header(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()) + bytes(8),
        header(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}).encode()) + bytes(16),
    ],
    ids=["a header of 200 MB", "no json", "truncated", "offsets past the end"],
)
def test_broken_file_raises_naming_it(tmp_path, data):
    (tmp_path / "one.safetensors").write_bytes(data)
    with pytest.raises(DataError, match=r"one.safetensors is broken or not a safetensors file"):
        TorchFiles(tmp_path)
