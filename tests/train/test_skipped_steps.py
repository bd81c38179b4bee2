"""The train loop skips steps that are not finite and loss spikes: counts, metrics, files, Diverged."""

import contextlib
import json
import math
import os
import re
import signal
import struct
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from llava_jax import config
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.data.pipeline import Batches
from llava_jax.data.rows import Rows, SourceRow
from llava_jax.data.sources.scenes import SceneSource
from llava_jax.errors import Diverged
from llava_jax.text.token_row import Batch, TokenRow
from llava_jax.train import loop, loss
from llava_jax.train import step as train_step
from llava_jax.train.dataset import StageData, training_batches
from tests.train.test_loop import (
    check_resume,
    records,
    settings,
    small_towers,  # noqa: F401
    train,
)

pytestmark = pytest.mark.usefixtures("compile_once")


def one_stage(**changes) -> dict:
    """Changes of `settings()`: 52 steps of stage one alone, evaluated at its end, always the same program."""
    return dict(run=("one",), stages__one__steps=52, stages__one__eval__every=0, checkpoint__every=5, **changes)


FaultyBatch = namedtuple("FaultyBatch", (*Batch._fields, "fault"))


class Nothing(Rows):
    def row(self, index, length=None) -> SourceRow:
        return SourceRow(TokenRow(*[np.zeros(1)] * 5))


@pytest.fixture
def bad_steps(monkeypatch):
    """(step of stage one, from 0, -> value added to its loss, to be filled in; sample indices of each step, which
    identify its batch, also in a resumed run)."""
    faults, token_losses = {}, loss.token_losses
    stage = config.from_config_dict(settings()).stages["one"]
    order = training_batches(stage, StageData(Nothing(SceneSource("caption", 0, False, 24), None), None, [], 99, 99), 0)
    index = [next(order)[1].index.tolist() for _ in range(60)]
    order.close()
    assert len({tuple(rows) for rows in index}) == 60

    def with_fault(self):
        batch, info = next_batch(self)
        fault = [faults[step] for step in faults if index[step] == info.index.tolist()]
        return FaultyBatch(*batch, np.full(8, sum(fault), np.float32)), info

    def with_bad_loss(model, params, batch, chunks):
        return token_losses(model, params, batch, chunks) + jnp.sum(batch.fault)

    next_batch = Batches.__next__
    monkeypatch.setattr(Batches, "__next__", with_fault)
    monkeypatch.setattr(train_step, "token_losses", with_bad_loss)
    return faults, index


def board(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all TensorBoard scalars."""
    values = []
    for file in sorted((folder / "tb").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length uint64, its CRC, an event, its CRC
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return values


def test_nonfinite_steps_are_skipped_counted_and_absent_from_metrics(tmp_path, bad_steps, monkeypatch):
    faults, index = bad_steps
    faults |= dict.fromkeys((0, 3, 50), math.nan)
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(tmp_path / "run", **one_stage())
    steps = [record for record in records(tmp_path / "run") if "val/loss" not in record]
    skipped = {r["step"]: r["train/skipped"] for r in steps if "train/skipped" in r}
    assert skipped == {1: 1, 4: 2, 51: 3} and [r["step"] for r in steps] == list(range(1, 53))
    for r in steps:
        assert ("train/loss" in r) != (r["step"] in skipped) and all(math.isfinite(r[k]) for k in r if "/" in k)
    series = board(tmp_path / "run")
    assert [step for step, name, _ in series if name == "train/loss"] == [s for s in range(1, 53) if s not in skipped]
    assert all(math.isfinite(value) for _, _, value in series) and (51, "train/skipped", 3.0) in series
    progress = [line for line in lines if re.match(r"one \d+/52", line)]
    assert len(progress) == 49 and not any("nan" in line for line in progress)
    assert sum("is skipped: the loss is nan" in line for line in lines) == 3
    assert any(line.startswith("3 of 52 steps were skipped") for line in lines)
    files = sorted((tmp_path / "run" / "skipped").iterdir())
    assert [file.name for file in files] == ["one-000001.json", "one-000004.json", "one-000051.json"]
    source = SceneSource("caption", 0, False, 24)
    assert json.loads(files[1].read_text())["samples"] == [source[i].id for i in index[3]]

    def stop(text):  # the same run again, interrupted by SIGTERM
        if text.startswith("one 20/"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "log", stop)
    with pytest.raises(loop.Stopped):
        train(tmp_path / "again", **one_stage())
    train(tmp_path / "again", **one_stage())
    for name in ("metrics.jsonl", "skipped/one-000051.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert check_resume.contents(tmp_path / "again") == check_resume.contents(tmp_path / "run")


def test_eleven_skipped_steps_in_a_row_raise_diverged(tmp_path, bad_steps):
    faults, index = bad_steps
    faults |= dict.fromkeys((1, 2, *range(5, 40)), math.nan)
    message = (
        r"11 steps in a row were skipped, the last one step 16 of stage one: the loss is nan.*after step 5.*skipped"
    )
    with pytest.raises(Diverged, match=message) as raised:
        train(tmp_path, **one_stage())
    assert raised.value.exit_code == 3
    assert records(tmp_path)[-1] == {"step": 16, "stage": "one", "train/skipped": 13, "train/replaced": 0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert len(list((tmp_path / "skipped").iterdir())) == 13
    dump = json.loads((tmp_path / "skipped" / "one-000016.json").read_text())
    assert dump["skipped_in_a_row"] == 11 and dump["loss"] == "nan"
    assert dump["samples"] == [SceneSource("caption", 0, False, 24)[i].id for i in index[15]]
    assert dump["modules"]["gradient"].keys() == {"projector"}
    weights = dump["modules"]["parameter"]
    assert weights.keys() == {"vision", "projector", "llm"} and all(0 < w < math.inf for w in weights.values())
    with contextlib.closing(CheckpointStore(tmp_path / "checkpoints", 2)) as store:
        assert store.latest_intact().step == 15, "saved between skipped steps, with unchanged weights"


@pytest.mark.parametrize("on_spike", ["skip", "warn"])
def test_spike_is_skipped_or_warned_of(tmp_path, bad_steps, monkeypatch, on_spike):
    faults, _ = bad_steps
    faults[10] = 1e6  # divided by some hundred targets
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(tmp_path, **one_stage(guard__spike=3.0, guard__window=8, guard__on_spike=on_spike))
    (line,) = [line for line in lines if "x the median" in line]
    assert "step 11 of one" in line and ("it was applied" in line) == (on_spike == "warn")
    (record,) = [r for r in records(tmp_path) if r["step"] == 11]
    assert record.get("train/skipped") == (1 if on_spike == "skip" else None)
    assert on_spike == "skip" or record["train/loss"] > 1000
