"""A small task through the runner and the metrics."""

import json
from pathlib import Path

import pytest
from PIL import Image

from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.answers_file import read_texts
from llava_jax.evaluation.metrics import metric_lines, score_answers
from llava_jax.evaluation.questions import PredictOptions
from llava_jax.evaluation.runner import predict_answers
from tests.evaluation.yes_no_task import YesNoTask

SETTINGS = {"model_id": "tiny", "max_new_tokens": 5}
GENERATION = {"max_new_tokens": 5}


@pytest.fixture
def task(tmp_path) -> YesNoTask:
    """Four questions about two images, and one without image."""
    (tmp_path / "images").mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (20, 30), color).save(tmp_path / "images" / f"{color}.png")
    problems = [
        {"pid": f"{color}-{shade}", "question": f"Is it {shade}?", "is_yes": color == shade, "image": f"{color}.png"}
        for color in ("red", "blue")
        for shade in ("red", "blue")
    ]
    problems.append({"pid": "sky", "question": "Is the sky above us?", "is_yes": True})
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return YesNoTask(tmp_path)


def predict(task, model, out: Path, batch: int = 2, **hooks) -> list[dict]:
    predict_answers(task, out, lambda: model, SETTINGS, PredictOptions(batch=batch), GENERATION, **hooks)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_task_is_answered_and_resumed_byte_equal(task, model, tmp_path):
    out = tmp_path / "whole.jsonl"
    records = predict(task, model, out)
    assert {record["question_id"]: record["prompt"] for record in records} == {
        "red-red": "<image>\nIs it red?\nAnswer yes or no.",
        "red-blue": "<image>\nIs it blue?\nAnswer yes or no.",
        "blue-red": "<image>\nIs it red?\nAnswer yes or no.",
        "blue-blue": "<image>\nIs it blue?\nAnswer yes or no.",
        "sky": "Is the sky above us?\nAnswer yes or no.",
    }
    assert records[-1]["question_id"] == "sky", "the shortest prompt comes last"
    settings = json.loads((tmp_path / "whole.jsonl.settings.json").read_text())
    assert list(settings) == [*SETTINGS, "template", "aspect", "weights", "prompts"]
    whole = out.read_bytes()
    for cut in (0, 10, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:cut])
        predict(task, model, out)
        assert out.read_bytes() == whole
    with pytest.raises(ConfigError, match="made with model_id 'tiny', not 'other'"):
        predict_answers(task, out, lambda: model, {"model_id": "other"}, PredictOptions(), GENERATION)


def test_task_may_replace_generate(task, model, tmp_path):
    """The answers are what `generate` returns, in the order of its questions."""
    sizes = []

    def generate(model, questions, prompts, settings):
        assert [prompt.row for prompt in prompts] == [question.number for question in questions]
        assert settings.max_new_tokens == 5
        sizes.append(len(questions))
        return [f"No, {question.pid}" if question.image else "Yes." for question in questions]

    records = predict(task, model, tmp_path / "a.jsonl", batch=3, generate=generate)
    assert sizes == [3, 2]
    assert all(record["text"] == f"No, {record['question_id']}" for record in records[:-1])
    assert records[-1]["text"] == "Yes."


def test_task_is_scored_from_its_answers_file(task, tmp_path):
    texts = {"red-red": "Yes", "red-blue": "no.", "blue-red": "yes", "blue-blue": "It may be.", "other": "yes"}
    lines = [json.dumps({"question_id": pid, "text": text}) for pid, text in texts.items()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    scores = score_answers(task, read_texts(tmp_path / "a.jsonl"))
    assert scores.missing == ["sky"] and scores.unparsed == ["blue-blue"]
    assert {name: (share.correct, share.count) for name, share in scores.metrics.items()} == {
        "accuracy": (2, 5),
        "yes": (2, 5),
    }
    assert metric_lines(scores.metrics) == [
        "            percent        95% interval  problems",
        "accuracy      40.00      11.76 to 76.93         5",
        "yes           40.00      11.76 to 76.93         5",
    ]


def test_read_texts_names_the_invalid_line(tmp_path):
    path = tmp_path / "a.jsonl"
    for text, message in (
        ('{"question_id": "1", "text": "yes"}\n{"question_id', "line 2 is broken JSON"),
        ('{"question_id": "1"}\n', 'line 1: needs the keys "question_id" and "text"'),
        ('{"question_id": "1", "text": "a"}\n' * 2, "line 2: question 1 again, after line 1"),
        ("", "empty"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_texts(path)
