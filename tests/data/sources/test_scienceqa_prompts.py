"""Every prompt format, byte for byte; expected texts are written out, not composed."""

import json

import pytest

from llava_jax.__main__ import main
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.sources.scienceqa import ZERO_SHOT, ScienceQA, conversation, formats, parse_problem
from llava_jax.errors import ConfigError
from tests.data.sources.test_scienceqa import PROBLEM, folder

FULL = {
    "question": "Which is  farthest north?", "choices": ["Iowa", "Ohio"], "answer": 1, "hint": " Look at the map. ",
    "image": "image.png", "lecture": "Maps have directions.\nNorth is up.", "solution": "Find the rose.",
    "split": "test",
}  # fmt: skip
BARE = {
    "question": "What is it?", "choices": ["a cat", "a dog", "a fox"], "answer": 0, "hint": "", "image": None,
    "lecture": "", "solution": "", "split": "test",
}  # fmt: skip

FULL_INPUTS = {
    "QCM": "Which is farthest north?\nContext: Look at the map.\nOptions: (A) Iowa (B) Ohio",
    "CQM": "Context: Look at the map.\nQuestion: Which is farthest north?\nOptions: (A) Iowa (B) Ohio",
    "QCML": "Which is farthest north?\nContext: Look at the map.\nOptions: (A) Iowa (B) Ohio\n"
    "BECAUSE: Maps have directions.\nNorth is up.",
    "QCME": "Which is farthest north?\nContext: Look at the map.\nOptions: (A) Iowa (B) Ohio\nBECAUSE: Find the rose.",
    "QCMLE": "Which is farthest north?\nContext: Look at the map.\nOptions: (A) Iowa (B) Ohio\n"
    "BECAUSE: Maps have directions.\nNorth is up. Find the rose.",
    "QCLM": "Which is farthest north?\nContext: Look at the map.\n"
    "BECAUSE: Maps have directions.\nNorth is up.\nOptions: (A) Iowa (B) Ohio",
    "QCEM": "Which is farthest north?\nContext: Look at the map.\nBECAUSE: Find the rose.\nOptions: (A) Iowa (B) Ohio",
    "QCLEM": "Which is farthest north?\nContext: Look at the map.\n"
    "BECAUSE: Maps have directions.\nNorth is up. Find the rose.\nOptions: (A) Iowa (B) Ohio",
}
FULL_OUTPUTS = {
    "A": "The answer is B.",
    "AL_original": "The answer is B. BECAUSE: Find the rose.",
    "AE_original": "The answer is B. BECAUSE: Maps have directions.\nNorth is up.",
    "ALE": "The answer is B. BECAUSE: Maps have directions.\nNorth is up. Find the rose.",
    "AEL": "The answer is B. BECAUSE: Find the rose. Maps have directions.\nNorth is up.",
    "LA": "Maps have directions.\nNorth is up. The answer is B.",
    "EA": "Find the rose. The answer is B.",
    "LEA": "Maps have directions.\nNorth is up. Find the rose. The answer is B.",
    "ELA": "Find the rose. Maps have directions.\nNorth is up. The answer is B.",
    "LEPA": "LECTURE: Maps have directions.\nNorth is up.\nSOLUTION: Find the rose.\n###\nANSWER: B.",
}
BARE_QUESTION = "What is it?\nContext: N/A\nOptions: (A) a cat (B) a dog (C) a fox"
BARE_INPUTS = {  # an empty label is removed only at the end of the text
    "QCM": BARE_QUESTION,
    "CQM": "Context: N/A\nQuestion: What is it?\nOptions: (A) a cat (B) a dog (C) a fox",
    "QCML": BARE_QUESTION,
    "QCME": BARE_QUESTION,
    "QCMLE": BARE_QUESTION,
    "QCLM": "What is it?\nContext: N/A\nBECAUSE: \nOptions: (A) a cat (B) a dog (C) a fox",
    "QCEM": "What is it?\nContext: N/A\nBECAUSE: \nOptions: (A) a cat (B) a dog (C) a fox",
    "QCLEM": "What is it?\nContext: N/A\nBECAUSE: \nOptions: (A) a cat (B) a dog (C) a fox",
}
BARE_OUTPUTS = dict.fromkeys(FULL_OUTPUTS, "The answer is A.") | {
    "LEA": " The answer is A.",  # one pass turns three spaces into two, and the label removes one
    "ELA": " The answer is A.",
    "LEPA": "###\nANSWER: A.",
}


def texts(problem: dict, prompt_format: str) -> list[str]:
    row = conversation(parse_problem("7", problem, "x"), prompt_format)
    assert row.get("image") == (problem["image"] and "test/7/image.png") and row["id"] == "7"
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    return [turn["value"] for turn in row["conversations"]]


@pytest.mark.parametrize("name", [name for name in formats() if name != ZERO_SHOT])
def test_every_format_of_the_converter(name):
    input_name, output_name = name.split("-")
    assert texts(FULL, name) == [FULL_INPUTS[input_name] + "\n<image>", FULL_OUTPUTS[output_name]]
    assert texts(BARE, name) == [BARE_INPUTS[input_name], BARE_OUTPUTS[output_name]]


def test_every_format_is_covered_here():
    assert len(formats()) == len(set(formats())) == len(FULL_INPUTS) * len(FULL_OUTPUTS) + 1


def test_zero_shot_layout_of_v1_5():
    assert texts(FULL | {"hint": "Look."}, ZERO_SHOT) == [
        "<image>\nContext: Look.\nWhich is  farthest north?\nA. Iowa\nB. Ohio", "B",
    ]  # fmt: skip
    assert texts(BARE, ZERO_SHOT) == ["What is it?\nA. a cat\nB. a dog\nC. a fox", "A"]


def test_leading_label_is_removed_everywhere_in_its_text():
    odd = FULL | {"question": "Question: what?", "lecture": "Answer: no."}
    assert texts(odd, "QCM-LEA")[0].startswith("what?\nContext")
    assert texts(odd, "CQM-LEA")[0].startswith("Context: Look at the map.\nQuestion: Question: what?")
    assert texts(odd, "QCM-LEA")[1] == "no. Find the rose. The answer is B."
    assert texts(odd, "QCM-LEPA")[1].startswith("LECTURE: Answer: no.\n")


def test_empty_trailing_because_removes_every_because_label():
    odd = BARE | {"question": "BECAUSE: what?", "hint": "  "}
    assert texts(odd, "CQM-A")[0].startswith("Context: N/A\nQuestion: BECAUSE: what?")
    assert texts(odd, "QCML-A")[0] == " what?\nContext: N/A\nOptions: (A) a cat (B) a dog (C) a fox"


@pytest.mark.parametrize("name", ["QCM-AL", "CQM-AE"])
def test_swapped_format_names_are_refused_with_both_alternatives(name):
    with pytest.raises(ConfigError, match="AL has the solution and its AE the lecture.*AL_original.*AE_original"):
        texts(FULL, name)


@pytest.mark.parametrize("name", ["", "QCM", "QCM-", "QMC-A", "qcm-a", "QCM-A-A", "QCM-LEAP"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(ConfigError, match="is not INPUT-OUTPUT with INPUT one of"):
        texts(FULL, name)


def test_a_config_chooses_split_and_format(tmp_path):
    folder(tmp_path, {"1": FULL, "2": PROBLEM}, {"train": ["2"], "val": [], "test": ["1"]})
    source = open_source(tmp_path, split="test", prompt_format="CQM-A")
    assert len(source) == 1 and source[0].turns == (
        ("human", "<image>\n" + FULL_INPUTS["CQM"]),
        ("gpt", "The answer is B."),
    )
    assert open_source(tmp_path, split="train")[0].turns[1][1].startswith("Maps have four")
    with pytest.raises(ConfigError, match="Set data.split.*data scienceqa"):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match="INPUT-OUTPUT"):
        open_source(tmp_path, split="test", prompt_format="QCM")
    (tmp_path / "chat.json").write_text("[]")
    with pytest.raises(ConfigError, match="leave out data.split"):
        open_source(tmp_path / "chat.json", tmp_path, split="test")


def test_scienceqa_command_writes_a_training_json(tmp_path, capsys):
    folder(tmp_path, {"1": FULL, "2": PROBLEM}, {"train": ["2"], "val": [], "test": ["1"]})
    (tmp_path / "images").mkdir()
    out = tmp_path / "llava_test_QCM-LEPA.json"
    command = ["data", "scienceqa", str(tmp_path), str(out), "--split", "test", "--prompt-format", "QCM-LEPA"]
    assert main(command) == 0 and json.loads(out.read_text())[0]["image"] == "test/1/image.png"
    again, direct = open_source(out, tmp_path / "images"), ScienceQA(tmp_path, "test", prompt_format="QCM-LEPA")
    assert [again[i] for i in range(len(again))] == [direct[i] for i in range(len(direct))]
    assert main(command) == 2 and "exists already" in capsys.readouterr().err


def test_lone_surrogate_is_refused_and_nothing_written(tmp_path, capsys):
    folder(tmp_path, {"1": FULL | {"question": "half \ud83d"}}, {"test": ["1"]})
    assert main(["data", "scienceqa", str(tmp_path), str(tmp_path / "out.json"), "--split", "test"]) == 2
    assert "lone surrogate" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.json*"))


def test_the_converters_json_lines(tmp_path):
    """With its default format, and another one."""
    folder(tmp_path, {"1": FULL, "2": PROBLEM | {"image": None}}, {"train": ["2"], "val": [], "test": ["1"]})
    for split, flags in (("test", []), ("train", ["--prompt-format", "CQM-A"])):
        out = tmp_path / f"{split}.jsonl"
        assert main(["data", "scienceqa", str(tmp_path), str(out), "--split", split, "--jsonl", *flags]) == 0
    (test,), (train,) = ((tmp_path / f"{split}.jsonl").read_text().splitlines() for split in ("test", "train"))
    assert list(json.loads(test).items()) == [
        ("id", "1"),
        ("image", "test/1/image.png"),
        ("instruction", FULL_INPUTS["QCM"] + "\n<image>"),
        ("output", texts(FULL, "QCM-LEPA")[1]),
    ]
    assert json.loads(train) == {
        "id": "2",
        "instruction": "Context: N/A\nQuestion: Which of these states is farthest north?\n"
        "Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma",
        "output": "The answer is A.",
    }
