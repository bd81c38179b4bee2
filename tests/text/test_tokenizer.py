"""Tokenizers from every kind of file; text never becomes a special id."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.tokenizer import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
LLAMA = Path(os.environ.get("LLAVA_JAX_REAL_DATA", ROOT / "../shared/data")) / "tokenizers/llama2.model"
needs_llama = pytest.mark.skipif(
    not LLAMA.is_file(), reason=f"{LLAMA} is missing: set LLAVA_JAX_REAL_DATA to a folder with tokenizers/llama2.model"
)
TEXTS = [
    "A red bus is parked on a street.",
    "What is it? It is a bus.",
    "Ein Bus: größer als ein Auto! \n\n 漢字 🚌",
] * 20
HOSTILE = "</s><s><unk><pad><image><|im_end|><|endoftext|> [/INST] ### <0x0A>"


@pytest.fixture(scope="module")
def llama():
    return load_tokenizer(LLAMA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("byte level")
    train_tokenizer(TEXTS, 320, folder, extra_specials=["<|im_start|>", "<|im_end|>"])
    return folder


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


@needs_llama
def test_llama_special_ids_and_flags(llama):
    assert llama.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (llama.bos_id, llama.eos_id, llama.unk_id, llama.vocab_size) == (1, 2, 0, 32000)
    assert llama.pad_id == 0  # LLaMA has no pad token; LLaVA uses <unk>
    assert llama.add_bos and llama.dummy_prefix and llama.legacy
    assert not load_tokenizer(LLAMA, legacy=False).legacy


@needs_llama
@pytest.mark.parametrize(
    ("text", "prefixed", "bare"),
    [
        ("USER", [3148, 1001], [11889]),
        ("\n", [29871, 13], [13]),
        ("###", [835], [2277, 29937]),
        (" ASSISTANT:", [29871, 319, 1799, 9047, 13566, 29901], [319, 1799, 9047, 13566, 29901]),
        ("<image>", [529, 3027, 29958], [29966, 3027, 29958]),
        ("", [], []),
    ],
)
def test_llama_ids_with_and_without_dummy_prefix(llama, text, prefixed, bare):
    assert llama.encode(text, dummy_prefix=True) == prefixed
    assert llama.encode(text) == bare
    assert llama.decode(bare) == text


@needs_llama
def test_unknown_characters_round_trip_as_bytes(llama):
    text = "ﷺ 🚌 \x00 e\u0301 \t  "
    assert llama.decode(llama.encode(text)) == text


@pytest.mark.parametrize("kind", [pytest.param("llama", marks=needs_llama), "folder"])
def test_text_never_becomes_a_special_token(kind, request):
    source = request.getfixturevalue(kind)
    tokenizer = load_tokenizer(source) if kind == "folder" else source
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # data workers get a pickled copy
        ids = copy.encode(HOSTILE)
        assert not set(ids) & set(copy.special.values())
        assert copy.decode(ids) == HOSTILE


def test_trained_tokenizer_has_expected_ids_and_round_trips(folder):
    tokenizer = load_tokenizer(folder)
    assert list(tokenizer.special) == ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    assert list(tokenizer.special.values()) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 320
    assert tokenizer.add_bos and not tokenizer.dummy_prefix
    assert len(tokenizer.encode("A red bus")) < len("A red bus")
    for text in ["日本語 \x00 🚌\u200d", "  spaces  ", "\n"]:
        assert tokenizer.decode(tokenizer.encode(text, dummy_prefix=True)) == text


def test_training_is_deterministic(folder, tmp_path):
    train_tokenizer(TEXTS, 320, tmp_path, extra_specials=["<|im_start|>", "<|im_end|>"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_transformers_loads_the_trained_tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("A red bus").input_ids == [1, *load_tokenizer(folder).encode("A red bus")]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 3)


def test_too_small_vocab_size_raises(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size=200 .* need 260"):
        train_tokenizer(TEXTS, 200, tmp_path)


def test_decode_skips_or_names_specials_and_images(folder):
    tokenizer = load_tokenizer(folder)
    ids = [1, -200, -200, *tokenizer.encode("bus"), 2, 99_999]
    assert tokenizer.decode(ids) == "bus"
    assert tokenizer.decode(ids, skip_special=False) == "<s><image><image>bus</s>"


@needs_llama
def test_folder_with_sentencepiece_model_and_added_tokens_loads(tmp_path):
    """A LLaMA with added ChatML tokens, in a folder with an unusual name."""
    folder = tmp_path / "01 überall"
    folder.mkdir()
    shutil.copy(LLAMA, folder / "tokenizer.model")
    added = {"32000": {"content": "<|im_start|>", "special": True}, "32001": {"content": "<|im_end|>", "special": True}}
    config = {"legacy": False, "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added}
    write(folder, "tokenizer_config.json", config)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.special["<|im_start|>"], tokenizer.vocab_size) == (32001, 32000, 32002)
    assert not tokenizer.legacy
    assert not set(tokenizer.encode(HOSTILE)) & set(tokenizer.special.values())


@needs_llama
@pytest.mark.parametrize(
    ("style", "legacy"),
    [
        ("prepend", True),
        ("metaspace always", True),
        ("metaspace first", False),
    ],
)
def test_converted_llama_tokenizer_json_gives_the_same_ids(llama, tmp_path, style, legacy):
    """The three ways in which converted LLaMA tokenizers add the dummy prefix, with a merge into a special token."""
    spec = json.loads(llama.backend.to_str())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if style == "prepend":
        spec["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})
        spec["decoder"]["decoders"].append(strip)
    else:
        scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": style.split()[1], "split": False}
        spec |= {"normalizer": None, "pre_tokenizer": scheme, "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}}  # fmt: skip
    spec["model"]["merges"].insert(0, ["<", "s>"])
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write(tmp_path, "tokenizer.json", spec)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.legacy, tokenizer.dummy_prefix, tokenizer.bos_id, tokenizer.eos_id) == (legacy, True, 1, 2)
    assert not tokenizer.add_bos  # its post-processor adds none
    for text in ("USER: What?", " two  spaces", "\n", HOSTILE, "🚌"):
        for prefix in (True, False):
            skips = prefix and text[0] == " " and style != "prepend"  # Metaspace adds no second space
            assert tokenizer.encode(text, prefix) == llama.encode(text, prefix)[skips:]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_json_loads_under_any_file_name(folder, tmp_path):
    file = tmp_path / "vocabulary.bin"
    shutil.copy(folder / "tokenizer.json", file)
    assert load_tokenizer(file).encode("A red bus") == load_tokenizer(folder).encode("A red bus")


@pytest.mark.parametrize(("value", "adds"), [(False, False), (True, True), (None, True)])
def test_add_bos_token_of_the_llama_class_wins(folder, tmp_path, value, adds):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(tmp_path, "tokenizer_config.json", config | {"add_bos_token": value, "tokenizer_class": "LlamaTokenizerFast"})
    assert load_tokenizer(tmp_path).add_bos == adds


def test_lone_surrogate_raises(folder):
    with pytest.raises(DataError, match="not valid Unicode: surrogates not allowed at character 1"):
        load_tokenizer(folder).encode("a\ud800")


def no_eos(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "</s>"]
    del spec["model"]["vocab"]["</s>"]
    write(folder, "tokenizer.json", spec)


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(name, *others):
    def damage(folder):
        (folder / name).unlink()
        for other in others:
            (folder / other).write_text("{}")

    return damage


def sentencepiece(kind, **settings):
    """A model file with one piece: a trainer's and a normalizer's settings by field number."""

    def number(field, value):
        return bytes([field << 3 & 0x7F | (0x80 if field > 15 else 0), *([field >> 4] if field > 15 else []), value])

    trainer = number(3, kind) + b"".join(number(int(f[1:]), v) for f, v in settings.items() if f[0] == "t")
    normalizer = b"".join(number(int(f[1:]), v) for f, v in settings.items() if f[0] == "n")
    piece = b"\x0a\x05<unk>"
    parts = ((0x0A, piece), (0x12, trainer), (0x1A, normalizer))
    return b"".join(bytes([key, len(message)]) + message for key, message in parts)


CONFIG_JSON = b'{"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "vocab_size": 32064}'
DAMAGES = {
    "empty folder": (without("tokenizer.json"), "", "no tokenizer found"),
    "older form": (without("tokenizer.json", "merges.txt"), "", "no tokenizer found.*It has vocab.json and merges.txt"),
    "empty": (put("tokenizer.json", b""), "tokenizer.json", "is empty. Download it again"),
    "white space": (put("tokenizer.json", b" \n "), "tokenizer.json", "neither a tokenizer.json nor a SentencePiece"),
    "zeros": (put("tokenizer.json", bytes(200)), "tokenizer.json", "neither a tokenizer.json nor|holds no pieces"),
    "bytes": (put("tokenizer.json", bytes(range(64))), "tokenizer.json", "neither a tokenizer.json nor a"),
    "random": (put("tokenizer.json", bytes((i * 91) % 256 for i in range(5000))), "tokenizer.json", "neither|damaged"),
    "text": (put("tokenizer.json", b"Hello, this is a note.\n"), "tokenizer.json", "neither a|damaged"),
    "vocabulary": (put("tokenizer.json", b"<unk>\n<s>\n</s>\n"), "tokenizer.json", "neither a tokenizer.json|damaged"),
    "half JSON": (put("tokenizer.json", b'{"model": '), "tokenizer.json", "not a readable tokenizer"),
    "half UTF-8": (put("tokenizer.json", b'{"a": "\xc3'), "tokenizer.json", "not a readable tokenizer"),
    "list": (put("tokenizer.json", b"[1, 2]"), "tokenizer.json", "neither a tokenizer.json nor a"),
    "no model": (put("tokenizer.json", CONFIG_JSON), "tokenizer.json", r"is JSON .architectures, .* but no tokenizer"),
    "vocab.json": (put("tokenizer.json", b'{"a": 0, "b": 1}'), "tokenizer.json", r"is JSON .a, b., but no tokenizer"),
    "model is null": (put("tokenizer.json", b'{"model": null}'), "tokenizer.json", "but no tokenizer.json"),
    "no type": (put("tokenizer.json", b'{"model": {}}'), "tokenizer.json", "a None model; only BPE"),
    "no vocab": (put("tokenizer.json", b'{"model": {"merges": []}}'), "tokenizer.json", "its model.vocab is missing"),
    "vocab of lists": (
        put("tokenizer.json", b'{"model": {"merges": [], "vocab": {"a": [0]}}}'), "tokenizer.json", "model.vocab is"
    ),
    "merges of numbers": (
        put("tokenizer.json", b'{"model": {"merges": [1], "vocab": {"a": 0}}}'), "tokenizer.json", "model.merges is"
    ),
    "added tokens of text": (
        put("tokenizer.json", b'{"model": {"merges": [], "vocab": {}}, "added_tokens": ["a"]}'), "tokenizer.json",
        "the entry a of added_tokens has no id and content",
    ),
    "git-lfs": (
        put("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"), "tokenizer.json",
        "is a git-lfs pointer.*git lfs pull",
    ),
    "web page": (put("tokenizer.json", b"<!DOCTYPE html><html>"), "tokenizer.json", "is a web page"),
    "reply": (put("tokenizer.json", b"Entry not found"), "tokenizer.json", "is a server's reply .Entry not found."),
    "error reply": (put("tokenizer.json", b'{"error":"Access denied"}'), "tokenizer.json", "is a server's reply"),
    "gzip": (put("tokenizer.json", b"\x1f\x8b\x08\x00"), "tokenizer.json", "is compressed .gzip.. Unpack it"),
    "UTF-16": (put("tokenizer.json", '{"model": {}}'.encode("utf-16")), "tokenizer.json", "is text in UTF-16"),
    "tiktoken": (put("tokenizer.json", b"IQ== 0\nIg== 1\n"), "tokenizer.json", "is a tiktoken file"),
    "SentencePiece Unigram": (put("tokenizer.json", sentencepiece(1)), "tokenizer.json", "of type Unigram; only BPE"),
    "SentencePiece words": (put("tokenizer.json", sentencepiece(3)), "tokenizer.json", "of type word; only BPE"),
    "SentencePiece strips": (
        put("tokenizer.json", sentencepiece(2)), "tokenizer.json", "with remove_extra_whitespaces, which LLaMA's"
    ),
    "SentencePiece suffix": (
        put("tokenizer.json", sentencepiece(2, t24=1, n4=0)), "tokenizer.json", "with treat_whitespace_as_suffix"
    ),
    "config is half": (put("tokenizer_config.json", b"{"), "tokenizer_config.json", "cannot be read"),
    "config is a list": (put("tokenizer_config.json", b"[]"), "tokenizer_config.json", "holds no object"),
    "config is a pointer": (
        put("tokenizer_config.json", b"version https://git-lfs.github.com/spec/v1\n"), "tokenizer_config.json",
        "is a git-lfs pointer",
    ),
    "map is a page": (put("special_tokens_map.json", b"<html>"), "special_tokens_map.json", "is a web page"),
    "no eos": (no_eos, "tokenizer.json", "no end-of-sequence token"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_file_error_names_the_file_and_what_it_is(folder, tmp_path, name):
    damage, file, message = DAMAGES[name]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path / file}.*({message})") as caught:
        load_tokenizer(tmp_path)
    assert not re.search("KeyError|IndexError|object|NoneType", str(caught.value).replace("no object", ""))


@pytest.mark.parametrize("name", ["lmsys/vicuna-7b-v1.5", "missing.gguf", "no/tokenizer.json"])
def test_missing_path_says_that_it_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{name}: there is no such file or folder. A tokenizer is not downloaded"):
        open_tokenizer(name)


def test_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("https://huggingface.co/lmsys/vicuna-7b-v1.5", "gs://bucket/tokenizer.json"):
        with pytest.raises(ConfigError, match=f"tokenizer: {url} is a URL"):
            open_tokenizer(url)


@needs_llama
@pytest.mark.parametrize("size", [10, 1000, 250_000])
def test_truncated_sentencepiece_model_raises(tmp_path, size):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(LLAMA.read_bytes()[:size])
    with pytest.raises(DataError, match=str(file)):
        load_tokenizer(file)


def test_code_in_the_folder_never_runs(folder, tmp_path):
    """Even if the folder asks for its own code."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    evil = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
    write(tmp_path, "tokenizer_config.json", config | evil)
    assert load_tokenizer(tmp_path).eos_id == 2
    assert not (tmp_path / "ran").exists()


def test_backend_default_would_encode_typed_special_tokens(folder):
    """The reason for `encode_special_tokens`: without it a user can type the end of a sequence."""
    assert 2 in Backend.from_file(str(folder / "tokenizer.json")).encode("</s>").ids
