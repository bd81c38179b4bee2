"""Prompts and rows."""

import collections

import pytest

from llava_jax.data.sources.llava_row import parse_row
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.prompts import (
    DETAIL_QUESTIONS,
    KINDS,
    OUR_SHOTS,
    TeacherPrompt,
    detail_question,
    instruction_row,
    prompts_hash,
    read_prompts,
    request_messages,
)
from llava_jax.errors import DataError

CONTEXT = ImageContext("7", "a/7.jpg", ("A bus.", "Red."), (Box("bus", 0.1, 0.2, 0.63, 1.0),))


def test_request_is_system_shots_and_context():
    prompt = TeacherPrompt("Be exact.", (("c1", "r1"), ("c2", "r2")))
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    for kind in KINDS:
        messages = request_messages(prompt, CONTEXT, kind)
        assert [turn["role"] for turn in messages] == roles
        assert [turn["content"] for turn in messages[:5]] == ["Be exact.", "c1", "r1", "c2", "r2"]
        boxes = "" if kind == "conversation" else "\n\nbus: [0.1, 0.2, 0.63, 1.0]"
        assert messages[5]["content"] == f"A bus.\nRed.{boxes}"
    assert request_messages(prompt, CONTEXT, "detail")[2] is messages[2]  # shared: 158,000 copies need gigabytes


def test_folder_of_others_is_read_and_hashed(tmp_path):
    folder = tmp_path / "conversation"
    folder.mkdir()
    for name, text in {
        "system_message": "S",
        "000_caps": "C\n",
        "000_conv": "R",
        "002_caps": "D",
        "002_conv": "T",
    }.items():
        (folder / f"{name}.txt").write_text(text)
    prompts = read_prompts(tmp_path, ["conversation"])
    assert prompts["conversation"] == TeacherPrompt("S", (("C", "R"), ("D", "T")))
    hashes = {prompts_hash(prompts), prompts_hash(read_prompts())}
    (folder / "000_conv.txt").write_text("Q")
    assert prompts_hash(read_prompts(tmp_path, ["conversation"])) not in hashes and len(hashes) == 2
    (folder / "002_conv.txt").unlink()
    with pytest.raises(DataError, match="002_conv.txt: cannot be read"):
        read_prompts(tmp_path, ["conversation"])
    (folder / "002_conv.txt").write_text(" \n")
    with pytest.raises(DataError, match="002_conv.txt: is empty"):
        read_prompts(tmp_path, ["conversation"])
    with pytest.raises(DataError, match="detail_description.*cannot be read"):
        read_prompts(tmp_path, ["detail"])


def test_our_shots_show_the_contexts_that_their_kind_gets():
    prompts = read_prompts()
    for kind in KINDS:
        for text, _ in prompts[kind].shots:
            captions, *boxes = text.split("\n\n")
            assert len(captions.splitlines()) == 5 and len(boxes) == (0 if kind == "conversation" else 1)
            for line in "".join(boxes).splitlines():
                category, numbers = line.split(": ")
                left, top, right, bottom = map(float, numbers.strip("[]").split(", "))
                assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and category
                assert numbers == str([left, top, right, bottom])
    assert OUR_SHOTS.is_dir()


def test_rows_are_what_training_reads():
    pairs = [("What is it?", "A bus."), ("Why?", "So.\n\n1. One.")]
    row = instruction_row(CONTEXT, "conversation", pairs, seed=0)
    row_id, turns, images = parse_row(row, "row")
    assert row_id == "7" and images == ["a/7.jpg"]
    assert [text for _, text in turns] == ["<image>\nWhat is it?", "A bus.", "Why?", "So.\n\n1. One."]


def test_marker_is_first_half_of_the_time():
    """Of 4,000 fair coins, 2,000 +- 126 fall on one side (4 standard deviations)."""
    contexts = [ImageContext(str(i), "x.jpg", ("c",)) for i in range(4000)]
    values = [instruction_row(c, "detail", [("q", "a")], 1)["conversations"][0]["value"] for c in contexts]
    counts = collections.Counter(values)
    assert set(counts) == {"<image>\nq", "q\n<image>"} and abs(counts["<image>\nq"] - 2000) < 126
    again = [instruction_row(c, "detail", [("q", "a")], 1)["conversations"][0]["value"] for c in contexts]
    other = [instruction_row(c, "detail", [("q", "a")], 2)["conversations"][0]["value"] for c in contexts]
    assert values == again != other


def test_detail_questions_are_sixteen_and_all_drawn():
    contexts = [ImageContext(str(i), "x.jpg", ("c",)) for i in range(400)]
    drawn = [detail_question(context, 3) for context in contexts]
    assert len(DETAIL_QUESTIONS) == 16 and set(drawn) == set(DETAIL_QUESTIONS)
    assert drawn == [detail_question(context, 3) for context in contexts]
