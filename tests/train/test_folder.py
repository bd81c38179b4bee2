"""Models that no name describes train from `folder`, and compute what transformers does."""

import dataclasses
import shutil

import jax
import pytest

from llava_jax.checkpoint.architecture import resolve_model
from llava_jax.checkpoint.architecture_json import MODULES
from llava_jax.config import Weights
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train import loop
from tests.fixtures.bench_scripts import bench_script

check_folder = bench_script("check_folder")


@pytest.fixture
def mesh(monkeypatch):
    """One device: compiling for eight takes three times as long."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    monkeypatch.setattr(loop, "make_mesh", lambda *sizes: mesh)
    return mesh


def test_run_from_folder_equals_transformers(tmp_path, mesh):
    pair = check_folder.PAIRS["llama 3.1, laion"]  # the script checks the others and every step
    results = check_folder.check(tmp_path, pair, mesh, compared=(1, 5))
    assert max(results.values()) <= 1e-5, results


def test_saved_modules_and_workdir_of_a_folder_run_are_starts(tmp_path, mesh, monkeypatch, capsys):
    monkeypatch.setattr(check_folder, "STEPS", 1)
    pair = check_folder.PAIRS["qwen2, b/32"]
    check_folder.write_weights(tmp_path, pair)
    run = check_folder.run_config(tmp_path, pair)
    saved = Weights(**{module: str(tmp_path / f"{module}.safetensors") for module in MODULES})
    stage = dataclasses.replace(run.stages["fit"], save=saved, learning_rates=(("projector/.*", 1e-3), (".*", None)))
    run = dataclasses.replace(run, stages={"fit": stage})
    loop.train(run, tmp_path / "run", ["test"])
    expected = resolve_model(run)
    assert expected.llm.qkv_bias and expected.llm.rope_base == 1e6
    for load in (saved, Weights(*[str(tmp_path / "run")] * 3)):
        assert resolve_model(dataclasses.replace(run, load=load)) == expected
    for module in ("llm", "vision"):
        shutil.rmtree(tmp_path / module)
    capsys.readouterr()
    loop.train(run, tmp_path / "run", ["test"])
    assert "resuming" in capsys.readouterr().out
