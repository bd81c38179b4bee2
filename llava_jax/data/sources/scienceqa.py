"""ScienceQA: the data set as conversations, checks of a problem, and the prompt formats of the original and of v1.5.

FOLDER/problems.json                      pid -> {question, choices, answer, hint, image, lecture, solution, split, ..}
FOLDER/pid_splits.json                    split -> [pid, ..]: train, val, test, and parts such as minitrain
FOLDER/images/<split>/<pid>/<image>       for problems with an image

or Parquet with the same columns and the images (`scienceqa_parquet`).

A prompt format INPUT-OUTPUT lists the parts of the prompt and of the answer in order:

    Q question   C context (the hint)   M choices   L lecture   E explanation (the solution)   A answer

For example, the default QCM-LEA:

    human   Which of these states is farthest north?
            Context: N/A
            Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma
            <image>
    gpt     Maps have four cardinal directions, ... The answer is A.

The quirks of the original converter are kept, for byte-equal texts: one pass turns two spaces into one (three become
two); "BECAUSE:" at the end of a text, or "Question: " or "Answer: " at its start, is removed everywhere in it.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.data.sources.scienceqa_parquet import (
    ParquetImages,
    is_scienceqa_parquet,
    problem_files,
    read_problems_parquet,
)
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.files import ImageFolder, open_images
from llava_jax.output.files import local_path, read_object
from llava_jax.text.templates import IMAGE_MARKER

SPLITS = ("train", "val", "test")  # each problem is in one of these; other splits are subsets
LETTERS = "ABCDE"
DEFAULT = "QCM-LEA"
ZERO_SHOT = "CQM-A_v1.5"  # the format of llava_test_CQM-A.json, which the converter did not write
INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
# Name of an output -> its parts. The original's AL has the explanation, and its AE the lecture.
OUTPUTS = {name: name for name in ("A", "ALE", "AEL", "LA", "EA", "LEA", "ELA")}
OUTPUTS |= {"AL_original": "AE", "AE_original": "AL", "LEPA": "LEPA"}
LABELS = {"Q": "Question: ", "C": "Context: ", "M": "Options: "}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked problem. `answer` is the index of the correct choice; `hint` (the context), `lecture`, `solution`,
    `subject`, `topic` and `grade` may be empty; `image` is a path below the image folder, or None."""

    pid: str
    split: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    lecture: str
    solution: str
    image: str | None
    subject: str = ""
    topic: str = ""
    grade: str = ""


def parse_problem(pid: str, value: object, where: str) -> Problem:
    """Checks a value of problems.json. Raises DataError, starting with `where`."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise DataError(f"{where}: {message}.", "broken row")

    require(isinstance(value, dict), f"expected an object, found {type(value).__name__}")
    keys = ("question", "hint", "lecture", "solution", "subject", "topic", "grade")
    texts = {key: value.get(key) or "" for key in keys}
    for key, text in texts.items():
        require(isinstance(text, str), f'key "{key}" must be a string')
    require(texts["question"].strip() != "", 'key "question" must not be empty')
    choices, answer, image = value.get("choices"), value.get("answer"), value.get("image")
    require(
        isinstance(choices, list) and 1 <= len(choices) <= len(LETTERS) and all(isinstance(c, str) for c in choices),
        f'key "choices" must be a list of 1 to {len(LETTERS)} strings',
    )
    require(
        type(answer) is int and 0 <= answer < len(choices), f'key "answer" is {answer!r}, not the index of a choice'
    )
    require(image is None or isinstance(image, str) and image != "", 'key "image" must be a file name or null')
    split = value.get("split")
    require(split in SPLITS, f'key "split" is {split!r}, not one of {", ".join(SPLITS)}')
    path = None if image is None else f"{split}/{pid}/{image}"
    return Problem(pid, split, choices=tuple(choices), answer=answer, image=path, **texts)


def is_scienceqa(path: Path) -> bool:
    """Returns whether this is ScienceQA: the original's folder, or Parquet (see `scienceqa_parquet`)."""
    return (path / "problems.json").is_file() or is_scienceqa_parquet(path)


def scienceqa_images(path: Path) -> ImageFolder | ParquetImages:
    """Returns the images that belong to the problems: a folder, or those inside of Parquet."""
    return ImageFolder(path / "images") if not is_scienceqa_parquet(path) else read_problems_parquet(path)[2]


class ScienceQA:
    """The problems of one split, or all in the order of the file, as conversations.

    The constructor raises DataError if one of the two files is missing or broken, and ConfigError for an unknown split
    or prompt format. Reading raises DataError for a problem that is broken, missing, or in another split than listed.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str | None = None,
        image_folder: str | Path | None = None,
        prompt_format: str = DEFAULT,
    ):
        check_format(prompt_format)
        folder, self.prompt_format = local_path(folder, "the ScienceQA folder"), prompt_format
        if (folder / "problems.json").is_file() or not problem_files(folder):
            self.path, self.images = folder / "problems.json", ImageFolder(folder / "images")
            self._problems = read_object(self.path, "the problems of ScienceQA")
            splits = read_object(folder / "pid_splits.json", "the splits of ScienceQA")
        else:
            self.path, split = folder, {"validation": "val"}.get(split, split)
            self._problems, splits, self.images = read_problems_parquet(folder)
        if image_folder:
            self.images = open_images(image_folder, self.path)
        if not all(isinstance(pids, list) for pids in splits.values()):
            raise DataError(f"{folder / 'pid_splits.json'}: every split must be a list of problem ids.")
        self._listed = {str(pid): name for name in SPLITS for pid in splits.get(name) or ()}
        if split is None:
            pids = dict.fromkeys([*self._problems, *self._listed])
        elif split in splits:
            pids = map(str, splits[split])
        else:
            raise ConfigError(f"{folder}: there is no split {split!r}, only {', '.join(splits)}")
        self._pids = list(pids)
        if not self._pids:
            raise DataError(f"{folder}: no problems in {f'split {split!r}' if split else 'any split'}. Is it complete?")

    def __len__(self) -> int:
        return len(self._pids)

    def __getitem__(self, index: int) -> Example:
        row, where = self.raw(index)
        pid, turns, images = parse_row(row, where)
        return Example(pid, turns, tuple(self.images.find(image, where) for image in images))

    def example_id(self, index: int) -> str:
        return self._pids[index]

    def id_hashes(self) -> np.ndarray:
        """Returns int64[n], the `id_hash` of every id."""
        return np.array([id_hash(pid) for pid in self._pids], np.int64)

    def part(self, index: int) -> str:
        """Returns the split that lists a problem."""
        return self._listed.get(self._pids[index], "in no split")

    def raw(self, index: int) -> tuple[dict, str]:
        """Returns (a row as in LLaVA's training file, its name in error messages)."""
        where = f"{self.path}: problem {self._pids[index]}"
        return conversation(self.problem(index), self.prompt_format), where

    def problem(self, index: int) -> Problem:
        """Returns a checked problem. Raises DataError if it is broken, missing or in another split than listed."""
        pid = self._pids[index]
        where = f"{self.path}: problem {pid}"
        if pid not in self._problems:
            raise DataError(
                f"{where}: listed in pid_splits.json, but missing. Are both files of the same download?", "broken row"
            )
        problem = parse_problem(pid, self._problems[pid], where)
        if problem.split != self._listed.get(pid):
            listed = self._listed.get(pid, "no split")
            raise DataError(f"{where}: of split {problem.split!r}, but pid_splits.json lists {listed}.", "broken row")
        return problem


def formats() -> list[str]:
    """Returns the names of all prompt formats."""
    return [*(f"{input_name}-{output_name}" for input_name in INPUTS for output_name in OUTPUTS), ZERO_SHOT]


def check_format(name: str) -> None:
    """Raises ConfigError for an unknown prompt format, or one with an ambiguous name."""
    if name in formats():
        return
    input_name, _, output_name = name.partition("-")
    if input_name in INPUTS and output_name in ("AL", "AE"):
        raise ConfigError(
            f"prompt format {name}: the original's AL has the solution and its AE the lecture. "
            f"Write {input_name}-AL_original for the solution, {input_name}-AE_original for the lecture."
        )
    raise ConfigError(
        f"prompt format {name!r} is not INPUT-OUTPUT with INPUT one of {', '.join(INPUTS)} and OUTPUT one of "
        f"{', '.join(OUTPUTS)}, or {ZERO_SHOT}"
    )


def conversation(problem: Problem, prompt_format: str = DEFAULT) -> dict:
    """Returns a row of LLaVA's training file. Image paths start with the split, so all splits share an image folder.
    Raises ConfigError, see `check_format`."""
    check_format(prompt_format)
    is_zero_shot = prompt_format == ZERO_SHOT
    question, answer = _zero_shot(problem) if is_zero_shot else _converter_texts(problem, *prompt_format.split("-"))
    row = {"id": problem.pid}
    if problem.image is not None:
        row["image"] = problem.image
        question = f"{IMAGE_MARKER}\n{question}" if is_zero_shot else f"{question}\n{IMAGE_MARKER}"
    return row | {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def instruction(row: dict) -> dict:
    """Converts the output of `conversation` to a line of the converter's JSON Lines."""
    question, answer = (turn["value"] for turn in row["conversations"])
    return {key: row[key] for key in ("id", "image") if key in row} | {"instruction": question, "output": answer}


def _converter_texts(problem: Problem, input_name: str, output_name: str) -> tuple[str, str]:
    parts = {
        "Q": problem.question,
        "C": problem.hint.strip() or "N/A",
        "M": " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)),
        "L": problem.lecture,
        "E": problem.solution,
    }
    pieces = re.findall("[QCM]|[LE]+", input_name)  # lecture and solution share a line
    question = "\n".join(LABELS.get(piece, "BECAUSE: ") + " ".join(parts[part] for part in piece) for piece in pieces)
    letter = LETTERS[problem.answer]
    if output_name == "LEPA":  # P: the answer follows a prompt after the reasoning
        labelled = (("LECTURE", problem.lecture), ("SOLUTION", problem.solution))
        answer = "".join(f"{label}: {text}\n" for label, text in labelled if text.strip()) + f"###\nANSWER: {letter}."
    else:
        before_answer, _, after_answer = OUTPUTS[output_name].partition("A")
        answer = "Answer: " + "".join(f"{parts[part]} " for part in before_answer) + f"The answer is {letter}."
        answer += " BECAUSE: " + " ".join(parts[part] for part in after_answer) if after_answer else ""
    return _clean(question, "Question: "), _clean(answer, "Answer: ")


def _clean(text: str, label: str) -> str:
    text = text.replace("  ", " ").strip()
    if text.endswith("BECAUSE:"):
        text = text.replace("BECAUSE:", "").strip()
    return text.replace(label, "") if text.startswith(label) else text


def _zero_shot(problem: Problem) -> tuple[str, str]:
    lines = [f"Context: {problem.hint}"] if problem.hint else []
    lines.append(problem.question)
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)]
    return "\n".join(lines), LETTERS[problem.answer]
