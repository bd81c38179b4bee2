"""torch's .bin files are rejected without permission, and read without executing their code."""

import gc
import json
import pickle
import subprocess
import sys
import venv

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from llava_jax.checkpoint.torch_tensors.pickle_reader import INDEX, find_weights, open_weights, read_pickled
from llava_jax.errors import ConfigError, DataError

ALL = slice(None)


class Writes:
    """An attacker's object: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The folder for all temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_tensors_of_several_files_are_byte_equal(tmp_path, copies, monkeypatch):
    folder = tmp_path / "größe 01"
    folder.mkdir()
    tied = torch.randn(3, 5, dtype=torch.bfloat16)
    first = {"embed": tied, "head": tied, "half": torch.randn(4, 6).half().T, "scalar": torch.tensor(2.5)}
    second = {"part": torch.randn(8, 8)[2:4, 1:5], "ids": torch.arange(5), "trained": torch.nn.Parameter(torch.ones(2))}
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(second, folder / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    (folder / "training_args.bin").write_bytes(b"not weights")
    names = {name: f"pytorch_model-0000{1 + (name in second)}-of-00002.bin" for name in first | second}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    # A fake torch in the working directory must not be imported.
    (folder / "torch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    files = open_weights(folder, True)
    assert files.path == folder and files.names() == sorted(first | second)
    for name, value in (first | second).items():
        assert files.shape(name) == tuple(value.shape)
        if name != "ids":
            read = files.read(name, (ALL,) * value.ndim)
            assert read.tobytes() == value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), name
    np.testing.assert_array_equal(files.read("half", (slice(1, 3), ALL)), first["half"][1:3].numpy())
    assert not (tmp_path / "ran").exists()

    assert len(list(copies.rglob("*.safetensors"))) == 2
    del files
    gc.collect()
    assert not list(copies.iterdir()), "the copies are deleted with their reader"


def test_nothing_is_read_without_permission(tmp_path, copies, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    torch.save({"a": torch.ones(2)}, tmp_path / "mm_projector.bin")
    with pytest.raises(DataError, match=r"mm_projector.bin is a pickle, a program .*convert it .*allow_pickle=True"):
        read_pickled(tmp_path / "mm_projector.bin", False)
    assert not list(copies.iterdir())


@pytest.mark.parametrize("kind", ["of torch", "plain"])
def test_code_in_a_pickle_does_not_run(tmp_path, copies, kind):
    marker, file = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    contents = {"a": torch.ones(2), "b": Writes(marker)}
    if kind == "of torch":
        torch.save(contents, file)
    else:
        file.write_bytes(pickle.dumps(contents, protocol=2))
    for allowed in (False, True):
        with pytest.raises(DataError) as error:
            open_weights(tmp_path, allowed)
        assert not marker.exists()
        assert "\n" not in str(error.value) and str(file) in str(error.value)
    assert "weights_only" not in str(error.value), "torch's advice to disable weights_only is not repeated"
    assert not list(copies.iterdir())
    if kind == "of torch":
        assert "Unsupported global: GLOBAL io.open" in str(error.value)
        torch.load(file, weights_only=False)
        assert marker.exists(), "the file does contain code"


@pytest.mark.parametrize(
    "contents, message",
    [({"model": {"a": torch.ones(2)}}, "'model' is a dict, not a tensor"), ([torch.ones(2)], "it holds a list, not")],
)
def test_pickle_without_named_tensors_raises(tmp_path, copies, contents, message):
    torch.save(contents, tmp_path / "weights.bin")
    with pytest.raises(DataError, match=f"weights.bin cannot be read as weights: {message}"):
        read_pickled(tmp_path / "weights.bin", True)


def test_empty_file_is_named_and_not_called_a_pickle(tmp_path):
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(DataError, match="weights.gguf is empty. Download it again"):
        open_weights(tmp_path / "weights.gguf", False)


def test_truncated_file_raises_naming_it(tmp_path, copies):
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.bin")
    (tmp_path / "short.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:-200])
    with pytest.raises(DataError, match="short.bin cannot be read as weights: .+"):
        read_pickled(tmp_path / "short.bin", True)


def test_missing_torch_raises(tmp_path, copies, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.bin")
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ConfigError, match="weights.bin can only be read with torch >= 2.10; install it .*bare/bin/pyt"):
        read_pickled(tmp_path / "weights.bin", True)
    assert not list(copies.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../x.bin"}}', '{"weight_map": {"a": "gone.bin"}}'])
def test_invalid_index_raises_naming_it(tmp_path, text):
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "x.bin").write_bytes(b"")
    (folder / INDEX).write_text(text)
    with pytest.raises(DataError, match=f"{INDEX} (cannot be read|holds no object|names .* not a file in its folder)"):
        open_weights(folder, True)


def test_safetensors_are_preferred_and_need_no_permission(tmp_path):
    with pytest.raises(DataError, match="holds no weights: neither .safetensors nor pytorch_model.bin"):
        open_weights(tmp_path, True)
    assert find_weights(tmp_path, "adapter_model") is None
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert find_weights(tmp_path, "adapter_model").name == "adapter_model.bin"
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    adapter = find_weights(tmp_path, "adapter_model")
    assert adapter.name == "adapter_model.safetensors"
    for path in (adapter, tmp_path):
        assert open_weights(path, False).names() == ["a"]
