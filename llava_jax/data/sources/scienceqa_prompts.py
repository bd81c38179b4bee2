"""A problem of ScienceQA as question and answer, in the formats of the original's converter and of v1.5.

A format is called INPUT-OUTPUT after what it holds, in this order:

    Q question   C context (the hint)   M choices   L lecture   E explanation (the solution)   A answer

The default, QCM-LEA, asks and tells:

    human   Which of these states is farthest north?
            Context: N/A
            Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma
            <image>
    gpt     Maps have four cardinal directions, ... The answer is A.

The converter's habits are kept, so that models of either see the same bytes: one pass turns two spaces into one (three
become two), a label "BECAUSE:" with nothing behind it goes, and of a text that begins with "Question: " or "Answer: "
that label goes wherever it stands.
"""

import re

from llava_jax.data.sources.scienceqa_problem import LETTERS, Problem
from llava_jax.errors import ConfigError
from llava_jax.text.templates import IMAGE_MARKER

DEFAULT = "QCM-LEA"
ZERO_SHOT = "CQM-A_v1.5"  # of llava_test_CQM-A.json, which that converter did not write
INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
# What the output holds, by its name. The original's AL tells the explanation and its AE the lecture.
OUTPUTS = {name: name for name in ("A", "ALE", "AEL", "LA", "EA", "LEA", "ELA")}
OUTPUTS |= {"AL_original": "AE", "AE_original": "AL", "LEPA": "LEPA"}
LABELS = {"Q": "Question: ", "C": "Context: ", "M": "Options: "}


def formats() -> list[str]:
    """Every name that `conversation` knows."""
    return [*(f"{asked}-{told}" for asked in INPUTS for told in OUTPUTS), ZERO_SHOT]


def check_format(name: str) -> None:
    """Raises ConfigError for a prompt format that does not exist, or whose name misleads."""
    if name in formats():
        return
    asked, _, told = name.partition("-")
    if asked in INPUTS and told in ("AL", "AE"):
        raise ConfigError(
            f"prompt format {name}: the original's AL tells the solution and its AE the lecture. "
            f"Write {asked}-AL_original for the solution, {asked}-AE_original for the lecture."
        )
    raise ConfigError(
        f"prompt format {name!r} is not one of INPUT-OUTPUT with INPUT {', '.join(INPUTS)} and OUTPUT "
        f"{', '.join(OUTPUTS)}, nor {ZERO_SHOT}"
    )


def conversation(problem: Problem, prompt_format: str = DEFAULT) -> dict:
    """A row of LLaVA's training file. The path of the image begins with its split, so that one image folder serves all
    three. Raises ConfigError, see `check_format`."""
    check_format(prompt_format)
    asked, told = _zero_shot(problem) if prompt_format == ZERO_SHOT else _converted(problem, *prompt_format.split("-"))
    row = {"id": problem.pid}
    if problem.image is not None:
        row["image"] = problem.image
        asked = f"{IMAGE_MARKER}\n{asked}" if prompt_format == ZERO_SHOT else f"{asked}\n{IMAGE_MARKER}"
    return row | {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]}


def instruction(row: dict) -> dict:
    """What `conversation` makes, as a line of the converter's JSON Lines has it."""
    asked, told = (turn["value"] for turn in row["conversations"])
    return {key: row[key] for key in ("id", "image") if key in row} | {"instruction": asked, "output": told}


def _converted(problem: Problem, asked_name: str, told_name: str) -> tuple[str, str]:
    parts = {
        "Q": problem.question,
        "C": problem.hint.strip() or "N/A",
        "M": " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)),
        "L": problem.lecture,
        "E": problem.solution,
    }
    pieces = re.findall("[QCM]|[LE]+", asked_name)  # lecture and solution share a line
    asked = "\n".join(LABELS.get(piece, "BECAUSE: ") + " ".join(parts[part] for part in piece) for piece in pieces)
    letter = LETTERS[problem.answer]
    if told_name == "LEPA":  # P: the answer is prompted for, after the reasoning
        labelled = (("LECTURE", problem.lecture), ("SOLUTION", problem.solution))
        told = "".join(f"{label}: {text}\n" for label, text in labelled if text.strip()) + f"###\nANSWER: {letter}."
    else:
        before, _, after = OUTPUTS[told_name].partition("A")
        told = "Answer: " + "".join(f"{parts[part]} " for part in before) + f"The answer is {letter}."
        told += " BECAUSE: " + " ".join(parts[part] for part in after) if after else ""
    return _tidy(asked, "Question: "), _tidy(told, "Answer: ")


def _tidy(text: str, label: str) -> str:
    text = text.replace("  ", " ").strip()
    if text.endswith("BECAUSE:"):
        text = text.replace("BECAUSE:", "").strip()
    return text.replace(label, "") if text.startswith(label) else text


def _zero_shot(problem: Problem) -> tuple[str, str]:
    lines = [f"Context: {problem.hint}"] if problem.hint else []
    lines.append(problem.question)
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)]
    return "\n".join(lines), LETTERS[problem.answer]
