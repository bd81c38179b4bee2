"""The step generator: dispatches the steps of a stage and yields each with its metrics."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from llava_jax.runtime.heartbeat import READING
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.token_row import Batch
from llava_jax.train.stage_run import StageRun
from llava_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """The metrics of one step on the host, the same in every process (see `make_train_step`).

    index: int64[b], this process's rows of the batch. norms: float32[trained parameters], on the devices. replaced:
    number of unreadable samples of the global batch, None where the data does not count them. stop: whether one of
    several processes got a signal. step_time: seconds since the previous step, None after a pause. data_wait: seconds.
    """

    loss: float
    grad_norm: float
    targets: float
    replaced: float | None
    applied: bool
    stop: bool
    norms: jax.Array
    index: np.ndarray
    step_time: float | None
    data_wait: float


@dataclasses.dataclass(frozen=True)
class StepResult:
    """A step whose metrics are on the host. step: within its stage. metrics: None for the step that the loop starts at.
    is_due: no later step was dispatched, so `state` is the one after this step. Otherwise it is the one after the next
    step, to which this step's state was donated."""

    step: int
    metrics: StepMetrics | None
    state: TrainState
    is_due: bool


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step whose metrics are not yet on the host."""

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray
    step_time: float | None
    data_wait: float


def training_steps(
    stage: StageRun, train_step: Callable, state: TrainState, is_due: Callable[[int], bool]
) -> Iterator[StepResult]:
    """Yields every step after `state.step` up to the last of the stage, once each and in order.

    The metrics of a step are read after the next one is dispatched, so that the devices never wait for the host. At a
    due step they are read before, and the caller may use its state. If `state.step` itself is due, it is yielded first,
    without metrics. `is_due` must be True at the last step.
    """
    step, pending, compiled = int(state.step), None, set()
    while True:
        if is_due(step):
            yield _result(step, pending, state, is_due=True)
            pending = None
            stage.progress.pause()
        if step == stage.setup.data.steps:
            return
        batch, index, data_wait = _next_batch(stage, step + 1, compiled)
        state, metrics = train_step(state, batch, stage.guard.limit(step + 1))  # returns before the device has finished
        step += 1
        if pending:
            yield _result(pending.step, pending, state, is_due=False)
        step_time = stage.progress.tick(data_wait, batch.tokens.size)
        pending = _Dispatched(step, metrics, index, step_time, data_wait)


def _next_batch(stage: StageRun, step: int, compiled: set[int]) -> tuple[Batch, np.ndarray, float]:
    """(global batch of `step`, int64[b] indices of this process's rows, seconds waited). compiled: row lengths for
    which the step is compiled; the length of this batch is added."""
    run, global_step = stage.run, stage.setup.start_step + step
    started = time.perf_counter()
    run.watchdog.begin(READING, global_step)
    rows, info = next(stage.batches)
    if not run.stop.is_single_process:
        rows = rows._replace(stop=np.full(len(info.index), run.stop.signalled, np.int32))
    length = rows.tokens.shape[1]
    run.watchdog.begin("computing" if length in compiled else "compiling", slow=length not in compiled)
    compiled.add(length)
    batch = global_batch(rows, stage.setup.layout.mesh)
    data_wait = time.perf_counter() - started
    stage.bad.record(global_step, info.replaced)
    return batch, info.index, data_wait


def _result(step: int, pending: _Dispatched | None, state: TrainState, is_due: bool) -> StepResult:
    """Waits for the metrics of `pending`, which is step `step`."""
    if pending is None:
        return StepResult(step, None, state, is_due)
    values = pending.metrics
    metrics = StepMetrics(
        loss=float(values["loss"]), grad_norm=float(values["grad_norm"]), targets=float(values["targets"]),
        replaced=float(values["replaced"]) if "replaced" in values else None, applied=bool(values["applied"]),
        stop=bool(values.get("stop", False)), norms=values["norms"], index=pending.index,
        step_time=pending.step_time, data_wait=pending.data_wait,
    )  # fmt: skip
    return StepResult(step, metrics, state, is_due)
