import json

import pytest

from llava_jax.errors import DataError
from llava_jax.evaluation.scienceqa.files import read_answers, result_json
from llava_jax.evaluation.scienceqa.report import analysis_json
from llava_jax.evaluation.scienceqa.score import grade
from tests.fixtures.scienceqa import planted

LINES = '{"question_id": "4", "prompt": "<image>\\nWhich?", "text": "The answer is B.", "metadata": {}}\n\n'
LINES += '{"question_id": 5, "text": "é"}'


def test_released_result_file_round_trips(real_data):
    path = real_data / "published" / "test_sqa_llava_13b_v0.json"
    answers = read_answers(path)
    assert len(answers.texts) == len(answers.results) == 4241
    assert result_json(answers.results, answers.texts, 3855).encode() == path.read_bytes()


def test_accuracy_is_rounded_like_the_original():
    assert '"acc": 28.000000000000004,' in result_json(dict.fromkeys(map(str, range(25)), 0), {}, 7)


def test_json_lines_are_read_with_their_prompts(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    answers = read_answers(tmp_path / "a.jsonl")
    assert answers.texts == {"4": "The answer is B.", "5": "é"} and answers.results == {}
    assert answers.prompts == {"4": "<image>\nWhich?"}
    (tmp_path / "one.jsonl").write_text(LINES.split("\n")[0])
    assert read_answers(tmp_path / "one.jsonl").texts == {"4": "The answer is B."}


def test_analysis_file_equals_the_original_and_is_readable(tmp_path):
    problems = planted(tmp_path, {"4": {"answer": 1}, "5": {"answer": 2}, "6": {}})
    (tmp_path / "a.jsonl").write_text(LINES)
    answers = read_answers(tmp_path / "a.jsonl")
    written = analysis_json(grade(problems, answers), answers)
    assert written == json.dumps(
        {
            "correct": [
                {
                    "question_id": "4",
                    "parsed_ans": "B",
                    "ground_truth": "B",
                    "question": "<image>\nWhich?",
                    "pred": "The answer is B.",
                    "is_multimodal": True,
                }
            ],
            "incorrect": [
                {
                    "question_id": pid,
                    "parsed_ans": "FAILED",
                    "ground_truth": truth,
                    "question": "Unknown",
                    "pred": text,
                    "is_multimodal": False,
                }
                for pid, truth, text in (("5", "C", "é"), ("6", "A", "FAILED"))
            ],
        },
        indent=2,
    )
    (tmp_path / "analysis.json").write_text(written)
    assert read_answers(tmp_path / "analysis.json").texts == answers.texts | {"6": "FAILED"}


FAULTS = {
    "empty": ("", "empty"),
    "cut off": (LINES[:-5], "line 3 is broken JSON (Expecting value"),
    "twice": (LINES + "\n" + LINES.split("\n")[0], "line 4: question 4 again, after line 1"),
    "no id": ('{"text": "A"}\n{"text": "A"}', 'line 1: needs the keys "question_id" and "text"'),
    "id is true": ('{"question_id": true, "text": "A"}', "needs the keys"),
    "no text": ('{"question_id": "1", "text": null}', "line 1: needs the keys"),
    "a number a line": ("3\n4", "line 1: needs the keys"),
    "a list": ("[1]", "expected JSON Lines or one object, found list"),
    "another object": ('{"a": 1}', '"outputs" must contain texts by id'),
    "outputs are numbers": ('{"outputs": {"1": 2}}', '"outputs" must contain texts'),
    "results are texts": ('{"outputs": {}, "results": {"1": "A"}}', '"results" must contain indices'),
    "results are true": ('{"outputs": {}, "results": {"1": true}}', '"results" must contain indices'),
    "nothing in it": ('{"outputs": {}}', "contains no answers"),
    "an id twice": ('{"outputs": {"1": "A", "1": "B"}}', "the key '1' occurs twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_file_is_named(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_answers(tmp_path / "a.json")
    assert str(caught.value).startswith(str(tmp_path / "a.json")) and message in str(caught.value)


def test_unreadable_file_is_rejected(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_answers(tmp_path / "latin")
