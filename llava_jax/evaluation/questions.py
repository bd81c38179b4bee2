"""The questions of a task: the problems that the model answers, with prompt and image."""

import dataclasses
import itertools
import os
from typing import Literal

from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.task import ImageStore, Task

MAX_LISTED = 3  # ids in an error message


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Which problems are asked, and how many at a time."""

    limit: int = 0
    """The number of problems, from the start of the split; 0: all."""
    missing_images: Literal["error", "skip", "text"] = "error"
    """For problems whose image file is missing: error: fail; skip: leave them out; text: ask without the image."""
    without_images: bool = False
    """Asks all problems without images."""
    batch: int = 16
    """Problems per batch, over all devices. Does not change the answers."""

    def __post_init__(self):
        """Raises ConfigError for a value out of range."""
        if self.limit < 0 or self.batch < 1:
            raise ConfigError(f"--limit {self.limit} must be at least 0, --batch {self.batch} at least 1")


@dataclasses.dataclass(frozen=True)
class TaskQuestion:
    """A problem as the model is asked.

    number: its index in the split, which seeds its sampling. prompt: the user's turn, with `<image>` for the image.
    image: its name in the task's images; None if it is asked without one.
    """

    number: int
    pid: str
    prompt: str
    image: str | None


def build_questions(task: Task, options: PredictOptions) -> tuple[list[TaskQuestion], list[str]]:
    """(the questions in the order of the split, each problem once; the ids of problems whose image is missing).

    Raises DataError as `Task.problems` does, and for missing images with `missing_images="error"`.
    """
    questions, missing = {}, {}
    for number, problem in enumerate(itertools.islice(task.problems(), options.limit or None)):
        image = None if options.without_images else problem.image
        if image and not _has_image(task.images, image, f"{task.path}: problem {problem.pid}"):
            missing[problem.pid], image = True, None
            if options.missing_images == "skip":
                continue
        question = TaskQuestion(number, problem.pid, task.prompt(problem, image is not None), image)
        questions.setdefault(problem.pid, question)
    if missing and options.missing_images == "error":
        listed = ", ".join(list(missing)[:MAX_LISTED]) + (" ..." if len(missing) > MAX_LISTED else "")
        raise DataError(
            f"{task.path}: the images of {len(missing):,} problems are missing (of {listed}). Add them, or pass "
            "--missing-images text (ask without images) or skip (leave these problems out)."
        )
    return list(questions.values()), list(missing)


def _has_image(images: ImageStore, name: str, where: str) -> bool:
    try:
        image = images.find(name, where)
    except DataError as fault:
        if fault.kind != "missing":
            raise
        return False
    return isinstance(image, bytes) or os.path.isfile(image)  # Path.is_file raises for a name that is too long
