"""A workdir written by an older version loads, converts and resumes."""

import contextlib
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import llava_jax
from llava_jax import config
from llava_jax.__main__ import main
from llava_jax.checkpoint.native.run_inputs import own_architecture
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import architectures
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train import loop
from llava_jax.train.stages import make_stage_setups

FIXTURE = Path(__file__).parent / "old_workdir"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
STEP = 6  # of its checkpoint: four steps of stage `one`, two of stage `two`


@pytest.fixture(autouse=True)
def run_config():
    """The config of the run; its towers are registered during the test."""
    spec = importlib.util.spec_from_file_location("old_workdir_config", FIXTURE / "config.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VISION", "LLM"):
            patch.setattr(architectures, name, dict(getattr(architectures, name)))
        spec.loader.exec_module(module)
        yield config.from_config_dict(module.get_config())


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(FIXTURE / "workdir", tmp_path / "workdir")


def digest(array) -> str:
    array = np.asarray(array)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_fixture_is_small_and_complete():
    files = [p for p in FIXTURE.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert sum(p.stat().st_size for p in files) < 300_000
    assert {r["step"] for r in EXPECTED["metrics"]} == set(range(1, 13))


def test_every_array_restores_bit_equal(run_config, workdir):
    mesh = make_mesh(1, -1, 1)
    model_config = config.model_config(run_config.model, "cpu")
    stage = make_stage_setups(run_config, model_config, mesh, open_tokenizer(run_config.tokenizer))[1]
    with contextlib.closing(CheckpointStore(workdir / "checkpoints", 1)) as store:
        assert store.latest_intact().step == STEP and not store.latest_intact().notes
        state, data = store.restore(STEP, stage.layout.abstract)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): digest(x) for path, x in leaves}
    assert arrays == EXPECTED["arrays"]
    assert data["step"] == 2 and data["replaced"] == 0


def test_resume_gives_the_losses_of_the_old_code(run_config, workdir, monkeypatch):
    before, lines = metrics(workdir), []
    monkeypatch.setattr(loop, "log", lines.append)
    loop.train(run_config, workdir, ["test"])
    assert [line for line in lines if "older version" in line or "changed" in line] == [
        "the checkpoint is of an older version, so samples and tokenizer cannot be compared with it"
    ]
    assert own_architecture(workdir).llm == architectures.LLM["old_micro"]
    assert open_tokenizer(str(workdir / "tokenizer")).vocab_size == open_tokenizer("tiny").vocab_size
    records = metrics(workdir)
    assert records[: len(before)] == before and len(before) < len(EXPECTED["metrics"])
    for record, expected in zip(records, EXPECTED["metrics"], strict=True):
        assert record.keys() == expected.keys()
        assert (record["step"], record["stage"]) == (expected["step"], expected["stage"])
        for name in record.keys() & {"train/loss", "train/grad_norm", "train/targets", "val/loss", "val/loss_blank"}:
            np.testing.assert_allclose(record[name], expected[name], rtol=1e-5, err_msg=f"{name} {expected['step']}")
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] == ["12"]


def test_checkpoint_loads_and_converts(workdir, tmp_path):
    model = llava_jax.load(workdir, dtype=None)
    parts = [(*name.split("/", 1), value) for name, value in EXPECTED["arrays"].items() if "/" in name]
    expected = {path: value for part, path, value in parts if part in ("frozen", "trainable")}
    assert {path: digest(x) for path, x in model.params.items()} == expected
    assert main(["convert", str(workdir), str(tmp_path / "hf"), "--to", "hf"]) == 0
    converted = llava_jax.load(tmp_path / "hf", dtype=None)
    assert converted.params.keys() == model.params.keys()
    for path, x in model.params.items():
        np.testing.assert_array_equal(x, converted.params[path], err_msg=path)
