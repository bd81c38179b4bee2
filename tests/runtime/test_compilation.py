"""--compile_cache: a second start compiles nothing and gives equal results."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_jax.errors import ConfigError
from llava_jax.runtime.compilation import compile_cache
from tests.fixtures import child_process

CONFIG = """
from llava_jax import config
from tests.fixtures import micro_towers

def get_config():
    c = config.defaults()
    c.model.vision = c.model.llm = "micro"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.run = ("one",)
    c.stages.one = s = config.stage(batch=2, steps=2, learning_rates=(("projector/.*", 1e-3), (".*", None)))
    s.data.source, s.data.scenes, s.data.template, s.data.length = "scenes", "caption", "plain", 48
    s.eval.samples, s.eval.answers = 2, 0
    s.save.projector = "projector.safetensors"
    return c
"""


def start(folder: Path, cache: Path) -> tuple[int, int, bytes, bytes]:
    """(compiled programs, cached programs, metrics, trained weights) of a run in a new process."""
    folder.mkdir()
    (folder / "small.py").write_text(CONFIG)
    command = [sys.executable, "-m", "llava_jax.main", "--config=small.py", "--workdir=run", f"--compile_cache={cache}"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | child_process.TRAINING, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled, cached = re.search(r"programs: (\d+) compiled, (\d+) loaded from", done.stdout).groups()
    weights = (folder / "projector.safetensors").read_bytes()
    return int(compiled), int(cached), (folder / "run" / "metrics.jsonl").read_bytes(), weights


def test_second_start_compiles_nothing_and_gives_equal_results(tmp_path):
    cache = tmp_path / "cache"
    compiled, cached, *results = start(tmp_path / "first", cache)
    assert compiled > 5
    assert start(tmp_path / "second", cache) == (0, compiled + cached, *results)


def test_cache_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--compile_cache=.*file/cache cannot be created: Not a directory"):
        with compile_cache(tmp_path / "file" / "cache", print):
            pass
