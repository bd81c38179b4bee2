"""Which files of a folder are its weights, and what files that are none are called."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.torch_tensors.pickle_reader import open_weights
from llava_jax.checkpoint.torch_tensors.quantized import refuse_quantized
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.errors import ConfigError, DataError

FIRST, SECOND = "model-00001-of-00002", "model-00002-of-00002"
INDEX = {"weight_map": {f"{FIRST}/a": f"{FIRST}.safetensors", f"{SECOND}/a": f"{SECOND}.safetensors"}}


@pytest.fixture
def verbose():
    logger = logging.getLogger("llava_jax")
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)


def write(folder, *names: str, index: dict | None = None) -> None:
    """Writes one tensor into each file; the tensor is named like its file, so that the result shows what was read."""
    for name in names:
        if name.endswith(".bin"):
            (folder / name).write_bytes(b"no weights")
        else:
            save_file({f"{name}/a": np.ones((2, 2), np.float32)}, folder / f"{name}.safetensors")
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "names, index, expected",
    [
        (["model", "consolidated"], None, ["model"]),
        (["model", "model.fp16", "adapter_model", "optimizer", "zz", "pytorch_model.bin"], None, ["model"]),
        (["model", "model-00001-of-00002"], None, ["model"]),
        ([FIRST, SECOND, "consolidated"], None, [FIRST, SECOND]),
        ([FIRST, SECOND, "consolidated"], INDEX, [FIRST, SECOND]),
        ([FIRST, SECOND, "old-00001-of-00001"], INDEX, [FIRST, SECOND]),
        (["model", FIRST, SECOND], INDEX, [FIRST, SECOND]),
        (["model", FIRST], INDEX, ["model"]),
        (["consolidated"], None, ["consolidated"]),
    ],
    ids=str,
)
def test_files_of_the_model_are_read_and_no_others(tmp_path, names, index, expected):
    write(tmp_path, *names, index=index)
    assert open_weights(tmp_path, False).names() == [f"{name}/a" for name in expected]


@pytest.mark.parametrize(
    "names, index, message",
    [
        ([FIRST], None, f"{SECOND}.safetensors is missing, 1 of 2; is the download complete"),
        ([FIRST], INDEX, f"index.json names '{SECOND}.safetensors', which is not a file in its folder; is the downl"),
        (["a", "b"], None, "several weights files and no model.safetensors or index: a.safetensors, b.safetensors"),
        (["a-00001-of-00001", "b-00001-of-00001"], None, "several weights files .* Pass one of them"),
    ],
    ids=str,
)
def test_folder_without_a_clear_set_of_weights_is_refused(tmp_path, names, index, message):
    write(tmp_path, *names, index=index)
    with pytest.raises(DataError, match=message):
        open_weights(tmp_path, False)


def test_pickle_of_the_model_wins_over_other_safetensors(tmp_path):
    write(tmp_path, "adapter_model", "pytorch_model.bin")
    with pytest.raises(DataError, match="pytorch_model.bin is a pickle"):
        open_weights(tmp_path, False)


def test_ignored_files_are_reported_with_verbose(tmp_path, capsys, verbose):
    write(tmp_path, "model", "consolidated", "model.fp16")
    TorchFiles(tmp_path)
    line = "reads model.safetensors; ignores consolidated.safetensors, model.fp16.safetensors"
    assert line in capsys.readouterr().err


def test_without_verbose_only_an_ignored_model_is_reported(tmp_path, capsys):
    write(tmp_path, "model", "consolidated")
    TorchFiles(tmp_path)
    assert capsys.readouterr().err == ""
    write(tmp_path, FIRST, SECOND, index=INDEX)
    TorchFiles(tmp_path)
    line = f"reads {FIRST}.safetensors ... {SECOND}.safetensors; ignores consolidated.safetensors, model.safetensors"
    assert line in capsys.readouterr().err


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.gguf"])
@pytest.mark.parametrize(
    "content, message",
    [
        (POINTER, "is a git-lfs pointer, .* Run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"Entry not found", "is a server's reply"),
        (gzip.compress(b"weights", mtime=0), "is compressed .gzip.. Unpack it"),
        (b"", "is empty. Download it again"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_file_that_is_no_weights_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name if name == "x.gguf" else tmp_path
    for allowed in (False, True):
        with pytest.raises(DataError, match=f"{name} {message}"):
            open_external(path, allow_pickle=allowed)


def test_other_file_is_not_called_a_pickle(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML, an older format")
    with pytest.raises(DataError, match="x.gguf is no weights file: neither .safetensors"):
        open_external(tmp_path / "x.gguf")


@pytest.mark.parametrize("where", ["path", "base", "tower"])
def test_hub_name_and_url_get_a_remedy(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tensors = {"model.mm_projector.weight": np.ones((2, 2), np.float32), "model.x": np.ones(2, np.float32)}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    local = tmp_path / "model"

    def open_there(name):
        return open_external(Path(name)) if where == "path" else open_external(local, **{where: Path(name)})

    with pytest.raises(DataError, match="does not exist. .*: hf download me/llava-7b --local-dir llava-7b$"):
        open_there("me/llava-7b")
    with pytest.raises(ConfigError, match="https:/.* is a URL"):
        open_there("https://huggingface.co/me/llava-7b")
    with pytest.raises(DataError, match="model/typo does not exist$"):
        open_there("model/typo")


QUANTIZED = {
    "bitsandbytes": ({"model.x.weight": np.uint8, "model.x.weight.absmax": np.float32}, dict(load_in_4bit=True)),
    "gptq": ({"model.x.qweight": np.int32, "model.x.g_idx": np.int32}, dict(bits=4)),
    "awq": ({"model.x.qweight": np.int32, "model.x.scales": np.float16}, dict(version="gemm")),
    "fp8": ({"model.x.weight": np.int8, "model.x.weight_scale_inv": np.float32}, {}),
    "compressed-tensors": ({"model.x.weight_packed": np.int32}, dict(format="pack-quantized")),
    "mxfp4": ({"model.x.gate_up_proj_blocks": np.uint8}, {}),
    "fbgemm_fp8": ({"model.x.weight": np.float16, "model.x.weight_scale": np.float32}, {}),  # its names alone say so
    "hqq": ({"model.x.weight": np.uint8}, {}),
    "torchao": ({"model.x.weight": np.float32}, {}),
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_weights_are_named_with_their_method(tmp_path, method):
    tensors, settings = QUANTIZED[method]
    save_file({name: np.ones((2, 2), dtype) for name, dtype in tensors.items()}, tmp_path / "model.safetensors")
    files, settings = TorchFiles(tmp_path), settings | {"quant_method": method}
    for config in ({"quantization_config": settings}, {"text_config": {"quantization_config": settings}}):
        with pytest.raises(DataError, match=f"quantised .*{method}.*use the unquantised release"):
            refuse_quantized(files, config, "here/config.json")
    if method == "torchao":  # plain tensors: a base may be read with the config of a run on a quantised one
        refuse_quantized(files, config, "here/config.json", described=False)
        refuse_quantized(files, {"quantization_config": None}, "here/config.json")
        return
    with pytest.raises(DataError, match="holds quantised weights: tensor model.x"):
        refuse_quantized(files, {}, "here/config.json")
