"""A complete benchmark in one file: yes/no questions about images."""

import dataclasses
import json
from pathlib import Path

from llava_jax.evaluation.metrics import Accuracy
from llava_jax.images.files import ImageFolder


@dataclasses.dataclass(frozen=True)
class YesNoProblem:
    pid: str
    question: str
    is_yes: bool
    image: str | None = None


class YesNoTask:
    """FOLDER/problems.jsonl contains one `YesNoProblem` per line, FOLDER/images the images."""

    def __init__(self, folder: Path):
        self.path, self.images = folder / "problems.jsonl", ImageFolder(folder / "images")

    def problems(self):
        return (YesNoProblem(**json.loads(line)) for line in self.path.read_text().splitlines())

    def prompt(self, problem, has_image):
        return ("<image>\n" if has_image else "") + f"{problem.question}\nAnswer yes or no."

    def parse(self, problem, text):
        return {"yes": True, "no": False}.get(text.strip(" .").lower())

    def metrics(self, answers):
        right = sum(answer == problem.is_yes for problem, answer in answers)
        yes = sum(answer is True for _, answer in answers)
        return {"accuracy": Accuracy(right, len(answers)), "yes": Accuracy(yes, len(answers))}
