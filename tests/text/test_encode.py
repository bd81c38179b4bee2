"""Ids and target masks equal those of the original implementation and supervise only the answers."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_jax.errors import ConfigError, DataError
from llava_jax.text.encode import IMAGE_TOKEN_ID, expand_images, fit, stop_ids, tokenize, tokenize_prompt
from llava_jax.text.template_table import TEMPLATES
from llava_jax.text.tokenizer import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
LLAMA = Path(os.environ.get("LLAVA_JAX_REAL_DATA", ROOT / "../shared/data")) / "tokenizers/llama2.model"
needs_llama = pytest.mark.skipif(
    not LLAMA.is_file(), reason=f"{LLAMA} is missing: set LLAVA_JAX_REAL_DATA to a folder with tokenizers/llama2.model"
)
TWO_ROUNDS = [("human", "<image>\nWhat is it?"), ("gpt", "A red bus."), ("human", "Where?"), ("gpt", "On a street.")]
TEXT_ONLY = [("human", "What is it?"), *TWO_ROUNDS[1:]]
CHATML = ("<|im_start|>", "<|im_end|>")
# In id order of the test tokenizers: the special tokens of all templates.
SPECIALS = (
    *CHATML, "<|im_sep|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip
F, T = False, True


@pytest.fixture(scope="module")
def llama():
    return load_tokenizer(LLAMA)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    texts = ["A chat between a curious user and an assistant. USER: What is it? ASSISTANT: A red bus.\n"] * 50
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("byte_level"), extra_specials=SPECIALS)


@pytest.fixture(scope="module")
def llama_chatml(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama_chatml")
    shutil.copy(LLAMA, folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps({name: 32000 + i for i, name in enumerate(SPECIALS)}))
    return load_tokenizer(folder)


def parse_ids(text):
    return [int(number) for number in text.split()]


# Expected ids from an independent implementation of LLaMA's tokenizer and of the original's rules.
HEADER = parse_ids(
    "1 319 13563 1546 263 12758 1404 322 385 23116 21082 20255 29889 450 20255 4076 8444 29892 13173 29892 322 1248 "
    "568 6089 304 278 1404 29915 29879 5155 29889"
)
ROUND_1 = "29901 29871 -200 29871 13 5618 338 372 29973 319 1799 9047 13566 29901 319 2654 3593 29889 2"
ROUND_2 = "29901 6804 29973 319 1799 9047 13566 29901 1551 263 11952 29889 2"
ANSWERS = parse_ids("319 2654 3593 29889 2 1551 263 11952 29889 2")


@needs_llama
@pytest.mark.parametrize(("legacy", "second_user", "total"), [(True, "3148 1001", 67), (False, "11889", 66)])
def test_vicuna_v1_ids_match_the_original(legacy, second_user, total):
    ids, mask = tokenize(load_tokenizer(LLAMA, legacy), "vicuna_v1", TWO_ROUNDS, images=1)
    assert ids.tolist() == HEADER + parse_ids(f"3148 1001 {ROUND_1} {second_user} {ROUND_2}")
    assert len(ids) == total
    assert ids[mask].tolist() == ANSWERS
    assert (ids.dtype, mask.dtype) == (np.int32, bool)


@needs_llama
def test_plain_ids_match_the_original(llama):
    turns = [("human", "<image>"), ("gpt", "a red bus parked on a street .")]
    ids, mask = tokenize(llama, "plain", turns, images=1)
    assert ids.tolist() == parse_ids("1 -200 263 2654 3593 14089 287 373 263 11952 869 13")
    assert mask.tolist() == [F, F] + [T] * 10


@needs_llama
def test_docstring_example(llama):
    ids, mask = tokenize(llama, "plain", [("human", "<image>"), ("gpt", "a red bus")], images=1)
    assert ids.tolist() == [1, -200, 263, 2654, 3593, 13]
    assert mask.tolist() == [F, F, T, T, T, T]


@needs_llama
def test_llava_llama_2_ids_match_the_original(llama):
    ids, mask = tokenize(llama, "llava_llama_2", TWO_ROUNDS, images=1)
    assert len(ids) == 85
    assert ids[mask].tolist() == parse_ids("319 2654 3593 29889 29871 2 1551 263 11952 29889 29871 2")
    assert " 2 1 518 25580 29962 " in " ".join(map(str, ids))
    assert " 518 29914 25580 29962 319 2654 " in " ".join(map(str, ids))


@needs_llama
@pytest.mark.parametrize(("template", "space", "stop"), [("mistral_v1", "", "2"), ("llama_2_chat", " ", "29871 2 1")])
def test_public_template_ids_equal_the_fast_tokenizer(template, space, stop):
    """Of transformers, for the published string: `]` and the answer, or the space before it, never merge."""
    turns = [("human", "What is it?"), ("gpt", "A bus."), ("human", "Where?"), ("gpt", "Here.")]
    first, second = ("29909 3593 29889", "10605 29889") if not space else ("319 3593 29889", "2266 29889")
    expected = f"1 518 25580 29962 1724 338 372 29973 518 29914 25580 29962 {first} {stop} "
    expected += f"518 25580 29962 6804 29973 518 29914 25580 29962 {second} {stop}"
    ids, mask = tokenize(load_tokenizer(LLAMA, legacy=True), template, turns, images=0)
    assert ids.tolist() == parse_ids(expected.removesuffix(" 1"))
    assert ids[mask].tolist() == parse_ids(f"{first} {stop} {second} {stop}".replace(" 1 ", " ").removesuffix(" 1"))


V0_ASK = "[ 12968 29901 {} 1724 338 372 29973 13 ] 2277 29937 4007 22137 29901 319 2654 3593 29889 13 2277 29937 "
V0_REST = (
    "[ 12968 29901 6804 29973 13 ] 2277 29937 4007 22137 29901 1551 263 11952 29889 13 2277 29937 29871"
)  # fmt: skip


@needs_llama
@pytest.mark.parametrize(
    ("turns", "images", "first", "total"),
    [
        (TEXT_ONLY, 0, V0_ASK.format(""), 72),
        (TWO_ROUNDS, 1, V0_ASK.format("29871 -200 29871 13 5618").replace("1724 ", ""), 76),
    ],
)
def test_llava_v0_ids_match_the_original(llama, turns, images, first, total):
    """Ids in brackets are not supervised. The original trained on the cues, too."""
    ids, mask = tokenize(llama, "llava_v0", turns, images)
    expected_ids, expected_mask, is_target = [], [], True
    for item in f"2277 29937 {first}{V0_REST}".split():
        if item in "[]":
            is_target = item == "]"
        else:
            expected_ids.append(int(item))
            expected_mask.append(is_target)
    assert len(ids) == total
    assert not mask[:33].any() and ids[31:33].tolist() == [13, 13]
    assert ids[33:].tolist() == expected_ids
    assert mask[33:].tolist() == expected_mask


# What is supervised, independent of the table: before and after each answer, and at the end of the row.
SUPERVISED = {
    "vicuna_v1": (" ", "</s>", ""),
    "llava_v1": (" ", "</s>", ""),
    "llava_v0": ("###### Assistant: ", "\n", "### "),  # `###` of the human cue, all of the assistant's, the last `### `
    "plain": ("", "\n", ""),
    "llama_2": (" ", " </s>", ""),
    "llava_llama_2": (" ", " </s>", ""),
    "mistral_instruct": (" ", " </s>", ""),
    "chatml": ("", "<|im_end|>", ""),
}
PUBLIC = {  # likewise; these are checked with fewer conversations
    "llama_2_chat": (" ", " </s>", ""),
    "mistral_v1": ("", "</s>", ""),
    "mistral_v3": (" ", "</s>", ""),
    "mistral_v7": (" ", "</s>", ""),
    **dict.fromkeys(("chatml_bare", "qwen_2_5", "smollm_2", "phi_4"), ("", "<|im_end|>", "")),
    **dict.fromkeys(("llama_3", "llama_3_1"), ("", "<|eot_id|>", "")),
    "gemma": ("", "<end_of_turn>", ""),
    "phi_3": ("", "<|end|>", ""),
}
SPECIAL_STRINGS = [
    *("</s>", "<s>", "<unk>", "<pad>", "<image>", "<|im_end|>", "<|im_start|>", " ASSISTANT: ", "USER:", "###", "### "),
    *("[/INST]", " [/INST] ", "[INST]", "<0x0A>", "\n", "\n\n", " ", "  ", "\t", "A red bus.", "漢字", "🚌", "e\u0301"),
]
surrogates_and_sp_space = st.characters(blacklist_categories=["Cs"], blacklist_characters="▁")
texts = st.lists(st.sampled_from(SPECIAL_STRINGS) | st.text(surrogates_and_sp_space, max_size=5), max_size=4).map(
    "".join
)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def check_supervision(tokenizer, template, rounds, system=()):
    """decode(ids[mask]) is every answer with what the template puts around it; no text becomes a special id.
    system: the texts of no or one system turn."""
    turns = [("system", text) for text in system]
    turns += [turn for ask, answer in rounds for turn in (("human", ask), ("gpt", answer))]
    images = sum(ask.count("<image>") for ask, _ in rounds)
    ids, mask = tokenize(tokenizer, template, turns, images)
    before, after, end = (SUPERVISED | PUBLIC)[template]
    if template == "plain" and tokenizer.dummy_prefix:
        before = " "  # the answer begins a text, and SentencePiece puts a space before it
    answers = [answer.strip() if TEMPLATES[template].strips else answer for _, answer in rounds]
    expected = "".join(before + answer + after for answer in answers) + end
    assert tokenizer.decode(ids[mask], skip_special=False) == expected
    assert (ids == IMAGE_TOKEN_ID).sum() == images and not mask[ids == IMAGE_TOKEN_ID].any()

    empty = [(role, "<image>" * (text.count("<image>") if role == "human" else 0)) for role, text in turns]
    specials = list(tokenizer.special.values())
    empty_ids = tokenize(tokenizer, template, empty, images)[0]
    assert ids[np.isin(ids, specials)].tolist() == empty_ids[np.isin(empty_ids, specials)].tolist()
    moves = template == "mistral_v3" and system and len(rounds) > 1  # its system text is in the last question
    if template != "llava_v0" and not moves:
        first_answer = np.flatnonzero(mask)[0]
        prompt = tokenize_prompt(tokenizer, template, turns[: len(system) + 1], rounds[0][0].count("<image>"))
        assert prompt.tolist() == ids[:first_answer].tolist()


@pytest.mark.parametrize("kind", [pytest.param("llama_chatml", marks=needs_llama), "byte_level"])
def test_target_mask_covers_exactly_the_answers(kind, request):
    tokenizer = request.getfixturevalue(kind)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(conversations)
    def every_template(rounds):
        for template in SUPERVISED:
            check_supervision(tokenizer, template, rounds[:1] if template == "plain" else rounds)

    every_template()


def test_mask_covers_answers_in_every_template_with_system_texts(byte_level):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(conversations, texts)
    def every_template(rounds, system):
        for template in PUBLIC:
            check_supervision(byte_level, template, rounds)
        for template, entry in TEMPLATES.items():
            if entry.has_system:
                check_supervision(byte_level, template, rounds, [system])

    every_template()
    assert SUPERVISED.keys() | PUBLIC.keys() == TEMPLATES.keys()


@needs_llama
@pytest.mark.parametrize("template", [name for name in SUPERVISED if name not in ("llava_v0", "plain", "chatml")])
@pytest.mark.parametrize("legacy", [True, False])
def test_later_round_prompt_matches_training_ids(template, legacy):
    tokenizer = load_tokenizer(LLAMA, legacy)
    ids, mask = tokenize(tokenizer, template, TWO_ROUNDS, images=1)
    second_answer = np.flatnonzero(mask & ~np.roll(mask, 1))[1]
    assert tokenize_prompt(tokenizer, template, TWO_ROUNDS[:3], images=1).tolist() == ids[:second_answer].tolist()


@needs_llama
def test_llava_v0_prompt_differs_from_training(llama):
    prompt = tokenize_prompt(llama, "llava_v0", TWO_ROUNDS[:1], images=1)
    assert llama.decode(prompt[-13:], skip_special=False) == " <image> \nWhat is it?###Assistant:"


@pytest.mark.parametrize(("turns", "images", "markers"), [(TWO_ROUNDS, 0, 1), (TWO_ROUNDS, 2, 1), (TEXT_ONLY, 1, 0)])
def test_marker_and_image_count_mismatch_raises(byte_level, turns, images, markers):
    for function in (lambda: tokenize(byte_level, "vicuna_v1", turns, images),
                     lambda: tokenize_prompt(byte_level, "vicuna_v1", turns[:3], images)):  # fmt: skip
        with pytest.raises(DataError, match=rf"{markers} <image> marker\(s\), but the sample has {images} image"):
            function()


@needs_llama
def test_template_with_missing_special_token_raises(llama):
    with pytest.raises(ConfigError, match=r"'chatml' needs the special token '<\|im_start\|>'.*vicuna_v1"):
        tokenize(llama, "chatml", TWO_ROUNDS, images=1)


def test_stop_ids_of_templates(byte_level):
    assert stop_ids(byte_level, "vicuna_v1") == (byte_level.eos_id,)
    assert stop_ids(byte_level, "llava_v0") == (byte_level.eos_id,)
    assert stop_ids(byte_level, "chatml") == (byte_level.eos_id, byte_level.special["<|im_end|>"])
    assert stop_ids(byte_level, "llama_3") == (byte_level.eos_id, byte_level.special["<|eot_id|>"])
    assert stop_ids(dataclasses.replace(byte_level, end_ids=(2, 7)), "vicuna_v1") == (byte_level.eos_id, 7)


def test_expand_images_repeats_the_placeholder():
    ids, mask = expand_images(np.array([1, -200, 263], np.int32), np.array([F, F, T]), features=3)
    assert ids.tolist() == [1, -200, -200, -200, 263]
    assert mask.tolist() == [F, F, F, F, T]
    assert (ids.dtype, mask.dtype) == (np.int32, bool)


IDS, MASK = np.array([1, 7, -200, -200, -200, 263, 2], np.int32), np.array([F, T, F, F, F, T, T])


@pytest.mark.parametrize(
    ("length", "kept"),
    [(9, 7), (7, 7), (6, 6), (5, 5), (4, 2), (3, 2), (2, 2)],  # 3 and 4 would cut the image, 2 and 5 do not
)
def test_truncation_never_cuts_an_image(length, kept):
    ids, mask = fit(IDS, MASK, length, "truncate")
    assert ids.tolist() == IDS[:kept].tolist()
    assert mask.tolist() == MASK[:kept].tolist()


def test_docstring_example_of_fit():
    ids, mask = fit(np.array([1, -200, -200, 263, 2]), np.array([F, F, F, T, T]), 4, "truncate")
    assert (ids.tolist(), mask.tolist()) == ([1, -200, -200, 263], [F, F, F, T])


def test_row_without_targets_raises():
    with pytest.raises(DataError, match="no supervised token is left of 7 within a length of 1"):
        fit(IDS, MASK, 1, "truncate")
    with pytest.raises(DataError, match="no supervised token"):
        fit(IDS, np.zeros(7, bool), 7, "truncate")


def test_overlong_row_raises_under_the_error_policy():
    with pytest.raises(DataError, match="7 tokens, the limit is 6"):
        fit(IDS, MASK, 6, "error")
    assert fit(IDS, MASK, 7, "error")[0].tolist() == IDS.tolist()
    with pytest.raises(ConfigError, match="'drop'"):
        fit(IDS, MASK, 7, "drop")
