import dataclasses
import json

import pytest

from llava_jax.datagen.assemble import RowOptions
from llava_jax.datagen.report import (
    InstructRun,
    answer_words,
    by_kind,
    faulty,
    first_words,
    is_exact_duplicate,
    marker_first,
    question_type,
    question_types,
    read_run,
    reasons,
    truths,
    usage,
)
from llava_jax.errors import DataError
from tests.datagen.finished_run import PARK, ROOM, conversation, write_run

DETAIL = "The image shows a dog and a cat that play on the grass of a park, while the sun is shining on the trees."
REQUESTS = [(context, kind) for context in (PARK, ROOM) for kind in ("conversation", "detail", "reasoning")]
TEXTS = {
    ("1", "conversation"): conversation(
        ("What animals are there?", "A dog and a cat."), ("How many dogs are there?", "There are two dogs.")
    ),
    ("1", "detail"): DETAIL,
    ("1", "reasoning"): "I will not write this.",  # outside of the grammar
    ("2", "conversation"): conversation(("Is there a dog?", "Yes, there is a dog in the captions.")),
    ("2", "detail"): DETAIL.upper(),
}


@pytest.fixture
def run(tmp_path) -> InstructRun:
    return read_run(write_run(tmp_path / "out", REQUESTS, TEXTS))


def test_counts_of_requests_and_reasons(run):
    assert {kind: len(records) for kind, records in by_kind(run.records).items()} == {
        "conversation": 2, "detail": 2, "reasoning": 2,
    }  # fmt: skip
    assert len(run.kept) == len(run.rows) == len(run.parsed) == 4
    groups = reasons(run)
    assert [record["id"] for record in groups["no reply"]] == ["2"]
    assert sum(map(len, groups.values())) == 2


def test_reasons_are_sorted_by_their_number(tmp_path):
    texts = {key: "no grammar" for key in TEXTS if key[1] != "detail"}
    run = read_run(write_run(tmp_path / "out", REQUESTS, texts))
    assert [len(group) for group in reasons(run).values()] == [3, 3]
    texts["2", "reasoning"] = "no grammar"
    run = read_run(write_run(tmp_path / "more", REQUESTS, texts))
    assert [len(group) for group in reasons(run).values()] == [4, 2]


@pytest.mark.parametrize(
    "prices, is_batch, dollars",
    [
        ({"input": 2.0, "output": 10.0}, False, 5 * (1000 * 2.0 + 100 * 10.0) / 1e6),
        ({"input": 2.0, "output": 10.0}, True, 5 * (1000 * 2.0 + 100 * 10.0) / 2e6),
        ({"input": 2.0, "output": None}, False, None),
        ({"input": 0.0, "output": 0.0}, False, 0.0),
    ],
)
def test_cost_counts_rejected_replies_and_halves_batches(tmp_path, prices, is_batch, dollars):
    used = usage(read_run(write_run(tmp_path / "out", REQUESTS, TEXTS, prices, is_batch=is_batch)))
    assert (used.input_tokens, used.output_tokens) == (5000, 500)
    assert used.dollars == (None if dollars is None else pytest.approx(dollars))


def test_markers_are_counted_at_the_start_of_rows(tmp_path):
    images = [dataclasses.replace(PARK, id=f"{i}") for i in range(40)]
    texts = {(image.id, "detail"): DETAIL for image in images}
    run = read_run(write_run(tmp_path / "out", [(image, "detail") for image in images], texts))
    values = [row["conversations"][0]["value"] for row in run.rows]
    assert marker_first(run) == 40 - sum(value.endswith("<image>") for value in values)
    assert 0 < marker_first(run) < 40


def test_lengths_and_questions(run):
    assert answer_words(by_kind(run.kept)["conversation"]) == [4, 5, 8]
    assert first_words(run) == {"what": 1, "how": 1, "is": 1}  # without the questions of descriptions
    assert question_types(run) == {"what": 1, "how many": 1, "yes or no": 1}


def test_faults_and_duplicates_of_parsed_replies(run):
    assert [record["id"] for record in faulty(run)["source leak"]] == ["2"]
    assert sum(map(len, faulty(run).values())) == 1
    first, second = by_kind(run.parsed)["detail"]
    assert (first["duplicate_of"], second["duplicate_of"]) == (None, "1/detail")
    assert is_exact_duplicate(second, first) and not is_exact_duplicate(run.parsed[0], first)


def test_workers_measure_the_same_truth(tmp_path):
    images = [dataclasses.replace(PARK, id=f"{i}") for i in range(70)]  # three ranges of rows
    texts = {(image.id, "detail"): DETAIL for image in images}
    run = read_run(write_run(tmp_path / "out", [(image, "detail") for image in images], texts))
    steps = []
    result = truths(run, workers=2, on_progress=steps.append)
    assert steps == [32, 64, 70] and result == truths(run)
    assert result["all"].precision.count == 140


def test_truth_of_replies_kept_or_not(tmp_path):
    run = read_run(write_run(tmp_path / "out", REQUESTS, TEXTS))
    steps = []
    result = truths(run, on_progress=steps.append)
    assert steps == [4] and list(result) == ["conversation", "detail", "all"]
    share = result["conversation"].precision  # a dog, a cat; a dog in a room with two cats
    assert (share.right, share.count) == (2, 3)
    assert (result["conversation"].count.right, result["conversation"].count.count) == (0, 1)
    assert result["all"].precision.count == 3 + 4
    dropped = read_run(write_run(tmp_path / "drop", REQUESTS, TEXTS, options=RowOptions(0, ("source-leak",))))
    assert len(dropped.rows) == 3 and truths(dropped) == result


@pytest.mark.parametrize(
    "question, expected",
    [
        ("How many dogs are there?", "how many"),
        ("What is the total number of dogs?", "how many"),
        ("What color is the dog?", "color"),
        ("What is the colour of the dog?", "color"),
        ("Where is the dog?", "where"),
        ("What is the position of the dog?", "where"),
        ("why is the dog there?", "why"),
        ("What might be the reason for the car to be parked?", "why"),
        ("How does the dog feel?", "how"),
        ("Who holds the dog?", "who"),
        ("What time is it?", "when"),
        ("Which dog is larger?", "which"),
        ("What is the dog doing?", "what"),
        ("Is there a dog?", "yes or no"),
        ("Can you see a dog?", "yes or no"),
        ("Can you describe the dog?", "request"),
        ("Please describe the dog.", "request"),
        ("Wherever is it?", "other"),
        ("Imagine a dog. What is next?", "other"),
        ("", "other"),
    ],
)
def test_question_types(question, expected):
    assert question_type(f" {question}") == expected


def test_vocabulary_follows_the_boxes(tmp_path, run):
    from llava_jax.data.sources.scene_world import draw_scene
    from llava_jax.datagen.scene_contexts import scene_context

    scene = scene_context(draw_scene(0, 0, False), 0, 0, False)
    scenes = read_run(write_run(tmp_path / "scenes", [(scene, "detail")], {(scene.id, "detail"): DETAIL}))
    assert ("red", "circle") in scenes.vocabulary.nouns
    assert ("dog",) in run.vocabulary.nouns


def edited(record: dict, **values) -> str:
    return json.dumps(record | values)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda record: "{", "line 2: is not JSON"),
        (lambda record: "[]", "line 2: is no object"),
        (lambda record: edited(record, kept="yes"), "line 2: key 'kept'"),
        (lambda record: edited(record, id="3"), "line 2: the image '3' is not in the contexts"),
        (lambda record: edited(record, kind="poem"), "line 2: an unknown kind"),
        (lambda record: edited(record, pairs=[["a"]]), "line 2: an unknown kind or check, or pairs"),
        (lambda record: edited(record, absent={"pair": ["a", "b"]}), "line 2: an unknown kind or check, or pairs"),
        (lambda record: edited(record, absent={"position": 0}), "line 2: an unknown kind or check, or pairs"),
        (lambda record: edited(record, supported=[[]]), "line 2: an unknown kind or check"),
        (lambda record: edited(record, supported=None), "line 2: key 'supported'"),
        (lambda record: edited(record, quality=["rude"]), "line 2: an unknown kind or check"),
        (lambda record: edited(record, kept=False), "does not hold the rows that checks.jsonl calls kept"),
    ],
)
def test_damaged_checks_are_named(tmp_path, edit, message):
    out = write_run(tmp_path / "out", REQUESTS, TEXTS)
    lines = (out / "checks.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = edit(json.loads(lines[1]))
    (out / "checks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_run(out)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", '[{"id": "1", "conversations": []}]'])
def test_damaged_rows_are_named(tmp_path, content):
    out = write_run(tmp_path / "out", REQUESTS, TEXTS)
    (out / "instruct.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="instruct.json"):
        read_run(out)


@pytest.mark.parametrize("name", ["settings.json", "contexts.jsonl", "checks.jsonl", "instruct.json"])
def test_a_missing_part_is_named(tmp_path, name):
    out = write_run(tmp_path / "out", REQUESTS, TEXTS)
    (out / name).unlink()
    with pytest.raises(DataError, match=name):
        read_run(out)
