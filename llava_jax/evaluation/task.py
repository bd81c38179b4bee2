"""A benchmark as a task: problems, prompts, a parser of answers, and metrics.

A new benchmark is one class with the members of `Task`. `runner.predict_answers` writes its answers file, and
`metrics.score_answers` computes its metrics. tests/evaluation/yes_no_task.py is a complete example.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar


class TaskProblem(Protocol):
    """The fields that problems of every benchmark have."""

    @property
    def pid(self) -> str:
        """The id, unique within the task."""

    @property
    def image(self) -> str | None:
        """The name of the image in the task's `images`; None for a problem without an image."""


class ImageStore(Protocol):
    """The images of a task: an `ImageFolder`, an `ImageZip`, or e.g. a table that contains them."""

    def find(self, name: str, where: str) -> Path | bytes:
        """The path of a file, which may be missing, or the bytes of an encoded image. Raises DataError whose message
        begins with `where`; of kind "missing" if there is no image of that name."""


class Metric(Protocol):
    """A row of a report, e.g. a `metrics.Accuracy`."""

    @property
    def percent(self) -> float | None:
        """The value; None if no problem counts."""

    @property
    def count(self) -> int:
        """The number of problems that count."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval, in percent; None if unknown."""


P = TypeVar("P", bound=TaskProblem)
A = TypeVar("A")


class Task(Protocol[P, A]):
    """A benchmark with problems of type P and parsed answers of type A. path: file of the problems, for messages."""

    path: Path
    images: ImageStore

    def problems(self) -> Iterable[P]:
        """The problems of the split, always in the same order. A repeated problem is asked and scored once. Raises
        DataError for an invalid problem."""

    def prompt(self, problem: P, has_image: bool) -> str:
        """The user's turn, with one `<image>` if and only if `has_image`."""

    def parse(self, problem: P, text: str) -> A | None:
        """The answer in a model's text, right or wrong; None if the text contains no answer."""

    def metrics(self, answers: Sequence[tuple[P, A | None]]) -> dict[str, Metric]:
        """The rows of the report by name, in order. answers: each problem and its parsed answer, None if missing or
        unparsed."""
