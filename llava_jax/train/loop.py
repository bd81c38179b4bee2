"""The run, top to bottom: open everything, then for each stage make or restore its state, step, evaluate, save.

Steps are counted twice: `step` within a stage (schedules), `global step` over all stages (checkpoints, metrics).
"""

import dataclasses
import json
import math
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

import llava_jax
from llava_jax import config as settings
from llava_jax.architectures import ModelConfig
from llava_jax.checkpoint.store import Store
from llava_jax.checkpoint.weights import load_module, save_module
from llava_jax.config import Config, Stage
from llava_jax.data.tokenizer import Tokenizer
from llava_jax.errors import ConfigError, DataError, UserError
from llava_jax.models.llava import Llava
from llava_jax.sharding import global_batch, make_mesh
from llava_jax.train import evaluate, report
from llava_jax.train.inputs import StageData, open_stage, open_tokenizer, training_batches
from llava_jax.train.metrics import MetricsWriter, Progress, model_flops
from llava_jax.train.optimizer import make_optimizer, rates, state_bytes
from llava_jax.train.state import (
    Params,
    TrainState,
    abstract_model,
    abstract_state,
    all_params,
    enter_stage,
    fingerprint,
    fresh_params,
)
from llava_jax.train.step import make_eval_step, make_train_step

MODULES = ("vision", "projector", "llm")


class Stopped(Exception):
    """SIGTERM arrived; everything is saved and the same command goes on from here."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One stage with everything derived from its config before anything is computed."""

    name: str
    index: int
    stage: Stage
    data: StageData
    rates: dict[str, float | None]
    tx: object
    abstract: TrainState
    start: int  # global step at which it begins

    @property
    def end(self) -> int:
        return self.start + self.data.steps


@dataclasses.dataclass
class Run:
    """What all stages share."""

    config: Config
    workdir: Path
    model_config: ModelConfig
    model: Llava
    mesh: Mesh
    tokenizer: Tokenizer
    store: Store
    writer: MetricsWriter
    say: Callable[[str], None]
    stop: bool = False  # set by SIGTERM


def train(config: Config, workdir: Path, argv: list[str]) -> None:
    """Runs or continues every stage of `config` in `workdir`. Raises Stopped after SIGTERM, UserError for a user's fault."""
    say = _say if jax.process_index() == 0 else (lambda text: None)
    began = time.perf_counter()

    # --- open everything that can fail, before anything is computed
    model_config = settings.model_config(config.model)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    tokenizer = open_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > model_config.llm.vocab_size:
        raise ConfigError(
            f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} tokens, model.llm={config.model.llm} embeds only "
            f"{model_config.llm.vocab_size}; choose the tokenizer that belongs to the language model"
        )
    plans = make_plans(config, model_config, mesh, tokenizer)
    _prepare(workdir, config, argv, mesh)
    store = Store(workdir / "checkpoints", config.checkpoint.keep)
    resumed = store.latest()
    done = _check_resume(store, resumed, config) if resumed is not None else -1
    kept_stages = [p.name for p in plans[: done + 1]]
    writer = MetricsWriter(workdir, resumed or 0, kept_stages)
    run = Run(config, workdir, model_config, Llava(model_config), mesh, tokenizer, store, writer, say)
    _save_on_sigterm(run)

    # --- the stages
    try:
        with jax.set_mesh(mesh):
            state, accuracy = None, None
            for plan in plans:
                if plan.index < done:
                    continue
                say(f"\nstage {plan.name}: {plan.data.steps} steps of {plan.stage.batch} rows")
                place = None
                if plan.index == done:
                    state, place = store.restore(resumed, plan.abstract)
                    say(f"continuing {workdir} behind step {int(state.step)} of {plan.name}")
                elif state is None:
                    state = _first_state(run, plan)
                else:
                    state = _next_state(run, plan, state)
                state, accuracy = run_stage(run, plan, state, place)
            store.wait()
            _export(run, state)
    finally:
        writer.close()
        store.close()
    if accuracy:
        say("\n" + "\n".join(evaluate.format_accuracy(*accuracy)))
    say(f"done: {workdir} ({time.perf_counter() - began:.0f} s)")


def make_plans(config: Config, model_config: ModelConfig, mesh: Mesh, tokenizer: Tokenizer) -> list[Plan]:
    """Opens the data and resolves the tables of all stages; raises before the first one has run, not after it."""
    shapes, _ = abstract_model(model_config)
    plans, start = [], 0
    rows_apart = mesh.shape["data"] * mesh.shape["fsdp"]
    for index, (name, stage) in enumerate(config.stages.items()):
        if stage.batch // stage.accumulation % rows_apart:
            raise ConfigError(
                f"stages.{name}: {stage.batch // stage.accumulation} rows per micro-batch do not split over "
                f"data x fsdp = {rows_apart} devices; make batch / accumulation a multiple of {rows_apart}"
            )
        data = open_stage(name, stage, config.seed, tokenizer, model_config.vision)
        peak = rates(shapes, stage.learning_rates)
        trained = {path: rate for path, rate in peak.items() if rate is not None}
        tx = make_optimizer(stage.optimizer, trained, data.steps)
        plans.append(Plan(name, index, stage, data, peak, tx, abstract_state(model_config, peak, tx, mesh), start))
        start += data.steps
    return plans


def run_stage(run: Run, plan: Plan, state: TrainState, place: dict | None):
    """Trains one stage to its end. Returns (state, (accuracy after, accuracy before) or None)."""
    stage, data = plan.stage, plan.data
    step = int(state.step)
    batches = training_batches(stage, data, run.config.seed)
    if place is not None:
        batches.set_state(place)
    train_step = make_train_step(run.model, plan.tx, plan.abstract, stage.accumulation, stage.loss_chunks)
    eval_step = make_eval_step(run.model, stage.loss_chunks)
    _introduce(run, plan, state)
    before_hash = fingerprint(state.frozen) if run.config.hash_frozen else None
    accuracy_file = run.workdir / f"accuracy-{plan.name}.json"
    if step == 0:
        before = _evaluate(run, plan, state, eval_step, 0) if stage.eval.before else None
        _write_json(accuracy_file, {"before": before})
    progress = Progress(plan.name, data.steps, stage.batch * stage.data.length, _flops(run, plan))
    pending = None  # (step, metrics) of the step that was dispatched but not yet read

    while step < data.steps:
        waiting = time.perf_counter()
        batch = global_batch(next(batches), run.mesh)
        waited = time.perf_counter() - waiting
        state, metrics = train_step(state, batch)  # returns at once; the device works on
        step += 1
        _read_metrics(run, plan, pending, progress)
        pending = (step, metrics)
        elapsed = progress.tick(waited)
        if elapsed is not None:
            run.writer.write(
                "timing", plan.start + step, {"stage": plan.name, "time/step": elapsed, "time/data_wait": waited}
            )

        last = step == data.steps
        due = run.config.checkpoint.every and (plan.start + step) % run.config.checkpoint.every == 0
        if last or run.stop or due or (stage.eval.every and step % stage.eval.every == 0):
            _read_metrics(run, plan, pending, progress)
            pending = None
            if not run.stop and (last or (stage.eval.every and step % stage.eval.every == 0)):
                after = _evaluate(run, plan, state, eval_step, step)
                if last:
                    _write_json(accuracy_file, {**_read_json(accuracy_file), "after": after})
            if last or run.stop or due:
                run.writer.flush()  # on disk before the checkpoint that vouches for it
                run.store.save(plan.start + step, state, batches.get_state(), _run_record(run.config, plan))
            if run.stop and not last:
                run.store.wait()
                raise Stopped(
                    f"stopped by SIGTERM behind step {step} of {plan.name}; the same command continues {run.workdir}"
                )
            progress.pause()
    batches.close()
    if before_hash:
        _say_frozen(run, before_hash, fingerprint(state.frozen))
    if run.stop:
        run.store.wait()
        raise Stopped(f"stopped by SIGTERM behind stage {plan.name}; the same command continues {run.workdir}")
    scores = _read_json(accuracy_file)
    return state, (scores["after"], scores.get("before")) if scores.get("after") else None


# ------------------------------------------------------------------------------------------------ the acts


def _first_state(run: Run, plan: Plan) -> TrainState:
    """Loaded where `load` names a file, freshly drawn elsewhere."""
    rng = jax.random.PRNGKey(run.config.seed)
    like = {**plan.abstract.frozen, **plan.abstract.trainable}
    params: Params = {}
    for module in MODULES:
        if file := getattr(run.config.load, module):
            params |= load_module(file, module, like)
            run.say(f"{module}: weights from {file}")
    missing = [p for p in like if p not in params]
    if missing:
        params |= fresh_params(run.model_config, run.mesh, rng, missing)
    return enter_stage(params, rng, plan.abstract, plan.tx)


def _next_state(run: Run, plan: Plan, state: TrainState) -> TrainState:
    """The parameters of the stage before, those of `fresh` modules drawn anew."""
    params, rng = all_params(state), jax.random.fold_in(state.rng, plan.index)
    again = [p for p in params if p.split("/")[0] in plan.stage.fresh]
    if again:
        params |= fresh_params(run.model_config, run.mesh, rng, again)
    return enter_stage(params, state.rng, plan.abstract, plan.tx)


def _introduce(run: Run, plan: Plan, state: TrainState) -> None:
    if jax.process_index() != 0:
        return
    for line in report.parameter_table(plan.abstract, plan.rates):
        run.say("  " + line)
    run.say(f"  optimizer state: {state_bytes(plan.abstract.opt_state):,} bytes")
    example = plan.data.train[0]
    run.say(f"sample {example.id}, supervised text in [[ ]]:")
    run.say(report.render_sample(plan.data.to_row(example), run.tokenizer))


def _read_metrics(run: Run, plan: Plan, pending, progress: Progress) -> None:
    """Waits for the metrics of one dispatched step and writes them."""
    if pending is None:
        return
    step, metrics = pending
    values = {f"train/{k}": float(v) for k, v in metrics.items()}
    run.writer.write("metrics", plan.start + step, {"stage": plan.name, **values})
    if not math.isfinite(values["train/loss"]):
        run.writer.flush()
        raise UserError(
            f"the loss of step {step} of stage {plan.name} is {values['train/loss']}; lower the learning rate, or look at "
            f"the data. The newest checkpoint in {run.workdir} is from before."
        )
    if step == 1 or step % run.config.log_every == 0 or step == plan.data.steps:
        run.say(progress.line(step, values["train/loss"]))


def _evaluate(run: Run, plan: Plan, state: TrainState, eval_step, step: int):
    """Held-out loss, sample answers, and the accuracy table where the stage has an exam (returned)."""
    stage, data, params = plan.stage, plan.data, all_params(state)
    if data.held_out is None:
        return None
    values = evaluate.held_out_loss(eval_step, params, stage, data, run.mesh)
    run.say("  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    table = None
    if data.exam:
        table = evaluate.accuracy(run.model, params, stage, data, run.tokenizer, run.mesh)
        values |= {f"val/accuracy/{kind}": row["image"] for kind, row in table.items()}
        values |= {f"val/accuracy_blank/{kind}": row["blank"] for kind, row in table.items()}
        run.say("\n".join(evaluate.format_accuracy(table, None)))
    if stage.eval.answers:
        examples = evaluate.first_examples(data.held_out, stage.eval.answers)
        texts = evaluate.answer(run.model, params, examples, stage, run.tokenizer, run.mesh, blank=False)
        if evaluate.is_writer():
            folder = run.workdir / "samples" / f"{plan.name}-{step:06d}"
            lines = evaluate.save_answers(folder, examples, texts)
            run.say("\n".join([f"answers on held-out samples ({folder}/answers.html):", *lines[:12]]))
    run.writer.write("metrics", plan.start + step, {"stage": plan.name, **values})
    return table


def _export(run: Run, state: TrainState) -> None:
    """Writes the modules that `save` names."""
    if state is None or jax.process_index() != 0:
        return
    for module in MODULES:
        if file := getattr(run.config.save, module):
            note = {"architecture": getattr(run.config.model, module), "select_layer": run.config.model.select_layer}
            path = save_module(file, module, all_params(state), "float32", note)
            run.say(f"{module}: weights written to {path} ({path.stat().st_size:,} bytes)")


def _prepare(workdir: Path, config: Config, argv: list[str], mesh: Mesh) -> None:
    """Makes the workdir and writes config.json and metadata.json."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            _write_json(workdir / "config.json", dataclasses.asdict(config))
            versions = {"llava_jax": llava_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
            devices = {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "mesh": dict(mesh.shape)}
            _write_json(workdir / "metadata.json", {"argv": argv, "versions": versions, "devices": devices})
    except OSError as e:
        raise DataError(
            f"workdir {workdir} cannot be written: {e.strerror or e}; choose another with --workdir"
        ) from None


def _run_record(config: Config, plan: Plan) -> dict:
    return {"stage": plan.name, "index": plan.index, "config": json.loads(json.dumps(dataclasses.asdict(config)))}


def _check_resume(store: Store, step: int, config: Config) -> int:
    """Index of the stage that checkpoint `step` belongs to. Raises ConfigError where it is of another model or run."""
    record = store.read_run(step)
    old, new = record["config"], json.loads(json.dumps(dataclasses.asdict(config)))
    for key in ("vision", "llm", "projector", "select_feature"):
        if old["model"][key] != new["model"][key]:
            raise ConfigError(
                f"the workdir holds a run with model.{key}={old['model'][key]!r}, the config says {new['model'][key]!r}; "
                "continue with the same model, or choose another --workdir"
            )
    if list(old["stages"])[: record["index"] + 1] != list(new["stages"])[: record["index"] + 1]:
        raise ConfigError(f"the workdir holds stages {list(old['stages'])}, the config {list(new['stages'])}")
    return record["index"]


def _save_on_sigterm(run: Run) -> None:
    def stop(signum, frame):
        del signum, frame
        run.stop = True

    signal.signal(signal.SIGTERM, stop)


def _flops(run: Run, plan: Plan) -> float:
    sizes = {p: math.prod(x.shape) for p, x in {**plan.abstract.frozen, **plan.abstract.trainable}.items()}
    stage = plan.stage
    trained = set(plan.abstract.trainable)
    return model_flops(run.model_config, sizes, trained, stage.batch, stage.data.length, stage.data.max_images)


def _say_frozen(run: Run, before: str, after: str) -> None:
    run.say(
        f"frozen parameters, SHA-256 before {before[:16]}.. and after {after[:16]}..: "
        + ("equal" if before == after else "CHANGED")
    )
    if before != after:
        raise UserError("frozen parameters changed during the stage; this is a bug, please report it")


def _write_json(path: Path, value) -> None:
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
        partial.replace(path)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _say(text: str) -> None:
    print(text, flush=True)
