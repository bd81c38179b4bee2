"""ScienceQA in its original layout, as conversations.

FOLDER/problems.json                      pid -> {question, choices, answer, hint, image, lecture, solution, split, ..}
FOLDER/pid_splits.json                    split -> [pid, ..]: train, val, test, and parts such as minitrain
FOLDER/images/<split>/<pid>/<image>       of the problems that have one
"""

import json
from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.data.sources.scienceqa_problem import SPLITS, Problem, parse_problem
from llava_jax.data.sources.scienceqa_prompts import DEFAULT, check_format, conversation
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.files import ImageFolder, open_images


def is_scienceqa(path: Path) -> bool:
    """Whether this is a folder of ScienceQA's."""
    return (path / "problems.json").is_file()


class ScienceQA:
    """The problems of one split, or all in the order of the file, as examples of `conversation`.

    Raises DataError for a folder without the two files, ConfigError for a split that pid_splits.json does not have and
    a prompt format that does not exist; for a problem that is broken, missing, or not of the split that lists it, when
    it is read.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str | None = None,
        image_folder: str | Path | None = None,
        prompt_format: str = DEFAULT,
    ):
        check_format(prompt_format)
        folder, self.prompt_format = Path(folder), prompt_format
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

    def id_hashes(self) -> np.ndarray:
        """int64[n], the `id_hash` of every id."""
        return np.array([id_hash(pid) for pid in self._pids], np.int64)

    def part(self, index: int) -> str:
        """The split that lists a problem."""
        return self._listed.get(self._pids[index], "in no split")

    def raw(self, index: int) -> tuple[dict, str]:
        """(a row as in LLaVA's training file, the words that name it in a fault)."""
        where = f"{self.path}: problem {self._pids[index]}"
        return conversation(self.problem(index), self.prompt_format), where

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
