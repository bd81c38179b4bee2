"""Accuracy on held-out scenes by kind of question, with the image and with a blanked one."""

import numpy as np

from llava_jax.data.example import Example
from llava_jax.data.sources.scene_world import conclusion
from llava_jax.data.sources.scenes import QUESTION_KINDS
from llava_jax.train.evaluate import Evaluator, answer


def accuracy(evaluator: Evaluator, exam: list[Example]) -> dict[str, dict[str, float]]:
    """{kind: {"image", "blank", "chance"}} in percent over `exam`, and the mean over the kinds as `overall`.

    An answer is right if it equals the reference; of one with a reason only the conclusion counts. chance: one over the
    number of answers that are equally likely without the image.
    """
    right: dict[str, dict[str, list[bool]]] = {kind: {"image": [], "blank": []} for kind in QUESTION_KINDS}
    for mode in ("image", "blank"):
        texts = answer(evaluator, exam, blank=mode == "blank")
        for e, text in zip(exam, texts, strict=True):
            right[e.kind][mode].append(conclusion(text) == conclusion(e.first_answer))
    table = {
        kind: {mode: 100 * float(np.mean(marks)) for mode, marks in modes.items()}
        | {"chance": 100 / QUESTION_KINDS[kind]}
        for kind, modes in right.items()
    }
    columns = ("image", "blank", "chance")
    table["overall"] = {c: float(np.mean([table[kind][c] for kind in QUESTION_KINDS])) for c in columns}
    return table


def format_accuracy(after: dict[str, dict[str, float]], before: dict[str, dict[str, float]] | None) -> list[str]:
    """Lines of a table: for each kind the accuracy before the stage and after it, with a blanked image, by chance."""
    lines = [f"{'question kind':14}{'before':>10}{'with image':>12}{'blanked':>10}{'by chance':>11}"]
    for kind, row in after.items():
        first = f"{before[kind]['image']:9.1f}%" if before else f"{'-':>10}"
        lines.append(f"{kind:14}{first}{row['image']:11.1f}%{row['blank']:9.1f}%{row['chance']:10.1f}%")
    return lines
