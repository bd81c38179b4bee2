"""Runs of several real processes on this machine, also resumed with another number of processes."""

import json
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llava_jax.errors import ConfigError
from llava_jax.runtime.mesh import check_processes
from tests.fixtures import child_process
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.file_damage import flip
from tests.fixtures.once import make_once
from tests.train.test_bad_samples import CONFIG, packed_config

bench = bench_script("check_processes")
check_resume, relative_differences, texts, WITHIN = (
    bench.check_resume,
    bench.relative_differences,
    bench.texts,
    bench.WITHIN,
)
RECORDED = (str(Path(__file__).parent / "recorded_main.py"),)
# Accumulation, because a compiler may move the sum over processes out of its loop, possibly wrongly.
SHORT = ("--config.run=('packed',)", "--config.stages.packed.data.workers=0", "--config.stages.packed.accumulation=2")
LOST_AFTER = 40  # seconds; a busy machine needs them to name the lost process before JAX aborts the run
LOST = f"--lost_after={LOST_AFTER}"
started = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the finished run of one process in `reference` and its compiled programs in `compiled`."""

    def make(folder: Path) -> None:
        patch.setenv("PACKED_DATA", str(folder / "scenes"))
        check_resume.finish(*start(folder, "reference", 1, patch))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (child_process.TRAINING | {"PAUSE": "0.1"}).items():
            patch.setenv(name, value)
        patch.setattr(check_resume, "PATIENCE", 200)
        folder = make_once(tmp_path_factory, "processes", make)
        patch.setenv("PACKED_DATA", str(folder / "scenes"))
        yield folder
    for run in started:
        if run.process.poll() is None:
            run.kill()


def start(folder: Path, name: str, count: int, patch, *flags: str, run: str = "") -> list["check_resume.Run"]:
    """run: suffix of the files with the batches, one for each run in the same workdir."""
    patch.setenv("BATCHES", str(folder / f"{name}.batches{run}"))
    runs = bench.start(
        CONFIG, folder / name, folder / "compiled", count, *SHORT, *flags, program=RECORDED
    )  # fmt: skip
    started.extend(runs)
    return runs


def batches(folder: Path, name: str, run: str = "") -> dict[int, list[int]]:
    """Global step -> indices of the global batch: the rows of process 0, then those of process 1, and so on."""
    files = sorted(folder.glob(f"{name}.batches{run}.*"))
    parts = [dict(json.loads(line) for line in file.read_text().splitlines()) for file in files]
    assert len({tuple(part) for part in parts}) == 1, "all processes make the same steps"
    return {step: sum((part[step] for part in parts), []) for step in parts[0]}


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def replaced(workdir: Path) -> list[str]:
    lines = [line for file in workdir.glob("bad_samples*.jsonl") for line in file.read_text().splitlines()]
    return sorted(lines, key=lambda line: (json.loads(line)["step"], json.loads(line)["index"]))


def steps_saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def check_survivor(run: "check_resume.Run", lost: int, started_at: float, reason: str) -> None:
    """Waits until `run` ends in time with exit code 1 because process `lost` of 2 is gone. Its last line names it."""
    assert run.wait() == 1, run.text()
    assert time.monotonic() - started_at < 2 * LOST_AFTER + 5
    last = run.text().splitlines()[-1]
    named = f"error: process {1 - lost} of 2: process {lost} of 2 has written no heartbeat for"
    assert re.match(rf"{named} \d+ s{reason}", last), last


def step_in(text: str) -> int:
    stopped_or_resumed = r"^(?:stopped by a signal to another process|resuming \S+) after step (\d+) of packed"
    return int(re.search(stopped_or_resumed, text, re.M)[1])


def test_resume_with_other_process_counts_equals_one_process(folder, monkeypatch):
    workdir = folder / "changed"

    # Two processes. SIGTERM to the one that does not log.
    runs = start(folder, "changed", 2, monkeypatch, run="-a")
    assert runs[0].wait_for(check_resume.step_is_read("packed", 3)), texts(runs)
    assert [runs[1].kill(signal.SIGTERM), runs[0].wait()] == [143, 143], texts(runs)
    stopped = steps_saved(workdir)[-1]
    assert step_in(runs[0].text()) == stopped >= 4
    first, *more = [line for line in runs[1].text().splitlines() if "[Gloo]" not in line and "stopping" not in line]
    assert first.startswith("process 1 of 2 waits for the others at localhost:") and not more, "process 0 logs the rest"
    assert list(batches(folder, "changed", "-a")) == list(range(1, stopped + 1))
    of_one = [(folder / f"changed.batches-a.{i}").read_text().splitlines() for i in (0, 1)]
    assert all(len(json.loads(line)[1]) == 4 for part in of_one for line in part), "each has half of the rows"

    # Four, with sharded parameters. The newest checkpoint is damaged: all use the same older one. SIGTERM twice to all,
    # as where a scheduler signals a process and the wrapper that starts it.
    flip(next(p for p in sorted((workdir / "checkpoints" / str(stopped) / "state").rglob("d/*"))))
    runs = start(folder, "changed", 4, monkeypatch, "--config.mesh.data=1", "--config.mesh.fsdp=-1", run="-b")
    assert runs[0].wait_for(check_resume.step_is_read("packed", stopped + 1)), texts(runs)
    for run in runs:
        for _ in range(2):
            run.process.send_signal(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143] * 4, texts(runs)
    (older,) = re.findall(r"^WARNING: falling back to checkpoint (\d+)$", runs[0].text(), re.M)
    again = batches(folder, "changed", "-b")
    assert min(again) == int(older) + 1 <= stopped and max(again) == steps_saved(workdir)[-1] > stopped

    # One process. The result is that of the run of one process.
    check_resume.finish(*start(folder, "changed", 1, monkeypatch, run="-c"))
    expected = batches(folder, "reference")
    by_run = [batches(folder, "changed", run) for run in ("-a", "-b", "-c")]
    assert set().union(*by_run) == set(expected) and min(by_run[2]) == max(again) + 1
    assert all(expected[step] == rows for run in by_run for step, rows in run.items())
    assert replaced(workdir) == replaced(folder / "reference") != []
    reference, resumed = (records(folder / name / "metrics.jsonl") for name in ("reference", "changed"))
    assert [r["step"] for r in resumed] == [r["step"] for r in reference] == list(range(1, len(resumed) + 1))
    for key in ("loss", "grad_norm", "targets", "replaced"):
        values = [[r[f"train/{key}"] for r in run] for run in (resumed, reference)]
        np.testing.assert_allclose(*values, rtol=WITHIN, err_msg=key)


def test_failed_process_is_named_and_resume_equals_undisturbed_run(folder, monkeypatch):
    """All faults happen in one workdir, one after another."""
    alone = start(folder, "undisturbed", 2, monkeypatch)
    assert [run.wait() for run in alone] == [0, 0], texts(alone)
    deviations = relative_differences(folder / "undisturbed", folder / "reference")
    assert max(deviations.values()) <= WITHIN, deviations

    # Reading an image hangs. It is not in the first row, which is logged before.
    (first,) = re.findall(r"^sample (.*), supervised text", alone[0].text(), re.M)
    unseen = next(i for i in range(50, 96) if f"instruct {i}" not in first and i not in packed_config.BAD)
    with monkeypatch.context() as patch:
        patch.setenv("HANGS", f"{unseen}.png")
        runs = start(folder, "troubled", 2, monkeypatch, "--stalled_after=6", run="-a")
        assert [run.wait() for run in runs] == [1, 1], texts(runs)
    straggler = rf"process (\d) of 2 is behind, reading rows \(step (\d+)\), in step \2 with .*'instruct {unseen}'"
    named = [
        re.search(rf"^error: process {i} of 2: no step for .*{straggler}", run.text(), re.M)
        for i, run in enumerate(runs)
    ]
    assert all(named) and named[0].groups() == named[1].groups(), texts(runs)
    assert len(named[0][0].split("'instruct")) < 8, "the samples of one row only"
    assert re.search(rf"^WARNING: no step for .*{straggler}", runs[0].text(), re.M), texts(runs)

    # A process is killed.
    runs = start(folder, "troubled", 2, monkeypatch, LOST, run="-b")
    assert runs[0].wait_for(check_resume.step_is_read("packed", 4)), texts(runs)
    started_at = time.monotonic()
    runs[1].kill()
    check_survivor(runs[0], 1, started_at, ", last seen")

    # Process 0, which hosts JAX's service, is killed. JAX's message calls it the "leader".
    runs = start(folder, "troubled", 2, monkeypatch, LOST, run="-c")
    assert runs[0].wait_for(check_resume.step_is_read("packed", 5)), texts(runs)
    started_at = time.monotonic()
    runs[0].kill()
    assert runs[1].wait() not in (0, 143), texts(runs)
    assert time.monotonic() - started_at < 2 * LOST_AFTER + 5
    assert re.search(r"leader task was preempted/died|process 0 of 2 has written no heartbeat", runs[1].text()), texts(
        runs
    )

    # A process that fails reports why and does not wait for the others, which report its reason.
    monkeypatch.setenv("FAILS", "1 7")
    runs = start(folder, "troubled", 2, monkeypatch, LOST, run="-d")
    assert runs[1].wait() == 1, texts(runs)
    assert runs[1].text().splitlines()[-1] == "error: process 1 of 2: planted" and "Traceback" not in runs[1].text()
    started_at = time.monotonic()
    check_survivor(runs[0], 1, started_at, "; ended: planted")

    monkeypatch.delenv("FAILS")
    runs = start(folder, "troubled", 2, monkeypatch, run="-e")
    assert [run.wait() for run in runs] == [0, 0], texts(runs)
    expected, contents = (check_resume.contents(folder / name) for name in ("undisturbed", "troubled"))
    assert check_resume.differences(expected, contents) == []
    assert replaced(folder / "troubled") == replaced(folder / "undisturbed") != []


def test_rows_shared_by_processes_are_refused():
    devices = np.array([SimpleNamespace(process_index=i // 2) for i in range(4)])
    for shape, fits in (((4, 1, 1), True), ((1, 2, 2), True), ((1, 1, 4), False)):
        shapes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        mesh = SimpleNamespace(devices=devices.reshape(shape), shape=shapes, local_devices=devices[:2])
        if fits:
            check_processes(mesh)
        else:
            with pytest.raises(ConfigError, match="mesh.tensor=4 spreads rows .* must divide the 2 devices"):
                check_processes(mesh)
