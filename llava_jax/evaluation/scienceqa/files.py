"""Reads and writes the original's three formats of ScienceQA answers files.

JSON Lines   one {"question_id", "text", "prompt", ...} per line, written by the original's inference
result       {"acc", "correct", "count", "results": {pid: index}, "outputs": {pid: text}}: the released predictions;
             ScienceQA's own tool reads it; the file of GPT-4's answers has only `outputs`
analysis     {"correct": [...], "incorrect": [...]} of {"question_id", "question", "pred", ...}
"""

import dataclasses
import json
from pathlib import Path

from llava_jax.errors import DataError
from llava_jax.evaluation.answers_file import answers_by_id, parse_json_lines
from llava_jax.output.files import read_text
from llava_jax.output.json_text import parse_json


@dataclasses.dataclass(frozen=True)
class Answers:
    """The content of a file by problem id, in its order: texts, indices of choices (`results`) and prompts, if any."""

    name: str
    texts: dict[str, str]
    results: dict[str, int] = dataclasses.field(default_factory=dict)
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)


def read_answers(path: str | Path) -> Answers:
    """Reads any of the three formats. Raises DataError that names the file and the invalid line or id."""
    path = Path(path)
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as fault:
        if text.lstrip().split("\n")[0].strip() in ("{", "["):  # one value over several lines
            raise DataError(f"{path}: broken JSON ({fault}). Is the file complete?") from None
        return _from_records(path, parse_json_lines(path, text))
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected JSON Lines or one object, found {type(value).__name__}.")
    if isinstance(value.get("correct"), list) and isinstance(value.get("incorrect"), list):
        records = [(f"{path}: item {i}", record) for i, record in enumerate(value["correct"] + value["incorrect"])]
        return _from_records(path, records, text_key="pred", prompt_key="question")
    if "question_id" in value:  # a single line
        return _from_records(path, [(f"{path}: line 1", value)])
    return _from_result(path, value)


def result_json(indices: dict[str, int], texts: dict[str, str], correct: int) -> str:
    """The original's result file, byte for byte; `indices` and `texts` in their order."""
    count = len(indices)
    header = {"acc": correct / count * 100 if count else 0.0, "correct": correct, "count": count}
    return json.dumps(header | {"results": indices, "outputs": texts}, indent=2)


def _from_records(path: Path, records: list, **keys: str) -> Answers:
    texts, prompts = answers_by_id(path, records, **keys)
    return Answers(str(path), texts, {}, prompts)


def _from_result(path: Path, value: dict) -> Answers:
    texts, results = value.get("outputs"), value.get("results", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f'{path}: key "outputs" must contain texts by id. Is this an answers file?')
    if not isinstance(results, dict) or not all(type(index) is int for index in results.values()):
        raise DataError(f'{path}: key "results" must contain indices of choices by id.')
    if not texts and not results:
        raise DataError(f"{path}: contains no answers.")
    return Answers(str(path), texts, results)
