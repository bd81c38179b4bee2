"""A benchmark as a task: its problems, their prompts, how an answer is parsed, and the metrics of all answers.

A new benchmark is one file with a class that has the members of `Task`. `runner.predict_answers` makes its answers file
and `metrics.score_answers` computes its metrics; tests/evaluation/yes_no_task.py is a complete example.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar


class TaskProblem(Protocol):
    """What every benchmark's problem has; the rest of it is known to its task alone."""

    @property
    def pid(self) -> str:
        """The id, unique within the task."""

    @property
    def image(self) -> str | None:
        """The image's name in the task's `images`; None for a problem without an image."""


class ImageStore(Protocol):
    """Where a task's images are: an `ImageFolder`, an `ImageZip`, or for example a table with images inside."""

    def find(self, name: str, where: str) -> Path | bytes:
        """A file, which need not exist, or the bytes of an encoded image. Raises DataError that begins with `where`; of
        kind "missing" where there is no image of that name."""


class Metric(Protocol):
    """One row of a report, for example a `metrics.Accuracy`."""

    @property
    def percent(self) -> float | None:
        """The value; None where nothing was counted."""

    @property
    def count(self) -> int:
        """How many problems it is computed from."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, in percent; None where it is not known."""


P = TypeVar("P", bound=TaskProblem)
A = TypeVar("A")


class Task(Protocol[P, A]):
    """A benchmark with problems of type P, whose answers are parsed to type A.

    path: the file of the problems, which error messages name.
    """

    path: Path
    images: ImageStore

    def problems(self) -> Iterable[P]:
        """The problems of the split, always in the same order. One that is listed twice is asked and scored once.
        Raises DataError for a problem that is broken."""

    def prompt(self, problem: P, has_image: bool) -> str:
        """The user's turn, with one `<image>` if and only if `has_image`."""

    def parse(self, problem: P, text: str) -> A | None:
        """What a model's text answers; None where it is no answer to the problem. Says nothing about right or wrong."""

    def metrics(self, answers: Sequence[tuple[P, A | None]]) -> dict[str, Metric]:
        """The rows of the report by name, in their order. answers: every problem with its parsed answer, None where it
        is missing or could not be parsed."""
