"""Token ids and decoded text equal those of transformers' fast tokenizers for every kind of tokenizer.json, or the file
is refused by name."""

import pytest
from transformers import AutoTokenizer

from llava_jax.errors import DataError
from llava_jax.text.encode import encode_segments
from llava_jax.text.templates import Segment
from llava_jax.text.tokenizer import load_tokenizer
from llava_jax.text.tokenizer_json import tokenizer_config, tokenizer_spec
from tests.fixtures.tokenizer_files import (
    DOUBLE,
    ESCAPE,
    LLAMA_3_PATTERN,
    LOOK_ALIKES,
    PREPEND,
    TEXTS,
    added,
    bos_first,
    byte_level,
    byte_level_step,
    changed,
    metaspace,
    sentencepiece_like,
    sequence,
    write_folder,
)

SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA_3_PATTERN}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
ADDED = [added(i, name, special=True) for i, name in enumerate(("<unk>", "<s>", "</s>"))]


def more_tokens(spec: dict) -> dict:
    """With added tokens that are not special, of every flag."""
    first = max(spec["model"]["vocab"].values()) + 1
    flags = {"<tool>": {}, "<l>": {"lstrip": True}, "<r>": {"rstrip": True}, "bus": {"single_word": True}}
    tokens = [added(first + i, name, **flag) for i, (name, flag) in enumerate(flags.items())]
    return spec | {"added_tokens": [*ADDED, *tokens, added(first + 4, "IT", normalized=True)]}


FILES = {
    "byte-level": (byte_level(), {}),
    "byte-level, prefix": (byte_level(pre_tokenizer=byte_level_step(add_prefix_space=True)), {}),
    "byte-level, prefix in a sequence": (
        byte_level(pre_tokenizer=sequence("pretokenizers", byte_level_step(add_prefix_space=True), DIGITS)), {}
    ),
    "byte-level, prefix and added tokens": (
        more_tokens(byte_level(pre_tokenizer=byte_level_step(add_prefix_space=True))), {}
    ),
    "GPT-2's class with the flag": (byte_level(), {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    "GPT-2's class against the file": (
        byte_level(pre_tokenizer=byte_level_step(add_prefix_space=True)), {"tokenizer_class": "GPT2TokenizerFast"}
    ),
    "generic class ignores the flag": (byte_level(), {"add_prefix_space": True}),
    "LLaMA 3": (
        changed(
            byte_level(
                pre_tokenizer=sequence("pretokenizers", SPLIT, byte_level_step(use_regex=False)),
                post_processor=bos_first(),
            ), ignore_merges=True,
        ), {}
    ),
    "Qwen": (
        byte_level(
            normalizer={"type": "NFC"},
            pre_tokenizer=sequence("pretokenizers", SPLIT, byte_level_step(use_regex=False)),
        ), {}
    ),
    "SmolLM": (byte_level(pre_tokenizer=sequence("pretokenizers", DIGITS, byte_level_step())), {}),
    "NFKC, lower case, prefix": (
        byte_level(
            normalizer=sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"}),
            pre_tokenizer=byte_level_step(add_prefix_space=True),
        ), {}
    ),
    "truncation and padding": (
        byte_level(
            truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<unk>"},
        ), {}
    ),
    "clean-up of spaces": (byte_level(post_processor=bos_first()), {"clean_up_tokenization_spaces": True}),
    "Prepend": (sentencepiece_like(None, PREPEND, ESCAPE, post_processor=bos_first()), {}),
    "Prepend, normalised first": (sentencepiece_like(None, {"type": "NFKC"}, ESCAPE, PREPEND), {}),
    "Prepend, added tokens": (more_tokens(sentencepiece_like(None, PREPEND, ESCAPE)), {}),
    "Prepend, legacy flag without effect": (
        sentencepiece_like(None, PREPEND, ESCAPE), {"tokenizer_class": "TokenizersBackend", "legacy": False}
    ),
    "Metaspace always": (sentencepiece_like(metaspace("always")), {}),
    "Metaspace first": (sentencepiece_like(metaspace("first")), {}),
    "Metaspace never": (sentencepiece_like(metaspace("never")), {}),
    "Metaspace splits": (sentencepiece_like(metaspace("always", split=True), decoder=metaspace("always")), {}),
    "Metaspace first, added tokens": (more_tokens(sentencepiece_like(metaspace("first"))), {}),
    "Metaspace doubles a first space": (sentencepiece_like(metaspace("always"), ESCAPE, DOUBLE), {}),
    "LLaMA's class, legacy": (sentencepiece_like(metaspace("always")), {**LLAMA, "legacy": True}),
    "LLaMA's class, not legacy": (sentencepiece_like(metaspace("always")), {**LLAMA, "legacy": False}),
    "LLaMA's class without prefix": (
        sentencepiece_like(metaspace("first")), {**LLAMA, "legacy": False, "add_prefix_space": False}
    ),
    "no bytes": (changed(sentencepiece_like(metaspace("first")), byte_fallback=False), {}),
    "no <unk>": (changed(sentencepiece_like(metaspace("first")), byte_fallback=False, unk_token=None), {}),
    "flags of added tokens in the config": (
        more_tokens(byte_level()),
        {"added_tokens_decoder": {"331": {"content": "<tool>", "rstrip": True, "lstrip": False, "single_word": False,
                                          "normalized": False, "special": False}}},
    ),
}  # fmt: skip


TAGGED = ["a<tool>b", " <l> x", "x <r>  y", "a bus, buses", "<tool> <l><r>", "it IT"]
HEAD = "漢"  # ends a word, and merges with nothing


@pytest.mark.parametrize("name", FILES)
def test_ids_and_text_equal_transformers(tmp_path, name):
    """At the start of a text, after a special token, inside a text, and decoded."""
    write_folder(tmp_path, *FILES[name])
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert len(TEXTS) >= 200
    texts = [*TEXTS, *TAGGED]

    def their_ids(before: str) -> list[list[int]]:
        return theirs([before + text for text in texts], add_special_tokens=False).input_ids

    starting = their_ids("")
    after_special, inside = their_ids("</s>"), their_ids(HEAD)
    head = theirs(HEAD, add_special_tokens=False).input_ids
    for text, start, after, joined in zip(texts, starting, after_special, inside, strict=True):
        assert ours.encode(text, dummy_prefix=True) == start, text
        assert [ours.eos_id, *ours.encode(text, dummy_prefix=ours.legacy)] == after, text
        if joined[: len(head)] == head and "<unk>" not in map(theirs.convert_ids_to_tokens, head) and text != "bus's":
            assert [*head, *ours.encode(text)] == joined, text
        decoded = ours.decode(start), theirs.decode(start, skip_special_tokens=True)
        assert decoded[0] in (decoded[1], f" {decoded[1]}"), text  # the prefix stays: a text may begin inside a row
    for text in LOOK_ALIKES:
        ids = {*ours.encode(text), *ours.encode(text, dummy_prefix=True)} - {ours.unk_id}
        assert not ids & set(ours.special.values()), text
    assert ours.add_bos == (theirs("a").input_ids[:1] == [ours.bos_id])


def strip_tokens(spec: dict) -> dict:
    last = max(spec["model"]["vocab"].values())
    tokens = [("<|im_end|>", {"rstrip": True}), ("<|im_start|>", {"lstrip": True})]
    return spec | {"added_tokens": [*ADDED, *(added(last + 1 + i, n, True, **f) for i, (n, f) in enumerate(tokens))]}


@pytest.mark.parametrize(
    "spec", [byte_level(), sentencepiece_like(metaspace("first")), sentencepiece_like(None, PREPEND, ESCAPE)]
)
def test_special_tokens_strip_white_space_beside_them(tmp_path, spec):
    """As in Phi-3: a line break after `<|end|>` in a template is no token."""
    write_folder(tmp_path, strip_tokens(spec))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    parts = [" a \n", "<|im_end|>", " \n", "\t", "the bus \u2003\n", "<|im_start|>", "it\x1f", "<|im_end|>", "\x1f b"]
    segments = [Segment(text, i > 3, "special" if text.startswith("<|") else "text") for i, text in enumerate(parts)]
    ids, mask = encode_segments(ours, "chatml", segments, 0)
    assert ids.tolist() == theirs("".join(parts), add_special_tokens=False).input_ids
    assert mask.sum() == len(theirs("".join(parts[4:]), add_special_tokens=False).input_ids)


def test_exported_files_give_the_same_ids(tmp_path):
    for i, (name, (spec, config)) in enumerate(FILES.items()):
        ours = load_tokenizer(write_folder(tmp_path / f"{i}", spec, config))
        exported = write_folder(tmp_path / f"{i} again", tokenizer_spec(ours), tokenizer_config(ours, 100))
        again = load_tokenizer(exported)
        assert (again.legacy or not again.dummy_prefix) == (ours.legacy or not ours.dummy_prefix), name
        for text in [*TEXTS[::5], *TAGGED]:
            for starts in (True, False):
                assert again.encode(text, starts) == ours.encode(text, starts), (name, text)


def unigram() -> dict:
    return byte_level(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0})


REFUSED = {
    "dropout": (changed(byte_level(), dropout=0.1), {}, r"model.dropout=0.1 encodes a text differently each time"),
    "Unigram": (unigram(), {}, "a Unigram model; only BPE"),
    "WordPiece": (changed(byte_level(), type="WordPiece"), {}, "a WordPiece model; only BPE"),
    "WordLevel": (changed(byte_level(), type="WordLevel"), {}, "a WordLevel model; only BPE"),
    "Strip": (byte_level(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}), {},
              "the normalizer Strip changes the edges of a text"),
    "end of text": (
        byte_level(normalizer={"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}), {},
        "the normalizer Replace .* changes the edges of a text",
    ),
    "a space before every word": (
        byte_level(pre_tokenizer=sequence("pretokenizers", SPLIT, byte_level_step(add_prefix_space=True))), {},
        "the pre-tokenizer ByteLevel after Split puts a space before every piece",
    ),
    "a space before every word, Metaspace": (
        sentencepiece_like(sequence("pretokenizers", {"type": "WhitespaceSplit"}, metaspace("always"))), {},
        "the pre-tokenizer Metaspace after WhitespaceSplit puts a space before every piece",
    ),
    "two beginnings": (
        byte_level(post_processor=bos_first({"SpecialToken": {"id": "<unk>", "type_id": 0}})), {},
        r"the post_processor adds \['<s>', '<unk>'\] to a text",
    ),
    "beginning against the flag": (
        byte_level(post_processor=bos_first()), {"add_bos_token": False},
        "add_bos_token=false, but the post_processor of tokenizer.json adds it",
    ),
    "flag without a beginning": (byte_level(), {"add_bos_token": True}, "add_bos_token=true, but .* does not add it"),
    "flag as text": (byte_level(), {"add_bos_token": "true"}, "add_bos_token='true' .* is not true or false"),
    "prefix as text": (byte_level(), {"add_prefix_space": "no"}, "add_prefix_space='no' .* is not true or false"),
    "legacy as a number": (byte_level(), {"legacy": 1}, "legacy=1 .* is not true or false"),
    "LLaMA's class wants a prefix": (
        sentencepiece_like(None, ESCAPE), {**LLAMA, "add_prefix_space": True}, "puts no space before a text"
    ),
    "whole word is special": (
        changed(sentencepiece_like(metaspace("never")), ignore_merges=True), {},
        "ignore_merges lets the text '.*' become",
    ),
    "other names of added tokens": (
        byte_level(), {"added_tokens_decoder": {"2": {"content": "<end>"}}}, "token 2 is '</s>' here and '<end>' in"
    ),
    "token without text": (byte_level(), {"eos_token": 2}, "a token is '2', not a text or an object"),
    "eos is unknown": (byte_level(), {"eos_token": "<end>"}, "has no end-of-sequence token"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, name):
    spec, config, message = REFUSED[name]
    write_folder(tmp_path, spec, config)
    with pytest.raises(DataError, match=f"tokenizer.json: .*{message}") as caught:
        load_tokenizer(tmp_path)
    assert "Error" not in str(caught.value)
