"""The step generator: dispatches the steps of a stage, and yields each with its metrics."""

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
    samples of the global batch that could not be read, None where the data does not count them. stop: SIGTERM has
    reached one of several processes. step_time: seconds since the step before, None after a pause. data_wait: seconds.
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
    """A step whose metrics are on the host. step: in its stage; metrics None for the one that the loop starts from.

    is_due: no later step has been dispatched, and `state` is the one after this step. Otherwise `state` is the one
    after the next step, for this step's was donated to it.
    """

    step: int
    metrics: StepMetrics | None
    state: TrainState
    is_due: bool


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step whose metrics are not on the host yet."""

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray
    step_time: float | None
    data_wait: float


def training_steps(
    stage: StageRun, train_step: Callable, state: TrainState, is_due: Callable[[int], bool]
) -> Iterator[StepResult]:
    """Yields every step from `state.step` to the stage's last, in order, each exactly once.

    The metrics of a step are read after the next one is dispatched, so that the devices never wait for the host. At a
    due step they are read first, and the caller may use its state before the next step is dispatched. The first step
    that is yielded has no metrics: it is that of `state`, where it is due. `is_due` must be True at the last step.
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
        state, metrics = train_step(state, batch, stage.guard.limit(step + 1))  # returns at once; the device works on
        step += 1
        if pending:
            yield _result(pending.step, pending, state, is_due=False)
        step_time = stage.progress.tick(data_wait, batch.tokens.size)
        pending = _Dispatched(step, metrics, index, step_time, data_wait)


def _next_batch(stage: StageRun, step: int, compiled: set[int]) -> tuple[Batch, np.ndarray, float]:
    """(the global batch of `step`, index int64[b] of this process's rows, seconds that it took).

    compiled: the lengths of rows for which there is a program; the batch's is added.
    """
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
    """Waits for the metrics of `pending`, which is `step`."""
    if pending is None:
        return StepResult(step, None, state, is_due)
    values = pending.metrics
    metrics = StepMetrics(
        loss=float(values["loss"]),
        grad_norm=float(values["grad_norm"]),
        targets=float(values["targets"]),
        replaced=float(values["replaced"]) if "replaced" in values else None,
        applied=bool(values["applied"]),
        stop=bool(values.get("stop", False)),
        norms=values["norms"],
        index=pending.index,
        step_time=pending.step_time,
        data_wait=pending.data_wait,
    )
    return StepResult(step, metrics, state, is_due)
