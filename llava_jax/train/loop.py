"""The training run: opens everything, then for each stage initializes or restores the state, steps, evaluates, saves.

There are two step counts: `step` within a stage (schedules) and `global step` over all stages (checkpoints, metrics).
"""

import contextlib
import errno
import time
from functools import partial
from pathlib import Path

import jax

from llava_jax.checkpoint.architecture import run_model
from llava_jax.checkpoint.chat_templates import with_templates
from llava_jax.checkpoint.native.run_inputs import has_checkpoint, open_run_tokenizer
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, DataError, UserError
from llava_jax.images.metadata import EXIF_RULES
from llava_jax.models.llava import Llava
from llava_jax.output.console import log, log_until_lost
from llava_jax.runtime.accelerators import platform_of
from llava_jax.runtime.distributed import DistributedConfig
from llava_jax.runtime.mesh import check_processes, make_mesh
from llava_jax.runtime.watchdog import Watchdog
from llava_jax.text.templates import IMAGE_MARKER
from llava_jax.train import step_guard, summary, workdir
from llava_jax.train.dataset import data_state_of
from llava_jax.train.evaluate import Evaluator
from llava_jax.train.evaluations import EVALUATIONS, Evaluation, EvaluationContext, run_evaluations
from llava_jax.train.metrics import MetricsWriter
from llava_jax.train.optimizer import state_bytes
from llava_jax.train.stage_run import Run, StageRun, StageStart, open_stage_run, start_stage
from llava_jax.train.stages import StageSetup, export, make_stage_setups
from llava_jax.train.state import TrainState, all_params, params_sha256
from llava_jax.train.step import make_eval_step, make_train_step
from llava_jax.train.step_log import log_step
from llava_jax.train.steps import training_steps
from llava_jax.train.stop_request import Stopped, StopRequest

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # disk, quota or file size exceeded; read-only


def train(
    config: Config,
    folder: Path,
    argv: list[str],
    processes: DistributedConfig | None = None,
    evaluations: tuple[Evaluation, ...] = EVALUATIONS,
) -> None:
    """Trains all stages of `config` in the workdir `folder`; resumes if it has a checkpoint.

    processes: timeouts of the watchdog. evaluations: run in this order at each step that is due for evaluation. Raises
    Stopped after a stop signal, Diverged when too many steps in a row were skipped, another UserError for other faults.
    """
    watchdog = Watchdog(
        folder, processes or DistributedConfig(), jax.process_index(), jax.process_count(), partial(log, to_stderr=True)
    )
    watchdog.start()
    try:
        _train(config, folder, argv, watchdog, evaluations)
        watchdog.close()
    except Stopped:
        watchdog.close()
        raise
    except Exception as e:
        cause = e.__cause__ if isinstance(e, DataError) else e
        # A computation or a save raises these when a process is missing, but other faults do too.
        if isinstance(cause, (RuntimeError, ValueError)) and (lost := watchdog.explain_lost()):
            watchdog.close()
            raise UserError(f"{lost}. The same command resumes from the newest checkpoint") from e
        watchdog.record_end(str(e))
        if not isinstance(e, OSError) or e.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"workdir {folder} cannot be written: {e.strerror}; its checkpoints are intact, the same command "
            "resumes from the newest"
        ) from e


def _train(
    config: Config, folder: Path, argv: list[str], watchdog: Watchdog, evaluations: tuple[Evaluation, ...]
) -> None:
    started = time.perf_counter()
    stop = StopRequest(is_single_process=jax.process_count() == 1)
    log_line = partial(log_until_lost, log, stop.receive) if jax.process_index() == 0 else (lambda text: None)

    # All inputs are opened and checked before anything is computed.
    # --- mesh
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_processes(mesh)

    # --- model
    model_config = run_model(config, platform_of(mesh), folder, log_line)
    tokenizer = open_run_tokenizer(folder, config.tokenizer, config.load.llm, log_line)
    image_id = tokenizer.special.get(IMAGE_MARKER, -1)  # needs no row: features replace it
    if tokenizer.vocab_size > max(model_config.llm.vocab_size, image_id + 1):
        raise ConfigError(
            f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} tokens, model.llm={config.model.llm} embeds only "
            f"{model_config.llm.vocab_size}; choose the tokenizer that belongs to the language model"
        )

    # --- data
    recorded = workdir.read_json(folder / "config.json") if has_checkpoint(folder) else {}
    config = with_templates(config, recorded, tokenizer, log_line, is_main=jax.process_index() == 0)
    setups = make_stage_setups(config, model_config, mesh, tokenizer)

    # --- workdir
    store = CheckpointStore(folder / "checkpoints", config.checkpoint.keep)
    records = workdir.stage_records(config, tokenizer, setups)
    resumed = workdir.find_resumable(store, folder, setups, records, log_line)
    workdir.write_run_files(folder, config, argv, mesh, tokenizer, model_config)
    writer = MetricsWriter(folder, resumed.is_past if resumed else lambda record: False)
    model = Llava(model_config)
    run = Run(config, records, folder, model, tokenizer, store, writer, log_line, watchdog, stop, evaluations)

    # --- stages
    state = None
    with stop.on_signals():
        with contextlib.closing(store), contextlib.closing(writer):
            for setup in setups[resumed.index if resumed else 0 :]:
                log_line(f"\nstage {setup.name}: {setup.data.steps} steps of {setup.stage.batch} rows")
                watchdog.begin("initializing or restoring the weights", setup.start_step, slow=True)
                _log_setup(run, setup)
                with jax.set_mesh(setup.layout.mesh):
                    start, state = start_stage(run, setup, state, resumed), None  # frees the state of the stage before
                    state = run_stage(run, setup, start)
                    store.wait()
                    for line in export(model_config, setup.stage, state):
                        log_line(line)

        # --- summary
        for setup in setups:
            for evaluation in evaluations:
                for line in evaluation.summary(folder, setup.name):
                    log_line(line)
        log_line(f"done: {folder} ({time.perf_counter() - started:.0f} s)")


def run_stage(run: Run, setup: StageSetup, start: StageStart) -> TrainState:
    """Trains one stage to its end. At each due step it logs the metrics, evaluates and saves, in this order. Raises
    Stopped after a stop signal, Diverged when too many steps in a row were skipped."""
    stage = open_stage_run(run, setup, start)
    setup, state = stage.setup, start.state
    accumulation, chunks = setup.stage.accumulation, setup.stage.loss_chunks
    train_step = make_train_step(run.model, setup.layout.tx, setup.layout.abstract, accumulation, chunks)
    eval_step = make_eval_step(run.model, chunks)
    frozen_before = params_sha256(state.frozen) if run.config.hash_frozen else None
    evaluated_step = int(state.step) if start.is_evaluated else None

    def lacks_evaluation(step: int) -> bool:
        return setup.evaluates(step) and step != evaluated_step

    def is_due(step: int) -> bool:
        return run.stop.is_agreed or lacks_evaluation(step) or _is_saved(run, setup, step)

    for result in training_steps(stage, train_step, state, is_due):
        step, state = result.step, result.state
        if result.metrics:
            log_step(stage, result)
        if not result.is_due:
            continue
        if lacks_evaluation(step) and not run.stop.is_agreed and _evaluate(run, setup, state, eval_step, step):
            evaluated_step = step
        stopping = run.stop.is_agreed
        if step > 0 and (stopping or _is_saved(run, setup, step)):
            _save(stage, state, step, is_evaluated=not lacks_evaluation(step))
        if stopping:
            run.store.wait()
            raise run.stop.stopped(step, setup.name, run.folder)

    _end_stage(stage, state, frozen_before)
    return state


def _log_setup(run: Run, setup: StageSetup) -> None:
    """Logs the parameter table and one training sample."""
    for line in summary.parameter_table(setup.layout.abstract, setup.layout.learning_rates):
        run.log("  " + line)
    run.log(f"  optimizer state: {state_bytes(setup.layout.abstract.opt_state):,} bytes")
    run.log(f"  attention: {run.model.config.attention}")
    if setup.stage.data.source == "files" and setup.stage.data.max_images:
        run.log(f"  EXIF orientation of images: {EXIF_RULES[setup.stage.data.exif]}")
    run.log(f"sample {', '.join(setup.data.train.names(0))}, supervised text in [[ ]]:")
    run.log(summary.render_sample(setup.data.train.row(0).arrays, run.tokenizer))


def _evaluate(run: Run, setup: StageSetup, state: TrainState, eval_step, step: int) -> bool:
    """Runs the evaluations and writes their values. False where a stop signal interrupted one."""
    if setup.data.held_out is None:
        return True

    def should_stop() -> bool:
        run.watchdog.begin("evaluating", slow=True)
        return run.stop.synchronize()

    evaluator = Evaluator(run.model, all_params(state), setup.stage, run.tokenizer, setup.layout.mesh, should_stop)
    values = run_evaluations(run.evaluations, EvaluationContext(setup, step, evaluator, eval_step, run.folder, run.log))
    if values is None:
        return False
    run.writer.write("metrics", setup.start_step + step, {"stage": setup.name, **values})
    return True


def _is_saved(run: Run, setup: StageSetup, step: int) -> bool:
    """Whether a checkpoint is due at `step` of this stage."""
    return step == setup.data.steps or (step > 0 and (setup.start_step + step) % run.config.checkpoint.every == 0)


def _save(stage: StageRun, state: TrainState, step: int, is_evaluated: bool) -> None:
    """Starts saving a checkpoint. All metrics up to `step` must have been read."""
    run, setup = stage.run, stage.setup
    run.watchdog.begin("saving", slow=True)
    run.writer.flush()  # on disk before the checkpoint that refers to them
    record = run.records[setup.index] | {"evaluated": is_evaluated, "guard": stage.guard.record()}
    data_state = data_state_of(setup.data, stage.batches) | {"replaced": stage.bad.count}
    run.store.save(setup.start_step + step, state, data_state, record)


def _end_stage(stage: StageRun, state: TrainState, frozen_before: str | None) -> None:
    """Closes the data, reports skipped steps, and checks that the frozen parameters are unchanged."""
    run, setup, skipped = stage.run, stage.setup, stage.guard.skipped
    run.watchdog.begin("ending the stage", slow=True)
    stage.batches.close()
    if skipped:
        folder = run.folder / step_guard.SKIPPED
        run.log(f"{skipped} of {setup.data.steps} steps were skipped; see {folder} for the reasons")
    if frozen_before:
        after = params_sha256(state.frozen)
        run.log(f"frozen parameters, SHA-256 before: {frozen_before}\n                           after:  {after}")
        if frozen_before != after:
            raise UserError("frozen parameters changed during the stage; this is a bug, please report it")
