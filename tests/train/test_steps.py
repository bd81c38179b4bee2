"""The step generator with a recording step function, and the sample names for the watchdog."""

from types import SimpleNamespace

import numpy as np
import pytest

from llava_jax.data.pipeline import FILLER, BatchInfo
from llava_jax.text.token_row import Batch
from llava_jax.train import steps
from llava_jax.train.stage_run import sample_names
from llava_jax.train.steps import training_steps


class Value:
    """A metric on a device; records when it is read."""

    def __init__(self, events: list[str], note: str):
        self.events, self.note = events, note

    def __float__(self) -> float:
        self.events.append(self.note)
        return 2.0


class State:
    def __init__(self, step: int):
        self.step = step


class Stage:
    """Replaces a StageRun of 6 steps and records in `events` what the generator does."""

    def __init__(self, events: list[str], start: int = 0, is_single_process: bool = True):
        def note(text: str):
            return lambda *args, **kwargs: events.append(" ".join([text, *map(str, args)]))

        self.events, self.read = events, start
        stop = SimpleNamespace(is_single_process=is_single_process, signalled=True)
        self.run = SimpleNamespace(watchdog=SimpleNamespace(begin=note("begin")), stop=stop)
        layout = SimpleNamespace(mesh=None)
        self.setup = SimpleNamespace(start_step=100, data=SimpleNamespace(steps=6), layout=layout)
        self.batches = self
        self.bad = SimpleNamespace(record=note("record"))
        self.guard = SimpleNamespace(limit=lambda step: step)
        self.progress = SimpleNamespace(pause=note("pause"), tick=lambda *args: 0.5)

    def __next__(self) -> tuple[Batch, BatchInfo]:
        self.read += 1
        length = 8 if self.read == 3 else 16
        batch = Batch(np.full((4, length), self.read), None, None, None, None)
        return batch, BatchInfo(np.full(4, self.read), [self.read])

    def step(self, state: State, batch: dict, limit: float):
        step = state.step + 1
        assert limit == step and (batch.tokens == step).all()
        self.events.append(f"dispatch {step}")
        metrics = dict(loss=Value(self.events, f"read {step}"), grad_norm=1.0, targets=4.0, applied=True, norms=None)
        if batch.stop is not None:
            metrics["stop"] = batch.stop.sum()
        return State(step), metrics


@pytest.fixture
def events(monkeypatch) -> list[str]:
    monkeypatch.setattr(steps, "global_batch", lambda rows, mesh: rows)
    return []


def run(stage: Stage, start: int, due: set[int]) -> list:
    results = []
    for result in training_steps(stage, stage.step, State(start), lambda step: step in due):
        stage.events.append(f"yield {result.step}")
        results.append(result)
    return results


def test_metrics_are_read_after_the_next_dispatch_unless_due(events):
    results = run(Stage(events), 0, {3, 6})
    assert [event for event in events if event.split()[0] in ("dispatch", "read", "yield", "pause")] == [
        "dispatch 1",
        *("dispatch 2", "read 1", "yield 1"),
        *("dispatch 3", "read 2", "yield 2"),
        *("read 3", "yield 3", "pause"),
        "dispatch 4",
        *("dispatch 5", "read 4", "yield 4"),
        *("dispatch 6", "read 5", "yield 5"),
        *("read 6", "yield 6", "pause"),
    ]
    assert [(r.step, r.is_due, r.state.step) for r in results] == [
        (1, False, 2), (2, False, 3), (3, True, 3), (4, False, 5), (5, False, 6), (6, True, 6),
    ]  # fmt: skip
    assert [list(r.metrics.index) for r in results] == [[step] * 4 for step in range(1, 7)]
    assert all(r.metrics.step_time == 0.5 and r.metrics.loss == 2.0 for r in results)


def test_resumed_step_has_no_metrics(events):
    first, *others = run(Stage(events, 4), 4, {4, 6})
    assert (first.step, first.metrics, first.is_due) == (4, None, True)
    assert [r.step for r in others] == [5, 6] and events.index("yield 4") < events.index("dispatch 5")
    (only,) = run(Stage(events, 6), 6, {6})
    assert (only.step, only.metrics) == (6, None)


def test_watchdog_gets_the_global_step_and_compiling_steps(events):
    run(Stage(events), 0, {6})
    begun = [event for event in events if event.startswith("begin")]
    kinds = ["compiling", "computing", "compiling", "computing", "computing", "computing"]
    assert begun == [f"begin {x}" for i, kind in enumerate(kinds) for x in (f"reading rows {101 + i}", kind)]
    assert "record 101 [1]" in events and events.index("record 101 [1]") < events.index("dispatch 1")


def test_processes_share_sigterm_through_the_step_metrics(events):
    assert all(r.metrics.stop for r in run(Stage(events, is_single_process=False), 0, {6}))
    assert not any(r.metrics.stop for r in run(Stage(events), 0, {6}))


def test_sample_names_are_those_of_the_step_without_fillers():
    batches = SimpleNamespace(indices=lambda step, process: [FILLER, 100 * step + 10 * process, 7])
    rows = SimpleNamespace(requested_names=lambda index: [f"sample {index}", "packed with it"])
    names = sample_names(batches, rows, 8)
    assert names(8, 1, None) == [], "of another stage"
    assert names(9, 1, None) == ["sample 10", "packed with it", "sample 7", "packed with it"]
    assert names(11, 0, 1) == ["sample 200", "packed with it"], "the row being read"
    assert names(11, 0, 0) == names(11, 0, 3) == []
