import json

import jax
import pytest

from llava_jax.runtime.accelerators import PEAK_TFLOPS
from llava_jax.train.metrics import MetricsWriter
from llava_jax.train.progress import Progress
from llava_jax.train.workdir import Resumed


def write(workdir, is_kept, records):
    writer = MetricsWriter(workdir, is_kept)
    for step, stage, name in records:
        writer.write("metrics", step, {"stage": stage, name: step / 3})
    writer.close()
    return (workdir / "metrics.jsonl").read_bytes()


# Two stages of 4 steps, evaluated at their start and at every second step.
RECORDS = [
    (step, stage, name)
    for stage, first in (("one", 0), ("two", 4))
    for step in range(first, first + 5)
    for name in ("train/loss", "val/loss")
    if (step > first or name == "val/loss") and (step % 2 == 0 or name == "train/loss")
]


def keep_nothing(record):
    return False


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("step", [1, 2, 4, 5, 8])
def test_metrics_are_byte_equal_after_kill_and_resume(tmp_path, step, evaluated):
    """The run had a checkpoint of `step`, saved before or after the evaluation of that step, and was killed later."""
    stage = "one" if step <= 4 else "two"
    whole = write(tmp_path, keep_nothing, RECORDS)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "sta')  # an incomplete record

    def is_past(record):
        at, of, name = record
        if at != step or of != stage:
            return at < step or (at == step and of < stage)
        return evaluated or name != "val/loss"

    rest = [record for record in RECORDS if not is_past(record)]
    index = 0 if stage == "one" else 1
    assert write(tmp_path, Resumed(step, index, stage, evaluated).is_past, rest) == whole


def test_new_run_empties_old_files(tmp_path):
    write(tmp_path, keep_nothing, RECORDS)
    assert write(tmp_path, keep_nothing, RECORDS[:1]).count(b"\n") == 1


def test_metrics_and_timing_are_json_lines_in_separate_files(tmp_path):
    writer = MetricsWriter(tmp_path, keep_nothing)
    writer.write("metrics", 3, {"stage": "one", "train/loss": 0.1})
    writer.write("timing", 3, {"stage": "one", "time/step": 0.2})
    writer.flush()
    read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]  # noqa: E731
    assert read("metrics.jsonl") == [{"step": 3, "stage": "one", "train/loss": 0.1}]
    assert read("timing.jsonl") == [{"step": 3, "stage": "one", "time/step": 0.2}]
    writer.close()
    assert list((tmp_path / "tb").glob("events*"))


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricsWriter(tmp_path, keep_nothing)
    writer.write("metrics", 1, {"stage": "one"})
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 100.0

    monkeypatch.setattr("llava_jax.train.progress.time.perf_counter", lambda: Clock.now)
    return Clock


def test_progress_excludes_time_outside_steps(clock, monkeypatch):
    progress = Progress("one", steps=100, tokens_per_step=800, flops_per_step=1e12)
    assert progress.tick(0.0) is None  # the first step compiled
    assert progress.line(1, 2.5) == "one 1/100   1% | loss 2.5000"
    clock.now += 2.0
    assert progress.tick(0.5) == 2.0
    clock.now += 60.0
    progress.pause()  # an evaluation
    assert progress.tick(0.0) is None
    clock.now += 2.0
    assert progress.tick(0.5) == 2.0
    assert progress.line(40, 2.5) == "one 40/100  40% | loss 2.5000 | 400 tok/s | 2.000 s/step (data 25%) | ETA 0:02:00"

    shorter = Progress("one", steps=100, tokens_per_step=800, flops_per_step=1e12)
    shorter.tick(0.0, 200)
    clock.now += 2.0
    shorter.tick(0.0, 200)
    assert "| 100 tok/s |" in shorter.line(40, 2.5), "tokens of the batch, not of the longest rows"

    monkeypatch.setitem(PEAK_TFLOPS, jax.devices()[0].device_kind, 0.125)
    assert progress.mfu() == pytest.approx(1e12 / 2.0 / (0.125e12 * 8))
    assert "| MFU 50% |" in progress.line(40, 2.5)
