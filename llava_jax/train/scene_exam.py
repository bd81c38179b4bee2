"""Accuracy on held-out scenes by kind of question, with the image and with it blanked."""

import numpy as np

from llava_jax.data.example import Example
from llava_jax.data.sources.scene_world import conclusion
from llava_jax.data.sources.scenes import QUESTION_KINDS
from llava_jax.train.evaluate import Evaluator, answer


def accuracy(evaluator: Evaluator, exam: list[Example]) -> dict[str, dict[str, float]]:
    """{kind: {"image", "blank", "chance"}} in percent over `exam`, and the mean of the kinds as `overall`.

    Right is the exact text; of an answer with a reason only its conclusion is graded. Chance is one over the number of
    answers that are equally likely without seeing the image.
    """
    right: dict[str, dict[str, list[bool]]] = {kind: {"image": [], "blank": []} for kind in QUESTION_KINDS}
    for mode in ("image", "blank"):
        texts = answer(evaluator, exam, blank=mode == "blank")
        for e, text in zip(exam, texts, strict=True):
            right[e.kind][mode].append(conclusion(text) == conclusion(e.turns[1][1]))
    table = {
        kind: {mode: 100 * float(np.mean(marks)) for mode, marks in modes.items()}
        | {"chance": 100 / QUESTION_KINDS[kind]}
        for kind, modes in right.items()
    }
    columns = ("image", "blank", "chance")
    table["overall"] = {c: float(np.mean([table[kind][c] for kind in QUESTION_KINDS])) for c in columns}
    return table


def format_accuracy(after: dict[str, dict[str, float]], before: dict[str, dict[str, float]] | None) -> list[str]:
    """A text table: kind x accuracy with the image (before the stage, after it), blanked, by chance."""
    lines = [f"{'question kind':14}{'before':>10}{'with image':>12}{'blanked':>10}{'by chance':>11}"]
    for kind, row in after.items():
        first = f"{before[kind]['image']:9.1f}%" if before else f"{'-':>10}"
        lines.append(f"{kind:14}{first}{row['image']:11.1f}%{row['blank']:9.1f}%{row['chance']:10.1f}%")
    return lines
