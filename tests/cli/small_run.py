"""A run of one small stage in a working directory of its own, for tests of what `train` reports."""

import dataclasses
import json
from pathlib import Path

from PIL import Image

from llava_jax.cli.train import main
from llava_jax.config import architectures

SMALL = """
from llava_jax import config

def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "tiny"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.run = ("one",)
    c.stages.one = s = config.stage(batch=8, steps=1, learning_rates=(("projector/.*", 1e-3), (".*", None)))
    s.data.path, s.data.image_folder = "train.json", "images"
    s.data.template, s.data.length = "plain", 32
    return c
"""
ROW = {
    "id": "bus-1",
    "image": "bus.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red bus."}],
}


def write_small_run(tmp_path, monkeypatch) -> Path:
    """A working directory with a config, a data file with one row, its image, and a minimal model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)
    (tmp_path / "train.json").write_text(json.dumps([ROW]))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "images" / "bus.jpg")
    vision = dataclasses.replace(
        architectures.VISION["tiny"],
        image_size=24,
        patch_size=12,
        width=32,
        layers=2,
        heads=2,
        mlp_width=64,
        select_layer=-2,
    )
    llm = dataclasses.replace(
        architectures.LLM["tiny"], width=32, layers=1, heads=2, kv_heads=2, head_size=16, mlp_width=64
    )
    monkeypatch.setitem(architectures.VISION, "tiny", vision)
    monkeypatch.setitem(architectures.LLM, "tiny", llm)
    return tmp_path


def run(capsys, *flags: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line, in this process."""
    code = main(["main", *flags])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err
