"""ScienceQA in its original layout, as conversations.

FOLDER/problems.json                      pid -> {question, choices, answer, hint, image, lecture, solution, split, ..}
FOLDER/pid_splits.json                    split -> [pid, ..]: train, val, test, and parts such as minitrain
FOLDER/images/<split>/<pid>/<image>       of the problems that have one
"""

import dataclasses
import json
from pathlib import Path

from llava_jax.data.conversation import IMAGE_MARKER
from llava_jax.data.example import Example
from llava_jax.data.image_files import ImageFolder, open_images
from llava_jax.data.llava_row import parse_row
from llava_jax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")  # every problem is in one of them; other names list some of these again
LETTERS = "ABCDE"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `answer` is the index of the right choice; `hint` (the context), `lecture`, `solution` may be empty;
    `image` is its path below the image folder, None where it has none."""

    pid: str
    split: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    lecture: str
    solution: str
    image: str | None


class ScienceQA:
    """The problems of one split, or all in the order of the file, as examples of `conversation`.

    Raises DataError for a folder without the two files, ConfigError for a split that pid_splits.json does not have;
    for a problem that is broken, missing, or not of the split that lists it, when it is read.
    """

    def __init__(self, folder: str | Path, split: str | None = None, image_folder: str | Path | None = None):
        folder = Path(folder)
        self.path = folder / "problems.json"
        self.images = open_images(image_folder, self.path) if image_folder else ImageFolder(folder / "images")
        self._problems = _read(self.path)
        splits = _read(folder / "pid_splits.json")
        if not all(isinstance(pids, list) for pids in splits.values()):
            raise DataError(f"{folder / 'pid_splits.json'}: every split must be a list of problem ids.")
        self._listed = {str(pid): name for name in SPLITS for pid in splits.get(name) or ()}
        if split is None:
            pids = dict.fromkeys([*self._problems, *self._listed])
        elif split in splits:
            pids = map(str, splits[split])
        else:
            raise ConfigError(f"{folder}: no split is called {split!r}; pid_splits.json has {', '.join(splits)}")
        self._pids = list(pids)
        if not self._pids:
            raise DataError(f"{folder}: no problems" + (f" in split {split!r}" if split else "") + ". Is it complete?")

    def __len__(self) -> int:
        return len(self._pids)

    def __getitem__(self, index: int) -> Example:
        row, where = self.raw(index)
        pid, turns, images = parse_row(row, where)
        return Example(pid, turns, tuple(self.images.find(image, where) for image in images))

    def example_id(self, index: int) -> str:
        return self._pids[index]

    def part(self, index: int) -> str:
        """The split that lists a problem."""
        return self._listed.get(self._pids[index], "in no split")

    def raw(self, index: int) -> tuple[dict, str]:
        """(a row as in LLaVA's training file, the words that name it in a fault)."""
        where = f"{self.path}: problem {self._pids[index]}"
        return conversation(self.problem(index)), where

    def problem(self, index: int) -> Problem:
        """Raises DataError for what is not as ScienceQA's problems are."""
        pid = self._pids[index]
        where = f"{self.path}: problem {pid}"
        if pid not in self._problems:
            raise DataError(
                f"{where}: listed in pid_splits.json, but not there. Are both of one download?", "broken row"
            )
        problem = parse_problem(pid, self._problems[pid], where)
        if problem.split != self._listed.get(pid):
            listed = self._listed.get(pid, "no split")
            raise DataError(f"{where}: in split {problem.split!r}, but pid_splits.json says {listed}.", "broken row")
        return problem


def parse_problem(pid: str, value: object, where: str) -> Problem:
    """Checks one value of problems.json. Raises DataError that begins with `where`."""

    def need(is_right: bool, what: str) -> None:
        if not is_right:
            raise DataError(f"{where}: {what}.", "broken row")

    need(isinstance(value, dict), f"expected an object, found {type(value).__name__}")
    texts = {key: value.get(key) or "" for key in ("question", "hint", "lecture", "solution")}
    for key, text in texts.items():
        need(isinstance(text, str), f'key "{key}" must be a string')
    need(texts["question"].strip() != "", 'key "question" must not be empty')
    choices, answer, image = value.get("choices"), value.get("answer"), value.get("image")
    need(
        isinstance(choices, list) and 1 <= len(choices) <= len(LETTERS) and all(isinstance(c, str) for c in choices),
        f'key "choices" must be a list of 1 to {len(LETTERS)} strings',
    )
    need(type(answer) is int and 0 <= answer < len(choices), f'key "answer" is {answer!r}, not the place of a choice')
    need(image is None or isinstance(image, str) and image != "", 'key "image" must be a file name or null')
    split = value.get("split")
    need(split in SPLITS, f'key "split" is {split!r}, not one of {", ".join(SPLITS)}')
    path = None if image is None else f"{split}/{pid}/{image}"
    return Problem(pid, split, choices=tuple(choices), answer=answer, image=path, **texts)


def conversation(problem: Problem) -> dict:
    """A row of LLaVA's training file, as the original's converter writes it in its default format, QCM-LEA.

    Question, context, choices; then lecture, explanation, answer:

        human   Which of these states is farthest north?
                Context: N/A
                Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma
                <image>
        gpt     Maps have four cardinal directions, ... The answer is A.

    Its habits are kept: one pass turns two spaces into one, and the labels "Question: " and "Answer: " go wherever they
    stand (an answer without lecture and solution begins with a space). The path of the image begins with its split, so
    that one image folder serves all three.
    """
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    context = problem.hint.strip() or "N/A"
    asked = f"Question: {problem.question}\nContext: {context}\nOptions: {options}"
    told = f"Answer: {problem.lecture} {problem.solution} The answer is {LETTERS[problem.answer]}."
    asked, told = (text.replace("  ", " ").strip() for text in (asked, told))
    asked, told = asked.replace("Question: ", ""), told.replace("Answer: ", "")
    row = {"id": problem.pid}
    if problem.image is not None:
        row["image"], asked = problem.image, f"{asked}\n{IMAGE_MARKER}"
    return row | {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]}


def _read(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror}). Is this ScienceQA's folder?") from None
    except (ValueError, RecursionError) as fault:  # JSON's or UTF-8's
        raise DataError(f"{path}: broken JSON ({fault}). Is the download complete?") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected one object, found {type(value).__name__}. Is this ScienceQA's folder?")
    return value
