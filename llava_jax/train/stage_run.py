"""The objects that the train loop shares, for the whole run and for one stage; how a stage starts or resumes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.config.schema import Config
from llava_jax.data.bad_samples import BadSampleLog
from llava_jax.data.pipeline import FILLER, Batches
from llava_jax.data.rows import Rows
from llava_jax.models.llava import Llava
from llava_jax.runtime.verdict import SampleNames
from llava_jax.runtime.watchdog import Watchdog
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.train.dataset import resume_data, training_batches
from llava_jax.train.evaluations import Evaluation
from llava_jax.train.metrics import MetricsWriter
from llava_jax.train.progress import Progress
from llava_jax.train.stages import StageSetup, first_state, next_state
from llava_jax.train.state import TrainState
from llava_jax.train.step_guard import StepGuard
from llava_jax.train.stop_request import StopRequest
from llava_jax.train.workdir import Resumed, check_stage_length


@dataclasses.dataclass(frozen=True)
class Run:
    """The objects of all stages. records: what the checkpoints of each stage record. log: prints a line, on process 0
    only."""

    config: Config
    records: list[dict]
    folder: Path
    model: Llava
    tokenizer: Tokenizer
    store: CheckpointStore
    writer: MetricsWriter
    log: Callable[[str], None]
    watchdog: Watchdog
    stop: StopRequest
    evaluations: tuple[Evaluation, ...]


@dataclasses.dataclass(frozen=True)
class StageStart:
    """Where a stage starts or resumes. data_state: None at the start of the stage. is_evaluated: whether the evaluation
    at the state's step is done. guard: with the skipped steps of the stage so far."""

    state: TrainState
    data_state: dict | None
    is_evaluated: bool
    guard: StepGuard


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One stage while it trains."""

    run: Run
    setup: StageSetup
    batches: Batches
    bad: BadSampleLog
    guard: StepGuard
    progress: Progress


def start_stage(run: Run, setup: StageSetup, state: TrainState | None, resumed: Resumed | None) -> StageStart:
    """Restores the checkpoint if it is of this stage. Otherwise starts from `state` of the previous stage (None for the
    first). Raises ConfigError where the stage lengths have changed since the checkpoint was saved."""
    config = run.config
    if resumed and setup.index == resumed.index:
        state, data_state = run.store.restore(resumed.step, setup.layout.abstract)
        check_stage_length(setup, int(state.step), resumed.step)
        run.log(f"resuming {run.folder} after step {int(state.step)} of {setup.name}")
        return StageStart(state, data_state, resumed.evaluated, StepGuard(config.guard, resumed.guard))
    if state is None:
        state = first_state(config, run.model.config, setup, run.log)
    else:
        state = next_state(run.model.config, setup, state)
    return StageStart(state, None, False, StepGuard(config.guard))


def open_stage_run(run: Run, setup: StageSetup, start: StageStart) -> StageRun:
    """Opens the data at the point of start or resume, the bad-sample log and the progress line."""
    stage, data_state = setup.stage, start.data_state
    if data_state is not None:
        setup = dataclasses.replace(setup, data=resume_data(setup.data, data_state))
    batches = training_batches(stage, setup.data, run.config.seed)
    if data_state is not None:
        batches.set_state({name: value for name, value in data_state.items() if name not in ("replaced", "mixture")})
    run.watchdog.watch_data(lambda: batches.ready, sample_names(batches, setup.data.train, setup.start_step))
    step, replaced = setup.start_step + int(start.state.step), (data_state or {}).get("replaced", 0)
    bad = BadSampleLog(
        run.folder, setup.name, step, replaced, setup.data.samples, stage.data.bad_ceiling, run.log,
        jax.process_index(), jax.process_count(),
    )  # fmt: skip
    progress = Progress(setup.name, setup.data.steps, stage.batch * stage.data.length, setup.layout.flops)
    return StageRun(run, setup, batches, bad, start.guard, progress)


def sample_names(batches: Batches, rows: Rows, start_step: int) -> SampleNames:
    """A function for the watchdog that names the samples of a stage's batches without reading data. start_step: global
    step at which the stage starts."""

    def names(step: int, process: int, ready: int | None) -> list[str]:
        if step <= start_step:
            return []
        index = batches.indices(step - start_step - 1, process)
        index = index if ready is None else index[ready : ready + 1]
        return [name for i in index if i != FILLER for name in rows.requested_names(i)]

    return names
