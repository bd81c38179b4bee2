"""Logs each step: metrics, timing, the progress line, warnings, and skipped steps."""

from llava_jax.errors import Diverged
from llava_jax.train import step_guard
from llava_jax.train.stage_run import StageRun
from llava_jax.train.state import all_params
from llava_jax.train.steps import StepMetrics, StepResult


def log_step(stage: StageRun, result: StepResult) -> None:
    """Writes the metrics of a step, and updates the watchdog, the guard, the stop request and the bad-sample log. The
    metrics of a skipped step are only `skipped` and `replaced`. Every process must call it. Raises Diverged where too
    many steps in a row were skipped, DataError where too many samples were replaced."""
    run, setup, guard = stage.run, stage.setup, stage.guard
    step, metrics, global_step = result.step, result.metrics, setup.start_step + result.step
    if metrics.step_time is not None:
        times = {"time/step": metrics.step_time, "time/data_wait": metrics.data_wait}
        run.writer.write("timing", global_step, {"stage": setup.name, **times})
    run.watchdog.record_step(global_step)
    guard.update(step, metrics.loss, metrics.applied)
    run.stop.agree(metrics.stop)
    run.writer.write("metrics", global_step, {"stage": setup.name, **_record(metrics, guard.skipped)})
    stage.bad.add(int(metrics.replaced or 0))
    if not metrics.applied:
        _report_skipped(stage, result)
        return
    if metrics.loss > guard.spike_above(step):
        reason = guard.reason(step, _values(metrics))
        run.log(f"WARNING: step {step} of {setup.name}: {reason}; it was applied")
    if step == 1 or step % run.config.log_every == 0 or step == setup.data.steps:
        run.log(stage.progress.line(step, metrics.loss))


def _values(metrics: StepMetrics) -> dict[str, float]:
    return {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "targets": metrics.targets}


def _record(metrics: StepMetrics, skipped: int) -> dict[str, float]:
    """The values of a step for metrics.jsonl."""
    values = _values(metrics) if metrics.applied else {"skipped": skipped}
    if metrics.replaced is not None:
        values["replaced"] = metrics.replaced
    return {f"train/{name}": value for name, value in values.items()}


def _report_skipped(stage: StageRun, result: StepResult) -> None:
    """Logs why a step was skipped and writes its file. Raises Diverged where too many in a row were skipped."""
    run, setup, guard = stage.run, stage.setup, stage.guard
    step, metrics = result.step, result.metrics
    values = _values(metrics)
    reason = guard.reason(step, values)
    norms = {"gradient": dict(zip(sorted(result.state.trainable), metrics.norms.tolist(), strict=True))}
    if guard.has_too_many():
        norms["parameter"] = step_guard.parameter_norms(all_params(result.state), setup.layout.mesh)
    record = {"stage": setup.name, "step": step, "reason": reason, "skipped_in_a_row": guard.in_a_row, **values}
    samples = step_guard.sample_ids(setup.data.train, metrics.index)
    file = step_guard.write_skipped(run.folder, record, samples, norms)
    run.log(f"WARNING: step {step} of {setup.name} is skipped: {reason}; {file} names its samples")
    if guard.has_too_many():
        run.writer.flush()
        raise Diverged(
            f"{guard.in_a_row} steps in a row were skipped, the last one step {step} of stage {setup.name}: {reason}. "
            f"The weights are those after step {step - guard.in_a_row}. Samples, gradients and weights of these steps "
            f"are in {file.parent}: look at the samples, or lower the learning rate."
        )
