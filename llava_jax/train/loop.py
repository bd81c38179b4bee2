"""The run, top to bottom: open everything, then for each stage make or restore its state, step, evaluate, save.

Steps are counted twice: `step` within a stage (schedules), `global step` over all stages (checkpoints, metrics).
"""

import contextlib
import dataclasses
import errno
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from llava_jax import config as settings
from llava_jax.checkpoint.native.store import Store
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, DataError, Diverged, UserError, harmless
from llava_jax.models.llava import Llava
from llava_jax.runtime.accelerators import platform_of
from llava_jax.runtime.distributed import Processes
from llava_jax.runtime.mesh import check_processes, make_mesh
from llava_jax.runtime.sharding import global_batch
from llava_jax.runtime.watchdog import READING, Alive
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.train import evaluate, scene_exam, step_guard, summary, workdir
from llava_jax.train.bad_samples import BadSamples
from llava_jax.train.dataset import continued, place_in, training_batches
from llava_jax.train.metrics import MetricsWriter
from llava_jax.train.optimizer import state_bytes
from llava_jax.train.progress import Progress
from llava_jax.train.stages import Plan, export, first_state, make_plans, next_state
from llava_jax.train.state import TrainState, all_params, fingerprint
from llava_jax.train.step import make_eval_step, make_train_step

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no space (for this user, in one file), read-only


class Stopped(Exception):
    """SIGTERM arrived; everything is saved and the same command goes on from here."""


@dataclasses.dataclass
class Run:
    """What all stages share."""

    config: Config
    folder: Path
    model: Llava
    tokenizer: Tokenizer
    store: Store
    writer: MetricsWriter
    say: Callable[[str], None]
    alive: Alive
    alone: bool  # the only process
    signalled: bool = False  # by SIGTERM
    stop: bool = False  # the same in all processes at the same step, or they would wait for each other

    def signal(self) -> None:
        self.signalled = True
        self.stop = self.stop or self.alone  # of several, the step tells it to the others: see `_read_metrics`

    def asks(self) -> bool:
        """Whether to stop, asked outside of steps by all processes at the same place, which wait for each other."""
        self.alive.at("evaluating", slow=True)
        if not self.alone and not self.stop:
            self.stop = bool(np.any(multihost_utils.process_allgather(np.array(self.signalled))))
        return self.stop


def train(config: Config, folder: Path, argv: list[str], processes: Processes | None = None) -> None:
    """Runs or continues every stage of `config` in `folder`. processes: how long they wait for each other. Raises
    Stopped after SIGTERM, Diverged when too many steps in a row were skipped, another UserError for a fault."""
    alive = Alive(folder, processes or Processes(), jax.process_index(), jax.process_count())
    alive.start()
    try:
        _train(config, folder, argv, alive)
        alive.close()
    except Stopped:
        alive.close()
        raise
    except Exception as e:
        cause = e.__cause__ if isinstance(e, DataError) else e
        # So ends a computation, or a save, in which a process is missing; and many another thing.
        if isinstance(cause, (RuntimeError, ValueError)) and (lost := alive.lost()):
            alive.close()
            raise UserError(f"{lost}. The same command goes on from the newest checkpoint") from e
        alive.ends(str(e))
        if not isinstance(e, OSError) or e.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"workdir {folder} cannot be written: {e.strerror}; its checkpoints are as they were, the same command "
            "goes on from the newest"
        ) from e


def _train(config: Config, folder: Path, argv: list[str], alive: Alive) -> None:
    began = time.perf_counter()
    say = _say if jax.process_index() == 0 else (lambda text: None)

    # --- open everything that can fail, before anything is computed
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_processes(mesh)
    model_config = settings.model_config(config.model, platform_of(mesh))
    tokenizer = open_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > model_config.llm.vocab_size:
        raise ConfigError(
            f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} tokens, model.llm={config.model.llm} embeds only "
            f"{model_config.llm.vocab_size}; choose the tokenizer that belongs to the language model"
        )
    plans = make_plans(config, model_config, mesh, tokenizer)
    store = Store(folder / "checkpoints", config.checkpoint.keep)
    resumed = workdir.find_resumable(store, config, say)
    workdir.describe(folder, config, argv, mesh)
    writer = MetricsWriter(folder, resumed.keeps if resumed else lambda record: False)
    alone = jax.process_count() == 1
    run = Run(config, folder, Llava(model_config), tokenizer, store, writer, say, alive, alone)
    handler = signal.signal(signal.SIGTERM, lambda signum, frame: run.signal())

    # --- the stages
    state = None
    try:
        with contextlib.closing(store), contextlib.closing(writer):
            for plan in plans[resumed.index if resumed else 0 :]:
                say(f"\nstage {plan.name}: {plan.data.steps} steps of {plan.stage.batch} rows")
                alive.at("making or restoring the weights", plan.start, slow=True)
                _introduce(run, plan)
                with jax.set_mesh(plan.layout.mesh):
                    state, place, evaluated, watch = _begin(run, plan, state, resumed)
                    state = run_stage(run, plan, state, place, evaluated, watch)
                    store.wait()
                    for line in export(config, plan.stage, state):
                        say(line)
    finally:
        signal.signal(signal.SIGTERM, handler)
    for plan in plans:
        scores = workdir.read_json(_scores_file(run, plan))
        if scores.get("after"):
            say(f"\naccuracy on held-out scenes, before and after stage {plan.name}:")
            say("\n".join(scene_exam.format_accuracy(scores["after"], scores.get("before"))))
    say(f"done: {folder} ({time.perf_counter() - began:.0f} s)")


def _begin(
    run: Run, plan: Plan, state: TrainState | None, resumed: workdir.Resumed | None
) -> tuple[TrainState, dict | None, bool, step_guard.Guard]:
    """What `run_stage` takes: from the checkpoint where it is of this stage, else from the stage before, `state`."""
    config = run.config
    if resumed and plan.index == resumed.index:
        state, place = run.store.restore(resumed.step, plan.layout.abstract)
        _check_steps(plan, int(state.step), resumed.step)
        run.say(f"continuing {run.folder} behind step {int(state.step)} of {plan.name}")
        return state, place, resumed.evaluated, step_guard.Guard(config.guard, resumed.guard)
    if state is None:
        state = first_state(config, run.model.config, plan, run.say)
    else:
        state = next_state(run.model.config, plan, state)
    return state, None, False, step_guard.Guard(config.guard)


def run_stage(
    run: Run, plan: Plan, state: TrainState, place: dict | None, evaluated: bool, watch: step_guard.Guard
) -> TrainState:
    """Trains one stage to its end.

    place: where the data goes on, None from the start. evaluated: the evaluation of the state's step is already made.
    watch: counts the skipped steps. Raises Diverged where they are too many in a row.
    Per step: dispatch, then read the metrics of the step before. At a due step: read, evaluate, save, in this order.
    """
    stage, steps = plan.stage, plan.data.steps
    step = int(state.step)
    if place is not None:
        plan = dataclasses.replace(plan, data=continued(plan.data, place))
    batches = training_batches(stage, plan.data, run.config.seed)
    if place is not None:
        batches.set_state({name: value for name, value in place.items() if name not in ("replaced", "mixture")})
    run.alive.trains_on(batches, plan.data.train, plan.start)
    replaced, ceiling = (place or {}).get("replaced", 0), stage.data.bad_ceiling
    bad = BadSamples(run.folder, plan.name, plan.start + step, replaced, plan.data.samples, ceiling, run.say)
    train_step = make_train_step(run.model, plan.layout.tx, plan.layout.abstract, stage.accumulation, stage.loss_chunks)
    eval_step = make_eval_step(run.model, stage.loss_chunks)
    frozen_before = fingerprint(state.frozen) if run.config.hash_frozen else None
    progress = Progress(plan.name, steps, stage.batch * stage.data.length, plan.layout.flops)
    unread = None  # (step, metrics, index of the rows) of the newest dispatched step
    compiled = set()  # the lengths of rows for which there is a program

    while True:
        evaluates = plan.evaluates(step) and not evaluated
        saves = step == steps or (step > 0 and (plan.start + step) % run.config.checkpoint.every == 0)
        if run.stop or evaluates or saves:
            unread = _read_metrics(run, plan, watch, bad, state, unread, progress)
            if evaluates and not run.stop:
                evaluated = _evaluate(run, plan, state, eval_step, step)
            stopping = run.stop
            if step > 0 and (stopping or saves):
                run.alive.at("saving", slow=True)
                run.writer.flush()  # on disk before the checkpoint that vouches for it
                evaluated_now = evaluated or not evaluates
                about = workdir.record(run.config, plan.index, plan.name, evaluated_now, watch.record())
                run.store.save(plan.start + step, state, place_in(plan.data, batches) | {"replaced": bad.count}, about)
            if stopping:
                run.store.wait()
                raise Stopped(
                    f"stopped by SIGTERM behind step {step} of {plan.name}; the same command continues {run.folder}"
                )
            progress.pause()
        if step == steps:
            break
        began = time.perf_counter()
        run.alive.at(READING, plan.start + step + 1)
        rows = next(batches)
        if not run.alone:
            rows["stop"] = np.full(len(rows["index"]), run.signalled, np.int32)
        length = rows["tokens"].shape[1]
        run.alive.at("computing" if length in compiled else "compiling", slow=length not in compiled)
        compiled.add(length)
        batch = global_batch(rows, plan.layout.mesh)
        waited = time.perf_counter() - began
        bad.record(plan.start + step + 1, batches.replaced)
        state, metrics = train_step(state, batch, watch.limit(step + 1))  # returns at once; the device works on
        step, evaluated = step + 1, False
        _read_metrics(run, plan, watch, bad, state, unread, progress)
        unread = (step, metrics, rows["index"])
        elapsed = progress.tick(waited, batch["tokens"].size)
        if elapsed is not None:
            times = {"time/step": elapsed, "time/data_wait": waited}
            run.writer.write("timing", plan.start + step, {"stage": plan.name, **times})

    run.alive.at("ending the stage", slow=True)
    batches.close()
    if watch.skipped:
        run.say(f"{watch.skipped} of {steps} steps were skipped; {run.folder / step_guard.SKIPPED} says which and why")
    if frozen_before:
        _compare_frozen(run, frozen_before, fingerprint(state.frozen))
    return state


def _check_steps(plan: Plan, step: int, global_step: int) -> None:
    if plan.start + step != global_step or step > plan.data.steps:
        raise ConfigError(
            f"checkpoint {global_step} is step {step} of stage {plan.name}, which now has {plan.data.steps} steps from "
            f"{plan.start} on; restore the stages' lengths, or choose another --workdir"
        )


def _introduce(run: Run, plan: Plan) -> None:
    """Prints what will be trained, and one sample as the model will see it."""
    for line in summary.parameter_table(plan.layout.abstract, plan.layout.rates):
        run.say("  " + line)
    run.say(f"  optimizer state: {state_bytes(plan.layout.abstract.opt_state):,} bytes")
    run.say(f"  attention: {run.model.config.attention}")
    run.say(f"sample {', '.join(plan.data.train.names(0))}, supervised text in [[ ]]:")
    run.say(summary.render_sample(plan.data.train.row(0), run.tokenizer))


def _read_metrics(
    run: Run, plan: Plan, watch: step_guard.Guard, bad: BadSamples, state: TrainState, unread, progress: Progress
) -> None:
    """Waits for the metrics of a dispatched step and writes them; a skipped one has no others than that it was, and how
    many samples were replaced. Raises Diverged where that makes too many in a row, DataError where too many were
    replaced. state: the newest one, perhaps of the step after."""
    if unread is None:
        return
    step, metrics, index = unread
    values = {k: float(metrics[k]) for k in ("loss", "grad_norm", "targets")}
    replaced = {k: float(v) for k, v in metrics.items() if k == "replaced"}
    applied = bool(metrics["applied"])
    run.alive.has_read(plan.start + step)
    watch.read(step, values["loss"], applied)
    run.stop = run.stop or bool(metrics.get("stop", False))  # of several processes, SIGTERM at any of them
    written = {f"train/{k}": v for k, v in ((values if applied else {"skipped": watch.skipped}) | replaced).items()}
    run.writer.write("metrics", plan.start + step, {"stage": plan.name, **written})
    bad.add(int(replaced.get("replaced", 0)))
    if not applied:
        _report_skipped(run, plan, watch, state, step, values, metrics["norms"], index)
        return
    if values["loss"] > watch.spike_above(step):
        run.say(f"WARNING: step {step} of {plan.name}: {watch.reason(step, values)}; it was applied")
    if step == 1 or step % run.config.log_every == 0 or step == plan.data.steps:
        run.say(progress.line(step, values["loss"]))


def _report_skipped(
    run: Run, plan: Plan, watch: step_guard.Guard, state: TrainState, step: int, values: dict, norms: jax.Array, index
) -> None:
    """Says and writes down which step was skipped and why. Raises Diverged where it is one too many."""
    why = watch.reason(step, values)
    known = {"gradient": dict(zip(sorted(state.trainable), norms.tolist(), strict=True))}
    if watch.is_over():
        known["parameter"] = step_guard.parameter_norms(all_params(state), plan.layout.mesh)
    about = {"stage": plan.name, "step": step, "reason": why, "skipped_in_a_row": watch.in_a_row, **values}
    file = step_guard.write_skipped(run.folder, about, step_guard.sample_ids(plan.data.train, index), known)
    run.say(f"WARNING: step {step} of {plan.name} is skipped: {why}; {file} names its samples")
    if watch.is_over():
        run.writer.flush()
        raise Diverged(
            f"{watch.in_a_row} steps in a row were skipped, the last one step {step} of stage {plan.name}: {why}. The "
            f"weights are those behind step {step - watch.in_a_row}. Samples, gradients and weights of these steps are "
            f"in {file.parent}: look at the samples, or lower the learning rate."
        )


def _evaluate(run: Run, plan: Plan, state: TrainState, eval_step, step: int) -> bool:
    """Held-out loss, sample answers, and accuracy by kind where there is an exam. False when SIGTERM cut it off."""
    stage, data, params = plan.stage, plan.data, all_params(state)
    if data.held_out is None:
        return True
    speaker = evaluate.Speaker(run.model, params, stage, run.tokenizer, plan.layout.mesh, run.asks)
    try:
        values = evaluate.held_out_loss(eval_step, speaker, data)
        run.say(f"held out, step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
        if data.exam:
            table = scene_exam.accuracy(speaker, data.exam)
            values |= {f"val/accuracy/{kind}": row["image"] for kind, row in table.items()}
            values |= {f"val/accuracy_blank/{kind}": row["blank"] for kind, row in table.items()}
            run.say("\n".join(scene_exam.format_accuracy(table, None)))
            scores = workdir.read_json(_scores_file(run, plan)) if step else {}
            workdir.write_json(_scores_file(run, plan), {**scores, "after" if step else "before": table})
        if stage.eval.answers:
            examples = data.held_out.readable(stage.eval.answers)
            texts = evaluate.answer(speaker, examples, blank=False)
            folder = run.folder / "samples" / f"{plan.name}-{step:06d}"
            if jax.process_index() == 0:
                evaluate.save_answers(folder, examples, texts)
            run.say(f"answers on held-out samples, all of them in {folder}/answers.html:")
            run.say("\n".join(evaluate.format_answers(examples[:3], texts)))
    except evaluate.Interrupted:
        return False
    run.writer.write("metrics", plan.start + step, {"stage": plan.name, **values})
    return True


def _scores_file(run: Run, plan: Plan) -> Path:
    return run.folder / f"accuracy-{plan.name}.json"


def _compare_frozen(run: Run, before: str, after: str) -> None:
    run.say(f"frozen parameters, SHA-256 before: {before}\n                           after:  {after}")
    if before != after:
        raise UserError("frozen parameters changed during the stage; this is a bug, please report it")


def _say(text: str) -> None:
    print(harmless(text), flush=True)
