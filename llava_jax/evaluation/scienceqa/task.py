"""ScienceQA as a task: the original's prompt formats, parsers, and the columns of the published tables."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from llava_jax.data.sources.scienceqa import Problem, ScienceQA, conversation
from llava_jax.evaluation.metrics import Accuracy
from llava_jax.evaluation.scienceqa.parse import index_of, read_letter
from llava_jax.evaluation.scienceqa.score import shares, topic_shares
from llava_jax.evaluation.task import ImageStore
from llava_jax.text.templates import IMAGE_MARKER

SINGLE = "\nAnswer with the option's letter from the given choices directly."


@dataclasses.dataclass(frozen=True)
class ScienceQATask:
    """A `Task` for one split, with the prompts of the original's `model_vqa_science`.

    source: the problems and the prompt format. image_place: `<image>` is the first or the last line of the prompt.
    single_prediction: adds v1.5's sentence that asks for a letter alone. parser: see `parse.read_letter`.
    """

    source: ScienceQA
    image_place: Literal["front", "back"] = "front"
    single_prediction: bool = False
    parser: Literal["strict", "lenient"] = "strict"

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def images(self) -> ImageStore:
        return self.source.images

    def problems(self) -> Iterator[Problem]:
        return (self.source.problem(i) for i in range(len(self.source)))

    def prompt(self, problem: Problem, has_image: bool) -> str:
        text = conversation(problem, self.source.prompt_format)["conversations"][0]["value"]
        text = text.replace(IMAGE_MARKER, "").strip() + (SINGLE if self.single_prediction else "")
        if not has_image:
            return text
        return f"{IMAGE_MARKER}\n{text}" if self.image_place == "front" else f"{text}\n{IMAGE_MARKER}"

    def parse(self, problem: Problem, text: str) -> int | None:
        """The index of a choice; None if the text has no letter of one."""
        index = index_of(read_letter(text, problem.choices, self.parser), len(problem.choices))
        return index if index >= 0 else None

    def metrics(self, answers: Sequence[tuple[Problem, int | None]]) -> dict[str, Accuracy]:
        """The columns of the published tables, then the topics."""
        marks = [(problem, index == problem.answer) for problem, index in answers]
        return shares(marks) | topic_shares(marks)
