"""One problem of ScienceQA, checked."""

import dataclasses

from llava_jax.errors import DataError

SPLITS = ("train", "val", "test")  # every problem is in one of them; other names list some of these again
LETTERS = "ABCDE"


@dataclasses.dataclass(frozen=True)
class Problem:
    """`answer` is the index of the right choice; `hint` (the context), `lecture`, `solution`, and what sorts problems
    (`subject`, `topic`, `grade`) may be empty; `image` is its path below the image folder, None where it has none."""

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
    """Checks one value of problems.json. Raises DataError that begins with `where`."""

    def need(is_right: bool, what: str) -> None:
        if not is_right:
            raise DataError(f"{where}: {what}.", "broken row")

    need(isinstance(value, dict), f"expected an object, found {type(value).__name__}")
    keys = ("question", "hint", "lecture", "solution", "subject", "topic", "grade")
    texts = {key: value.get(key) or "" for key in keys}
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
