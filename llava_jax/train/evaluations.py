"""The evaluations of a stage: callables for the train loop, whose values form one metrics record."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from llava_jax.data.inspection.answers_page import format_answers
from llava_jax.train import evaluate, scene_exam, workdir
from llava_jax.train.sample_answers import save_answers
from llava_jax.train.stages import StageSetup


@dataclasses.dataclass(frozen=True)
class EvaluationContext:
    """step: of the stage. evaluator: the model with the weights after that step. eval_step: see `make_eval_step`.
    folder: the workdir. log: prints a line, on process 0 only."""

    setup: StageSetup
    step: int
    evaluator: evaluate.Evaluator
    eval_step: Callable
    folder: Path
    log: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """values: returns part of a metrics record, the same on every process; all must call it. Raises Interrupted where
    the run has to stop. summary: (workdir, stage name) -> lines that are logged at the end of the run."""

    values: Callable[[EvaluationContext], dict[str, float]]
    summary: Callable[[Path, str], list[str]] = lambda folder, stage: []


def run_evaluations(evaluations: tuple[Evaluation, ...], context: EvaluationContext) -> dict[str, float] | None:
    """The values of all evaluations, in their order; None where a stop signal interrupted one."""
    values = {}
    try:
        for evaluation in evaluations:
            values |= evaluation.values(context)
    except evaluate.Interrupted:
        return None
    return values


def _held_out_loss(context: EvaluationContext) -> dict[str, float]:
    values = evaluate.held_out_loss(context.eval_step, context.evaluator, context.setup.data.held_out)
    context.log(f"held out, step {context.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    return values


def _scene_accuracy(context: EvaluationContext) -> dict[str, float]:
    """Accuracy on the stage's exam; also written to `accuracy-<stage>.json`, at step 0 as `before`, else as `after`."""
    if not context.setup.data.exam:
        return {}
    table = scene_exam.accuracy(context.evaluator, context.setup.data.exam)
    context.log("\n".join(scene_exam.format_accuracy(table, None)))
    file = _scores_file(context.folder, context.setup.name)
    scores = workdir.read_json(file) if context.step else {}
    workdir.write_json(file, {**scores, "after" if context.step else "before": table})
    with_image = {f"val/accuracy/{kind}": row["image"] for kind, row in table.items()}
    return with_image | {f"val/accuracy_blank/{kind}": row["blank"] for kind, row in table.items()}


def _scene_summary(folder: Path, stage: str) -> list[str]:
    scores = workdir.read_json(_scores_file(folder, stage))
    if not scores.get("after"):
        return []
    table = scene_exam.format_accuracy(scores["after"], scores.get("before"))
    return [f"\naccuracy on held-out scenes, before and after stage {stage}:", "\n".join(table)]


def _scores_file(folder: Path, stage: str) -> Path:
    return folder / f"accuracy-{stage}.json"


def _sample_answers(context: EvaluationContext) -> dict[str, float]:
    """Writes answers to the first held-out samples to `samples/<stage>-<step>` of the workdir. Returns no values."""
    setup, log = context.setup, context.log
    if setup.stage.eval.answers:
        examples = setup.data.held_out.readable(setup.stage.eval.answers)
        texts = evaluate.answer(context.evaluator, examples, blank=False)
        folder = context.folder / "samples" / f"{setup.name}-{context.step:06d}"
        if jax.process_index() == 0:
            save_answers(folder, examples, texts)
        log(f"answers on held-out samples, all of them in {folder}/answers.html:")
        log("\n".join(format_answers(examples[:3], texts)))
    return {}


EVALUATIONS = (Evaluation(_held_out_loss), Evaluation(_scene_accuracy, _scene_summary), Evaluation(_sample_answers))
