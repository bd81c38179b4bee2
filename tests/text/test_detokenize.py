"""Pieces join to the text that decoding everything at once gives, and stop strings are found across all boundaries."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_jax.errors import ConfigError
from llava_jax.text.detokenize import UNREADABLE, Detokenizer, StopStrings
from llava_jax.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

TEXT = "A red bus, two café tables — 漢字 and 👩‍👩‍👧 smile.\n\n  def f(x):\n\treturn x € ###"


def sentencepiece_like() -> dict:
    """A tokenizer.json like LLaMA's: ▁ for spaces, a dummy prefix, bytes for characters without a piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefgr", "▁a", "▁b", "re", "red"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for i, name in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "byte_fallback": True,
                  "unk_token": "<unk>", "merges": ["▁ a", "▁ b", "r e", "re d"]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece_like()), encoding="utf-8")
    byte_level = train_tokenizer([TEXT] * 3, 300, folder / "byte_level")
    return {"sentencepiece": load_tokenizer(folder), "byte_level": byte_level}


def pieces(tokenizer, ids) -> list[str]:
    """One piece per id, and what the flush releases."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_full_text(tokenizers, kind, data):
    """Also for ids that no text has: incomplete characters, specials in between, ids beyond the vocabulary."""
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=30))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNREADABLE + "▁"), max_size=20))
def test_no_piece_contains_an_incomplete_character(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    parts = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert not any(UNREADABLE in piece for piece in parts)


def test_docstring_examples_of_the_detokenizer(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.backend.get_vocab()
    ids = [vocab[name] for name in ("<0xE2>", "<0x82>", "<0xAC>", "▁a")]
    assert pieces(tokenizer, ids) == ["", "", "", "€ a", ""]

    tokenizer = tokenizers["byte_level"]
    vocab = tokenizer.backend.get_vocab()
    ids = [*tokenizer.encode(" caf"), vocab["Ã"], vocab["©"]]
    *text, half, whole, end = pieces(tokenizer, ids)
    assert "".join(text) == " caf" and (half, whole, end) == ("", "é", "")


def test_id_beyond_the_vocabulary_continues_a_byte_run(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.backend.get_vocab()
    ids = [vocab["<0xC3>"], tokenizer.vocab_size, vocab["<0xA9>"], vocab["a"]]
    assert pieces(tokenizer, ids) == ["", "", "", "éa", ""]


def test_llama_tokenizer_pieces_join_to_the_text(real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers" / "llama2.model")
    ids = tokenizer.encode(TEXT, dummy_prefix=True)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids) == " " + TEXT
    assert not any(UNREADABLE in piece for piece in parts) and sum(map(bool, parts)) > 20


def test_leading_space_stays_with_its_piece(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    ids = [tokenizer.backend.get_vocab()[name] for name in ("▁a", "red", "▁b")]
    assert pieces(tokenizer, ids) == [" a", "red", " b", ""]


def test_decoder_that_strips_the_first_space_keeps_later_spaces():
    """As Hugging Face's decode does: its result depends on whether a token is the first."""

    class Strips:
        backend = type("Backend", (), {"token_to_id": staticmethod({}.get), "id_to_token": staticmethod(str)})
        decode = staticmethod(lambda ids: "".join([" a", " b", "c"][id] for id in ids).removeprefix(" "))

    assert pieces(Strips, [0, 1, 2, 0]) == ["a", " b", "c", " a", ""]


def reference(text: str, stops) -> tuple[str, bool]:
    """The shortest prefix of the text that ends in a stop string, without the longest stop string that ends it."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def cut(text: str, stops, cuts) -> tuple[str, bool, list[str]]:
    """(all text that came out, whether it stopped, what came out after each piece)."""
    search, outputs, start = StopStrings(stops), [], 0
    for cut_at in [*sorted(cuts), len(text)]:
        outputs.append(search.push(text[start:cut_at]))
        start = cut_at
    return "".join(outputs) + search.flush(), search.is_stopped, outputs


few = st.text("ab#", max_size=24)  # few letters give many near misses


@settings(max_examples=400, deadline=None)
@given(text=few, stops=st.lists(st.text("ab#", min_size=1, max_size=5), max_size=3), data=st.data())
def test_stop_strings_are_found_across_piece_boundaries(text, stops, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    expected, should_stop = reference(text, stops)
    ours, is_stopped, outputs = cut(text, stops, cuts)
    assert (ours, is_stopped) == (expected, should_stop)
    ends = [*sorted(cuts), len(text)]
    for n, end in enumerate(ends):  # no more is held back than necessary
        output = "".join(outputs[: n + 1])
        if reference(text[:end], stops)[1]:
            break
        held = text[len(output) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    "text, stop, expected, is_stopped",
    [
        ("one###two", "###", "one", True),
        ("one####", "###", "one", True),  # repeated beyond its length
        ("aaab", "aab", "a", True),  # partly repeated: a search that starts over after each miss finds nothing
        ("ababac", "abac", "ab", True),
        ("#a##b", "###", "#a##b", False),  # false alarms are released
        ("one##", "###", "one##", False),  # also at the end
    ],
)
def test_repeated_and_partial_stop_strings(text, stop, expected, is_stopped):
    assert cut(text, [stop], [])[:2] == (expected, is_stopped)
    assert cut(text, [stop], range(len(text)))[:2] == (expected, is_stopped)


def test_docstring_example_of_stop_strings():
    search = StopStrings(["##\n"])
    assert [search.push(piece) for piece in ("a#", "#", "#", "\n b")] == ["a", "", "#", ""]
    assert search.is_stopped and search.flush() == ""


def test_longest_of_stop_strings_ending_together_wins():
    assert cut("one\n### two", ["###", "\n###"], range(11))[:2] == ("one", True)


def test_empty_stop_string_raises():
    with pytest.raises(ConfigError, match="empty"):
        StopStrings(["###", ""])
