"""Real processes: killed, stopped, run again. launch/local/check_resume.py does the same for as many seeds as asked."""

import random
import signal
import time
from pathlib import Path

import pytest
from test_loop import check_resume

CONFIG = Path(__file__).parent / "resume_config.py"
STAGES = [("stage1", 8), ("stage2", 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a finished run in `reference` and its compiled programs in `compiled`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in a third of the time
        check_resume.finish(start(folder, "reference"))
        yield folder


def start(folder: Path, name: str) -> "check_resume.Run":
    return check_resume.Run(CONFIG, folder / name, folder / "compiled")


def assert_equal(folder: Path, name: str):
    expected = check_resume.contents(folder / "reference")
    assert check_resume.differences(expected, check_resume.contents(folder / name)) == []


def test_the_comparison_sees_every_array(folder):
    expected = check_resume.contents(folder / "reference")
    assert expected["checkpoint"] == "16"
    for part in (
        "['frozen']['vision/patch/kernel']",
        "['trainable']['llm/layers/q/kernel']",
        "['opt_state'][1]['mu']['llm/norm/scale']",
        "['step']",
        "['rng']",
        "metrics.jsonl",
        "data",
    ):
        assert part in expected, part
    assert check_resume.differences(expected, expected | {"['step']": "other"}) == ["['step']"]


@pytest.mark.parametrize("seed, moment", [(0, "save")])
def test_a_run_that_was_killed_ends_equal_to_one_that_was_not(folder, seed, moment):
    compiled, name = folder / "compiled", f"killed at {moment}"
    kills = check_resume.kill_and_finish(CONFIG, folder / name, compiled, moment, random.Random(seed), STAGES)
    assert len(kills) == 1
    assert_equal(folder, name)


def test_sigterm_saves_and_ends_with_143_within_10_seconds(folder):
    run = start(folder, "stopped")
    assert run.wait_for(check_resume.step_is_read("stage2", 4))
    began = time.monotonic()
    assert run.kill(signal.SIGTERM) == 143
    assert time.monotonic() - began < 10
    assert "stopped by SIGTERM behind step" in run.text() and "Traceback" not in run.text()
    saved = [int(p.name) for p in (folder / "stopped" / "checkpoints").iterdir() if p.name.isdigit()]
    assert f"behind step {max(saved) - 8} of stage2" in run.text()
    assert max(saved) > 11, "not merely the periodic one"
    check_resume.finish(start(folder, "stopped"))
    assert_equal(folder, "stopped")
