"""The questions of a task: which problems are put to the model, with which prompt and image."""

import dataclasses
import itertools
from typing import Literal

from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.task import ImageStore, Task

MAX_LISTED = 3  # ids in a message


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Which problems of a task are asked, and how many at a time."""

    limit: int = 0
    """Only the first problems of the split; 0: all."""
    missing_images: Literal["error", "skip", "text"] = "error"
    """What happens to a problem whose image is not on disk. error: nothing is asked. skip: it is left out. text: it is
    asked without its image."""
    without_images: bool = False
    """Asks every problem without its image."""
    batch: int = 16
    """Problems a batch, over all devices. Does not change the answers."""

    def __post_init__(self):
        """Raises ConfigError for a value out of range."""
        if self.limit < 0 or self.batch < 1:
            raise ConfigError(f"--limit {self.limit} must be at least 0, --batch {self.batch} at least 1")


@dataclasses.dataclass(frozen=True)
class TaskQuestion:
    """A problem as it is put to the model.

    number: its position in the split, which seeds its sampling. prompt: the user's turn, with `<image>` where the image
    goes. image: its name in the task's images, None where it is asked without.
    """

    number: int
    pid: str
    prompt: str
    image: str | None


def build_questions(task: Task, options: PredictOptions) -> tuple[list[TaskQuestion], list[str]]:
    """(the questions in the order of the split, each problem once; the ids of problems whose image is missing).

    Raises DataError as `Task.problems` does, and for missing images under `missing_images="error"`.
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
            f"{task.path}: the images of {len(missing):,} problems are missing (of {listed}). Bring them, or choose "
            "--missing-images text (asked without) or skip (not asked)."
        )
    return list(questions.values()), list(missing)


def _has_image(images: ImageStore, name: str, where: str) -> bool:
    try:
        image = images.find(name, where)
    except DataError as fault:
        if fault.kind != "missing":
            raise
        return False
    return isinstance(image, bytes) or image.is_file()
