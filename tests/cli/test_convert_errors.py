"""convert refuses what it cannot convert in one line, and writes nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER
from llava_jax.checkpoint.torch_tensors import safetensors_writer
from tests.cli.test_convert import CONFIG, convert, hf
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava
from tests.fixtures.tiny_models import uneven


def change(folder: Path, **changes) -> None:
    """Changes tensors in the folder's single file by name; None removes one."""
    file = folder / "model.safetensors"
    weights = load_file(file) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in weights.items() if x is not None}, file)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def huge_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_100)


def offset_beyond_end(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def add_auto_map(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "it.Model"}}))


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def saving(model) -> object:
    def change(folder: Path) -> None:
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").unlink()

    return change


BAD = {  # name: (change to a valid folder, flags, regex of the error)
    "missing": (lambda f: change(f, language_model__lm_head__weight=None), (), "missing language_model.lm_head.weight"),
    "extra": (lambda f: change(f, image_newline=torch.ones(3)), (), "unexpected image_newline"),
    "shape": (
        lambda f: change(f, language_model__model__norm__weight=torch.ones(3)), (),
        r"tensor language_model.model.norm.weight has shape \(3,\), the config expects \(40,\)",
    ),
    "integers": (
        lambda f: change(f, language_model__model__norm__weight=torch.ones(40, dtype=torch.int32)), (),
        "holds quantised weights: tensor language_model.model.norm.weight of I32",
    ),
    "truncated": (truncate, (), "model.safetensors is broken"),
    "header of 100 MB": (huge_header, (), "model.safetensors is broken"),
    "offsets beyond the end": (offset_beyond_end, (), "model.safetensors is broken"),
    "auto_map": (add_auto_map, (), r"config.json needs custom code \(auto_map\)"),
    "pickle": (to_pickle, (), "pytorch_model.bin is a pickle.*allow_pickle=True or --allow-pickle"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), (), "src 01 ä: no tokenizer found"),
    "no config": (lambda f: (f / "config.json").unlink(), (), "config.json does not exist"),
    "broken image config": (
        lambda f: (f / "preprocessor_config.json").write_text("{"), (), "preprocessor_config.json cannot be read"
    ),
    "plain template": (lambda f: None, ("--template", "plain"), "'plain' is not for chats"),
    "a base too many": (lambda f: None, ("--tower", "x"), "needs no separate tower"),
    "a tower alone": (saving(hf_clip(CONFIG.vision)), (), "no llm and no projector; .*--config.load.vision="),
    "an LLM alone": (saving(hf_llama(CONFIG.llm)), (), "a language model alone cannot be saved; .*--config.load.llm="),
}  # fmt: skip


def assert_refused(capsys, folder: Path, message: str, *flags) -> None:
    before = sorted(folder.parent.iterdir())
    dst = folder.parent / "dst"
    capsys.readouterr()
    assert convert(folder, dst, "--to", "hf", *flags) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err) and err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert sorted(folder.parent.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize("name", BAD)
def test_bad_source_is_one_line_and_writes_nothing(tmp_path, capsys, name):
    harm, flags, message = BAD[name]
    folder = hf(tmp_path / "src 01 ä")
    harm(folder)
    assert_refused(capsys, folder, message, *flags)


def test_wrong_tokenizer_missing_source_and_existing_destination_are_rejected(tmp_path, capsys):
    hf_llava(uneven(), 63).save_pretrained(tmp_path / "src")
    assert_refused(capsys, tmp_path / "src", "has 500 tokens, the weights have 64", "--tokenizer", TINY_TOKENIZER)
    assert_refused(capsys, tmp_path / "nothing", "nothing does not exist")
    (tmp_path / "dst").mkdir()
    assert_refused(capsys, tmp_path / "src", "dst exists already")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "dst").rename(tmp_path / "dst.partial")
    assert_refused(capsys, tmp_path / "src", "dst.partial exists, perhaps left by a program that was killed")
    (tmp_path / "dst.partial").rmdir()  # not removed by the failed command
    assert_refused(capsys, tmp_path / "empty", "holds no complete checkpoint")


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch, to):
    folder = hf(tmp_path / "src")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_writer, "_write_file", stop)
    monkeypatch.setattr(CheckpointStore, "save", stop)
    assert convert(folder, tmp_path / "dst", "--to", to) == 130
    assert list(tmp_path.iterdir()) == [folder]
