import json

import pytest

from llava_jax.data.example import id_hash
from llava_jax.data.sources.scienceqa import ScienceQA, conversation, parse_problem
from llava_jax.errors import ConfigError, DataError
from tests.fixtures.images import encoded, noise

PROBLEM = {
    "question": "Which of these states is farthest north?",
    "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
    "answer": 0,
    "hint": "",
    "image": "image.png",
    "lecture": "Maps have four cardinal directions.\nNorth is up.",
    "solution": "Look at the  compass rose.",
    "split": "train",
}


def folder(path, problems: dict, splits: dict | None = None):
    splits = splits or {"train": list(problems), "val": [], "test": []}
    (path / "problems.json").write_text(json.dumps(problems))
    (path / "pid_splits.json").write_text(json.dumps(splits))
    return path


def turns(**changes) -> list[str]:
    return [turn["value"] for turn in conversation(parse_problem("1", PROBLEM | changes, "x"))["conversations"]]


def test_problem_text_equals_the_original_converters_output():
    question, answer = turns()
    assert question == (
        "Which of these states is farthest north?\nContext: N/A\n"
        "Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma\n<image>"
    )
    assert answer == "Maps have four cardinal directions.\nNorth is up. Look at the compass rose. The answer is A."
    row = conversation(parse_problem("17", PROBLEM, "x"))
    assert (row["id"], row["image"]) == ("17", "train/17/image.png")


def test_quirks_of_the_converter_are_kept():
    question, answer = turns(image=None, hint=" Look:  here ", question="Question: what   is it?", answer=3)
    assert question.startswith("what  is it?\nContext: Look: here\nOptions: (A)") and "<image>" not in question
    assert answer.endswith("The answer is D.")
    assert turns(lecture="", solution="")[1] == " The answer is A."  # one of three spaces stays
    assert turns(lecture="Answer: no.", solution="x")[1] == "no. x The answer is A."
    assert "image" not in conversation(parse_problem("1", PROBLEM | {"image": None}, "x"))


def test_a_split_is_a_source_of_examples(tmp_path):
    problems = {
        str(i): PROBLEM | {"split": ("train", "val")[i % 2], "image": None if i else "image.png"} for i in range(5)
    }
    splits = {"train": ["0", "2", "4"], "val": ["1", "3"], "test": [], "minival": ["3"]}
    folder(tmp_path, problems, splits)
    (tmp_path / "images" / "train" / "0").mkdir(parents=True)
    (tmp_path / "images" / "train" / "0" / "image.png").write_bytes(encoded(noise(20, 20), "PNG"))
    train, val = ScienceQA(tmp_path, "train"), ScienceQA(tmp_path, "minival")
    assert [train[i].id for i in range(len(train))] == ["0", "2", "4"] and [val[0].id] == ["3"]
    assert train[0].images == ((tmp_path / "images/train/0/image.png").resolve(),) and train[0].images[0].is_file()
    assert train[0].turns[0][1].startswith("<image>\nWhich of") and train[1].images == ()
    assert train.id_hashes().tolist() == [id_hash(pid) for pid in ("0", "2", "4")]  # as for any source of these ids
    everything = ScienceQA(tmp_path)
    assert [everything.part(i) for i in range(5)] == ["train", "val"] * 2 + ["train"]
    with pytest.raises(ConfigError, match="there is no split 'dev', only train, val, test, minival"):
        ScienceQA(tmp_path, "dev")
    with pytest.raises(DataError, match="no problems in split 'test'"):
        ScienceQA(tmp_path, "test")


FAULTS = {
    "not an object": (3, "expected an object, found int"),
    "no question": ({"question": None}, '"question" must not be empty'),
    "hint is a number": ({"hint": 3}, '"hint" must be a string'),
    "choices is text": ({"choices": "ab"}, '"choices" must be a list of 1 to 5 strings'),
    "six choices": ({"choices": list("abcdef")}, '"choices" must be a list of 1 to 5'),
    "answer beyond": ({"answer": 4}, '"answer" is 4, not the index of a choice'),
    "answer is true": ({"answer": True}, '"answer" is True'),
    "negative answer": ({"answer": -1}, '"answer" is -1'),
    "image is a number": ({"image": 3}, '"image" must be a file name or null'),
    "split": ({"split": "dev"}, "\"split\" is 'dev', not one of train, val, test"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_problem_is_reported(tmp_path, fault):
    changes, message = FAULTS[fault]
    broken = PROBLEM | changes if isinstance(changes, dict) else changes
    source = ScienceQA(folder(tmp_path, {"1": PROBLEM, "2": broken}))
    assert source[0].id == "1"
    with pytest.raises(DataError, match=f"problems.json: problem 2: .*{message}") as caught:
        source[1]
    assert caught.value.kind == "broken row"


def test_the_two_files_must_agree(tmp_path):
    source = ScienceQA(folder(tmp_path, {"1": PROBLEM}, {"train": ["7"], "val": ["1"]}))
    with pytest.raises(DataError, match="problem 1: of split 'train', but pid_splits.json lists val"):
        source[0]
    with pytest.raises(DataError, match="problem 7: listed in pid_splits.json, but missing"):
        source[1]


def test_image_outside_the_folder_is_refused(tmp_path):
    source = ScienceQA(folder(tmp_path, {"1": PROBLEM | {"image": "../../../../secret.png"}}))
    with pytest.raises(DataError, match="problem 1: image .* is outside of"):
        source[0]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"train": 3}', b'{"train": [], "train": []}', b"", None])
def test_invalid_scienceqa_files_are_refused(tmp_path, content):
    folder(tmp_path, {"1": PROBLEM})
    if content is None:
        (tmp_path / "pid_splits.json").unlink()
    else:
        (tmp_path / "pid_splits.json").write_bytes(content)
    with pytest.raises(DataError, match="pid_splits.json"):
        ScienceQA(tmp_path)


def test_every_real_problem_is_read(real_data):
    source = ScienceQA(real_data / "scienceqa")
    examples = [source[i] for i in range(len(source))]
    assert len(examples) == 1593 and sum(len(e.images) for e in examples) == 791
    assert sum(e.images[0].is_file() for e in examples if e.images) == 79
    for example in examples:
        (_, question), (_, answer) = example.turns
        assert "\nContext: " in question and "\nOptions: (A) " in question
        assert answer[:-1].endswith("The answer is " + answer[-2])
