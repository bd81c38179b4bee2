"""Templates render exactly the strings of the original implementation."""

import hashlib

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.text import template_table
from llava_jax.text.template_table import TEMPLATES, Segment
from llava_jax.text.templates import render, stop_string

TWO_ROUNDS = [("human", "<image>\nWhat is it?"), ("gpt", "A red bus."), ("human", "Where?"), ("gpt", "On a street.")]


def text(segments):
    return "".join(segment.text for segment in segments)


def targets(segments):
    """Supervised text, one string per unbroken run."""
    runs, previous = [], False
    for segment in segments:
        if segment.is_target:
            runs.append(runs.pop() + segment.text if previous else segment.text)
        previous = segment.is_target
    return runs


@pytest.mark.parametrize(
    ("name", "length", "sha256"),
    [
        ("SYSTEM_HUMAN", 156, "ace78a978005f68a"),
        ("SYSTEM_USER", 154, "1fa69e2371b762d1"),
        ("SYSTEM_VISION", 186, "790f4cfc05523b0e"),
        ("SYSTEM_LLAMA_2", 508, "d52c188a3c969c4e"),
    ],
)
def test_system_prompts_match_the_published_texts(name, length, sha256):
    system = getattr(template_table, name)
    assert len(system) == length
    assert hashlib.sha256(system.encode()).hexdigest()[:16] == sha256


S0, S1, SL, SV = (
    getattr(template_table, f"SYSTEM_{name}") for name in ("HUMAN", "USER", "LLAMA_2", "VISION")
)  # fmt: skip
V1 = "USER: <image>\nWhat is it? ASSISTANT: A red bus.</s>USER: Where? ASSISTANT: On a street.</s>"
LLAMA_2 = "<image>\nWhat is it? [/INST] A red bus. </s><s>[INST] Where? [/INST] On a street. </s>"
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA red bus.<|im_end|>\n"
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nOn a street.<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("template", "string", "supervised"),
    [
        ("vicuna_v1", f"{S1} {V1}", [" A red bus.</s>", " On a street.</s>"]),
        ("llava_v1", f"{S0} {V1}", [" A red bus.</s>", " On a street.</s>"]),
        (
            "llava_v0",
            f"{S0}\n\n### Human: <image>\nWhat is it?\n### Assistant: A red bus.\n"
            "### Human: Where?\n### Assistant: On a street.\n### ",
            ["###", "### Assistant: A red bus.\n###", "### Assistant: On a street.\n### "],
        ),
        (
            "llama_2",
            f"[INST] <<SYS>>\n{SL}\n<</SYS>>\n\n{LLAMA_2}",
            [" A red bus. </s>", " On a street. </s>"],
        ),
        (
            "llava_llama_2",
            f"[INST] <<SYS>>\n{SV}\n<</SYS>>\n\n{LLAMA_2}",
            [" A red bus. </s>", " On a street. </s>"],
        ),
        (
            "mistral_instruct",
            "[INST] <image>\nWhat is it? [/INST] A red bus. </s>[INST] Where? [/INST] On a street. </s>",
            [" A red bus. </s>", " On a street. </s>"],
        ),
        ("chatml", CHATML, ["A red bus.<|im_end|>", "On a street.<|im_end|>"]),
    ],
)
def test_rendered_training_strings(template, string, supervised):
    segments = render(template, TWO_ROUNDS)
    assert text(segments) == string
    assert targets(segments) == supervised


@pytest.mark.parametrize(
    ("template", "string"),
    [
        ("vicuna_v1", f"{S1} USER: <image>\nWhat is it? ASSISTANT: A red bus.</s>USER: Where? ASSISTANT:"),
        ("llava_v0", f"{S0}###Human: <image>\nWhat is it?###Assistant: A red bus.###Human: Where?###Assistant:"),
        ("mistral_instruct", "[INST] <image>\nWhat is it? [/INST] A red bus. </s>[INST] Where? [/INST]"),
        ("chatml", CHATML.removesuffix("On a street.<|im_end|>\n")),
    ],
)
def test_rendered_prompt_strings(template, string):
    assert text(render(template, TWO_ROUNDS[:3], open_answer=True)) == string


def test_first_prompt_of_llava_v0():
    assert text(render("llava_v0", TWO_ROUNDS[:1], open_answer=True)) == (
        f"{S0}###Human: <image>\nWhat is it?###Assistant:"
    )


def test_plain_keeps_only_image_and_caption():
    turns = [("human", "Describe it.\n<image>"), ("gpt", "a red bus parked on a street .")]
    assert render("plain", turns) == [
        Segment("<image>", kind="image"),
        Segment("a red bus parked on a street .\n", is_target=True),
    ]
    assert render("plain", turns[:1], open_answer=True) == [Segment("<image>", kind="image")]


def test_plain_without_image_is_raw_text():
    assert render("plain", [("human", "dropped"), ("gpt", "Once.")]) == [Segment("Once.\n", is_target=True)]


def test_docstring_example():
    assert render("mistral_instruct", [("human", "What is it? <image>"), ("gpt", "A bus.")]) == [
        ("[INST] ", False, "text"),
        ("<image>", False, "image"),
        ("\nWhat is it? [/INST]", False, "text"),
        (" A bus. ", True, "text"),
        ("</s>", True, "special"),
    ]


@pytest.mark.parametrize(
    ("question", "rendered"),
    [
        ("What?\n<image>", "<image>\nWhat?"),
        ("  Wh<image>at?  ", "<image>\nWhat?"),
        ("<image>", "<image>"),
        ("left: <image> right: <image> ", "left: <image> right: <image> "),
        ("  no image: spaces stay ", "  no image: spaces stay "),
    ],
)
def test_single_image_marker_moves_to_the_front(question, rendered):
    segments = render("mistral_instruct", [("human", question)], open_answer=True)
    assert text(segments) == f"[INST] {rendered} [/INST]"
    assert sum(segment.kind == "image" for segment in segments) == question.count("<image>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_markers_and_stops_in_answers_are_text(template):
    segments = render(template, [("human", "?"), ("gpt", "<image></s><|im_end|>")])
    assert any(s.kind == "text" and "<image></s><|im_end|>" in s.text for s in segments)
    assert not any(s.kind == "image" for s in segments)


def test_empty_answer_still_supervises_its_stop():
    assert targets(render("vicuna_v1", [("human", "?"), ("gpt", "")])) == [" </s>"]
    assert targets(render("chatml", [("human", "?"), ("gpt", "")])) == ["<|im_end|>"]
    assert targets(render("plain", [("human", "?"), ("gpt", "")])) == ["\n"]


def test_stop_strings_of_templates():
    ends = {"llava_v0": "###", "plain": "\n", "gemma": "<end_of_turn>", "phi_3": "<|end|>"}
    ends |= dict.fromkeys(("llama_3", "llama_3_1"), "<|eot_id|>")
    ends |= dict.fromkeys(("chatml", "chatml_bare", "qwen_2_5", "smollm_2", "phi_4"), "<|im_end|>")
    assert {name: stop_string(name) for name in TEMPLATES} == dict.fromkeys(TEMPLATES, "</s>") | ends


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "empty"),
        ([("gpt", "Hi.")], "turn 0 is from 'gpt', not 'human'"),
        ([("human", "a"), ("human", "b")], "turn 1 is from 'human', not 'gpt'"),
        ([("human", "a")], "the last turn is from 'human'"),
        ([("tool", "a"), ("gpt", "b")], "turn 0 has the unknown role 'tool'"),
        ([("system", "a"), ("gpt", "b")], "turn 1 is from 'gpt', not 'human'"),
        ([("system", "a")], "empty"),
        ([("human", "a"), ("system", "b")], "turn 1 is from 'system', not 'gpt'"),
        ([("system", None), ("human", "a"), ("gpt", "b")], "turn 0 holds NoneType"),
        ([("human", "a"), ("gpt", None)], "turn 1 holds NoneType"),
    ],
)
def test_malformed_conversations_raise(turns, message):
    with pytest.raises(DataError, match=message):
        render("vicuna_v1", turns)


def test_prompt_that_ends_with_an_answer_raises():
    with pytest.raises(DataError, match="the last turn is from 'gpt'; a prompt ends with 'human'"):
        render("vicuna_v1", TWO_ROUNDS, open_answer=True)


def test_plain_with_two_rounds_raises():
    with pytest.raises(DataError, match="4 turns"):
        render("plain", TWO_ROUNDS)


def test_unknown_template_error_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'vicuna_v2'.*vicuna_v1"):
        render("vicuna_v2", TWO_ROUNDS)
