"""python -m llava_jax convert: bit-equal conversions, and errors in one line that write nothing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import torch
from safetensors.torch import load_file, save_file

import llava_jax
from llava_jax.__main__ import main
from llava_jax.checkpoint.huggingface import export as hf_export
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.llava import export as original_export
from llava_jax.checkpoint.llava.export import save_original
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.checkpoint.open_checkpoint import open_checkpoint
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.checkpoint.torch_tensors import safetensors_writer
from llava_jax.config import Config, Data, Model, Stage, architectures
from llava_jax.errors import DataError
from tests.fixtures.file_damage import flip
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava
from tests.fixtures.tiny_models import random_params, uneven

ROOT = Path(__file__).parents[2]
TOKENIZER = open_tokenizer("tiny")  # 500 tokens
CONFIG = uneven(llm=dict(vocab_size=512, max_positions=256))
PARAMS = random_params(CONFIG)
INDEX = "model.safetensors.index.json"
CLASS = "vision_model.embeddings.class_embedding"


@pytest.fixture
def several_files(monkeypatch):
    """60 KB per file, so that the small model has several."""
    for module in (hf_export, original_export):
        monkeypatch.setattr(
            module, "write_tensors", lambda to, weights, _: safetensors_writer.write_tensors(to, weights, 60_000)
        )


def tensors(folder: Path) -> dict[str, tuple]:
    """Name -> dtype, shape and bytes of every tensor in a folder."""
    weights = {}
    for file in folder.glob("*.safetensors"):
        for name, x in load_file(file).items():
            assert name not in weights
            weights[name] = x.dtype, x.shape, x.view(torch.uint8).numpy().tobytes()
    return weights


def assert_same(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def hf(folder: Path, dtype: str = "float32") -> Path:
    save_hf(folder, PARAMS, CONFIG, TOKENIZER, dtype)
    return folder


def original(folder: Path, **more) -> Path:
    save_original(folder, PARAMS, CONFIG, TOKENIZER, TINY_TOKENIZER, "float32", **more)
    return folder


def convert(src: Path, dst: Path, *flags) -> int:
    return main(["convert", str(src), str(dst), *map(str, flags)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_through_all_formats_is_byte_equal(tmp_path, several_files, dtype):
    first = hf(tmp_path / "01", dtype)
    odd, ours, back, last = (tmp_path / name for name in ("mit ä und 猫", "our s", "back", "02"))
    steps = ((first, odd, "llava"), (odd, ours, "orbax"), (ours, back, "llava"), (back, last, "hf"))
    for src, dst, to in steps:
        assert convert(src, dst, "--to", to) == 0
    assert (first / INDEX).exists() and (back / INDEX).exists()
    assert_same(first, last)
    assert_same(odd, back)
    names = json.loads((back / INDEX).read_text())["weight_map"].keys()
    assert names == tensors(back).keys()
    assert {"lm_head.weight", "model.mm_projector.2.weight", f"model.vision_tower.vision_tower.{CLASS}"} < names
    for name in ("config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (first / name).read_bytes() == (last / name).read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (odd / name).read_bytes() == (back / name).read_bytes()


def test_original_keeps_its_config_keys_and_external_tower(tmp_path):
    clip = hf_clip(CONFIG.vision)
    clip.save_pretrained(tmp_path / "clip")
    first = original(tmp_path / "first", tower_is_inside=False, aspect="pad")
    config = json.loads((first / "config.json").read_text())
    changes = dict(mm_use_im_start_end=True, mm_projector_lr=2e-5, rope_parameters=dict(rope_theta=10_000.0))
    (first / "config.json").write_text(json.dumps(config | changes))
    tower = "--tower", tmp_path / "clip"
    assert convert(first, tmp_path / "again", "--to", "llava", *tower, "--verify") == 0
    assert_same(first, tmp_path / "again")
    del changes["rope_parameters"]  # redundant with rope_theta, which every version of transformers reads
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == config | changes
    assert again["model_type"] == "llava_llama" and again["image_aspect_ratio"] == "pad"
    assert convert(first, tmp_path / "hf", "--to", "hf", *tower) == 2, "the tokenizer has no <im_start>"
    (first / "config.json").write_text(json.dumps(config))
    assert convert(first, tmp_path / "hf", "--to", "hf", *tower) == 0
    class_embedding = tensors(tmp_path / "hf")["vision_tower." + CLASS][2]
    assert class_embedding == clip.state_dict()["embeddings.class_embedding"].numpy().tobytes()


@pytest.mark.parametrize("dialect", ["hub", "memory"])
def test_hf_tensor_names_survive_conversion(tmp_path, dialect):
    """transformers 5 saves names without `vision_model`; the names of a state_dict differ from those in any folder."""
    model = hf_llava(CONFIG, 500)
    model.save_pretrained(tmp_path / "theirs")
    saved = load_file(tmp_path / "theirs" / "model.safetensors")
    assert "vision_tower.embeddings.class_embedding" in saved
    if dialect == "memory":
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "theirs" / "model.safetensors")
    assert convert(tmp_path / "theirs", tmp_path / "out", "--to", "hf", "--tokenizer", TINY_TOKENIZER) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    if dialect == "memory":
        weights = {k.replace("vision_tower.vision_model.", "vision_tower."): v for k, v in weights.items()}
    assert weights.keys() == saved.keys() and all((weights[k] == saved[k]).all() for k in saved)


def run(folder: Path, monkeypatch) -> Path:
    """A workdir of a run with two stages, of which the second trained the projector."""
    monkeypatch.setitem(architectures.VISION, "small", CONFIG.vision)
    monkeypatch.setitem(architectures.LLM, "small", CONFIG.llm)
    stages = {"one": Stage(data=Data(template="plain")), "two": Stage(data=Data(template="llava_v1", aspect="pad"))}
    model = Model(vision="small", llm="small", projector=CONFIG.projector, dtype="float32", feature_dtype="bfloat16")
    folder.mkdir()
    config = Config(model=model, run=("one", "two"), stages=stages)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    store = CheckpointStore(folder / "checkpoints", keep=2)
    for step, name in ((5, "one"), (9, "two")):
        trained = {p: x + step for p, x in PARAMS.items() if p.startswith("projector/")}
        frozen = {p: x.astype("bfloat16") for p, x in PARAMS.items() if p not in trained}
        state = {"step": jax.numpy.int32(step), "trainable": trained, "frozen": frozen, "opt_state": dict(trained)}
        store.save(step, state, {}, {"stage": name})
    store.wait()
    store.close()
    return folder


def test_load_falls_back_from_a_damaged_newest_checkpoint(tmp_path, monkeypatch, capfd):
    folder = run(tmp_path / "run", monkeypatch)
    file = next(p for p in sorted((folder / "checkpoints" / "9" / "state").rglob("d/*")))
    flip(file)
    before = sorted(p for p in folder.rglob("*"))
    model = llava_jax.load(folder, dtype=None)
    assert (model.params["projector/linear_1/bias"] == PARAMS["projector/linear_1/bias"] + 5).all()
    err = capfd.readouterr().err
    assert f"9 is DAMAGED: {file.relative_to(folder / 'checkpoints' / '9')}" in err and "back to checkpoint 5" in err
    assert sorted(p for p in folder.rglob("*")) == before, "loading changes no file"
    (folder / "checkpoints" / "5" / "run" / "metadata").unlink()
    with pytest.raises(DataError, match="no checkpoint in .* is intact"):
        llava_jax.load(folder)


def test_workdir_without_tokenizer_names_the_remedy(tmp_path, monkeypatch):
    folder = run(tmp_path / "run", monkeypatch)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer": "tok"}))
    with pytest.raises(DataError, match="run holds no tokenizer: .* names tok, relative to where .* pass --tokenizer"):
        open_checkpoint(folder)
    with pytest.raises(DataError, match="^missing"):
        open_checkpoint(folder, tokenizer="missing")
    assert open_checkpoint(folder, tokenizer="tiny").tokenizer.vocab_size == 500


def test_workdir_loads_newest_checkpoint_template_and_sharding(tmp_path, monkeypatch):
    folder = run(tmp_path / "run", monkeypatch)
    model = llava_jax.load(folder, dtype=None)
    assert (model.template, model.aspect, model.config.dtype) == ("llava_v1", "pad", "float32")
    assert (model.params["projector/linear_1/bias"] == PARAMS["projector/linear_1/bias"] + 9).all()
    head = model.params["llm/head/kernel"]
    assert head.dtype == "bfloat16" and (head == PARAMS["llm/head/kernel"].astype("bfloat16")).all()
    assert {shard.data.shape for shard in head.addressable_shards} == {(CONFIG.llm.width // 8, 512)}
    assert convert(folder, tmp_path / "hf", "--to", "hf") == 0
    kinds = {name: x[0] for name, x in tensors(tmp_path / "hf").items()}
    assert kinds["language_model.lm_head.weight"] == torch.bfloat16
    assert kinds["multi_modal_projector.linear_1.bias"] == torch.float32
    assert {"5", "9"} <= {step.name for step in (folder / "checkpoints").iterdir()}, "loading removes nothing"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32", "contains both dtypes"
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["do_pad"]
    assert convert(folder, tmp_path / "ours", "--to", "orbax", "--dtype", "float16") == 0
    again = llava_jax.load(tmp_path / "ours", dtype=None)
    assert (again.template, again.aspect, again.image_token_id) == ("llava_v1", "pad", model.image_token_id)
    assert {x.dtype.name for x in again.params.values()} == {"float16"}
    monkeypatch.setitem(architectures.LLM, "small", dataclasses.replace(CONFIG.llm, vocab_size=640))
    with pytest.raises(DataError, match=r"has shape \(512, 40\), the config expects \(640, 40\)"):
        llava_jax.load(folder)


def test_pickled_projector_is_combined_with_base_and_tower(tmp_path):
    parts = {"clip": hf_clip(CONFIG.vision), "llm": hf_llama(CONFIG.llm)}
    for name, model in parts.items():
        model.save_pretrained(tmp_path / name)
    stage1 = original(tmp_path / "stage1")
    projector = {name: x for name, x in load_file(stage1 / "model.safetensors").items() if "mm_projector" in name}
    torch.save(projector, stage1 / "mm_projector.bin")
    (stage1 / "model.safetensors").unlink()
    flags = ("--base", tmp_path / "llm", "--tower", tmp_path / "clip", "--allow-pickle")
    assert convert(stage1, tmp_path / "whole", "--to", "llava", *flags) == 0
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    llm = load_file(tmp_path / "llm" / "model.safetensors")
    assert weights.keys() == projector.keys() | llm.keys()
    assert all((x == weights[name]).all() for name, x in (projector | llm).items())


# --------------------------------------------------------------------------------------------------------- --verify


@pytest.mark.parametrize("flags", [("--to", "hf"), ("--to", "hf", "--dtype", "bfloat16"), ("--to", "orbax")], ids=str)
def test_verify_compares_seven_activations(tmp_path, capsys, flags):
    assert convert(hf(tmp_path / "src"), tmp_path / "dst", *flags, "--verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the same" and len(lines) == 10
    rows = {line[:18].strip(): line[18:].split() for line in lines[2:-1]}
    assert list(rows) == [
        "pixels", "patch embedding", "selected layer", "projector", "merged embeddings", "last hidden", "logits"
    ]  # fmt: skip
    assert all(len(cells) == (5 if "hf" in flags else 3) for cells in rows.values())
    reloaded = [float(cells[1]) for cells in rows.values()]
    assert (max(reloaded) == 0) == ("bfloat16" not in flags)


@pytest.mark.parametrize("to", ["hf", "llava"])
def test_verify_detects_wrongly_written_weights(tmp_path, capsys, monkeypatch, to):
    module = hf_export if to == "hf" else original_export
    right = module.torch_tensors

    def wrong(row, param, dtype):
        return right(row, param * 1.01 if row.path == "linear_2/kernel" else param, dtype)

    monkeypatch.setattr(module, "torch_tensors", wrong)
    assert convert(hf(tmp_path / "src"), tmp_path / "dst", "--to", to, "--verify") == 1
    out = capsys.readouterr().out
    failed_points = [line.split("  ")[0] for line in out.splitlines() if line.endswith("BEYOND")]
    assert failed_points == ["projector", "merged embeddings", "last hidden", "logits"]


def test_convert_command_prints_help_and_errors(tmp_path):
    command = [sys.executable, "-m", "llava_jax", "convert"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "--allow-pickle" in done.stdout
    code = "import sys, llava_jax.__main__\nassert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, "importing jax takes seconds"
    done = subprocess.run([*command, tmp_path / "no", tmp_path / "dst", "--to", "hf"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {tmp_path}/no does not exist")
