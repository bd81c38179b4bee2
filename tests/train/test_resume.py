"""Real processes that are killed, stopped and resumed, on data with unreadable samples.

launch/bench/check_resume.py does the same for a given number of seeds.
"""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures import child_process
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.once import make_once
from tests.train.test_bad_samples import CONFIG, PLANTED, listed, packed_config

check_resume = bench_script("check_resume")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a finished run in `reference` and its compiled programs in `compiled`."""

    def make(folder: Path) -> None:
        patch.setenv("PACKED_DATA", str(folder / "scenes"))
        check_resume.finish(start(folder, "reference"))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in child_process.TRAINING.items():
            patch.setenv(name, value)
        folder = make_once(tmp_path_factory, "resumed_runs", make)
        patch.setenv("PACKED_DATA", str(folder / "scenes"))
        yield folder


def start(folder: Path, name: str) -> "check_resume.Run":
    return check_resume.Run(CONFIG, folder / name, folder / "compiled")


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1)


def test_comparison_covers_every_array(folder):
    expected = check_resume.contents(folder / "reference")
    assert expected["checkpoint"] == newest(folder / "reference").name
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


def test_every_bad_sample_is_listed_once_per_epoch(folder):
    replaced = listed(folder / "reference")

    def names(stage):
        return sorted(r["sample"] for r in replaced if r["stage"] == stage)

    captions = [f"caption {i}" for i in packed_config.MORE_BAD]
    assert set(names("packed")) == {*PLANTED, *captions}, "the epochs of a mixture are not exact"
    assert names("buckets") == PLANTED
    for record in replaced:
        assert re.search(r"(\d+\.png: no such file|cannot be read)", record["reason"])
        assert record["substitute"] not in (*PLANTED, *captions)
    records = [json.loads(line) for line in (folder / "reference" / "metrics.jsonl").read_text().splitlines()]
    steps = {r["step"]: r["train/replaced"] for r in records}
    assert sum(steps.values()) == len(replaced)
    assert {step for step, count in steps.items() if count} == {r["step"] for r in replaced}
    data_state = json.loads((newest(folder / "reference") / "data" / "metadata").read_text())
    assert data_state["replaced"] == 3 and {"step", "examples", "buckets"} < data_state.keys()


def test_resume_is_byte_equal_after_sigkill_sigterm_and_killed_worker(folder):
    """One run, started four times: all faults happen in one workdir, one after another."""
    workdir = folder / "troubled"
    run, reached = start(folder, "troubled"), check_resume.step_is_read("packed", 3)
    assert run.wait_for(lambda run: reached(run) and check_resume.save_begins(run))
    assert run.kill() == -signal.SIGKILL

    run = start(folder, "troubled")
    assert run.wait_for(check_resume.step_is_read("packed", 5))
    started_at = time.monotonic()
    assert run.kill(signal.SIGTERM) == 143
    assert time.monotonic() - started_at < 10
    assert f"stopped by SIGTERM after step {newest(workdir).name} of packed" in run.text()
    assert "Traceback" not in run.text()

    run = start(folder, "troubled")
    assert run.wait_for(check_resume.step_is_read("buckets", 2))
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    workers = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    started_at = time.monotonic()
    assert run.wait() == 1
    assert time.monotonic() - started_at < 10
    assert re.search(rf"^error: data worker \d of \d \(process {workers[-1]}\) was killed by SIGKILL", run.text(), re.M)
    assert "Traceback" not in run.text()

    check_resume.finish(start(folder, "troubled"))
    expected = check_resume.contents(folder / "reference")
    assert check_resume.differences(expected, check_resume.contents(workdir)) == []
    assert (workdir / "bad_samples.jsonl").read_bytes() == (folder / "reference" / "bad_samples.jsonl").read_bytes()
