"""The tokenizer of a GGUF file gives the same ids as the one it was made from."""

import json
import struct

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llava_jax.checkpoint.gguf_files.file import GgufFile
from llava_jax.checkpoint.gguf_files.tokenizer import read_tokenizer, tokenizer_files
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.errors import DataError
from llava_jax.text.sentencepiece import _protobuf
from llava_jax.text.tokenizer import load_tokenizer
from tests.checkpoint.gguf_files.gguf_files import smollm2, write

TEXTS = [
    "Hello", "Hello, world! It's 7 o'clock; we'll see.", " leading and trailing ", "two  spaces   three",
    "\n\n\ttabs\r\n", "1 22 333 4444 1,234,567.89", "¹²½Ⅷ٣", "naïve café e\u0301", "größer ÄÖÜ ß",
    "漢字とかな 한국어", "🚌👩‍👩‍👧 emoji",
    "العربية עברית",
    "def f(x):\n    return x ** 2  # square\n", "http://a.b/c?d=e&f=g", "CamelCase snake_case kebab-case",
    "\x00 \x7f \ufeff", "a" * 60, "<|im_start|>user</s><s> [INST]", "...!!!???---", "x",
]  # fmt: skip


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def published(pre: str) -> Tokenizer:
    """Trains a tokenizer with the components of SmolLM2's, LLaMA 3's, Qwen2's or GPT-2's."""
    transformers = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    backend = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    split = transformers.GGUF_PRE_TOKENIZER_SPLITS.get(pre)
    first = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    first += [pre_tokenizers.Split(Regex(split), "isolated"), BYTES] if split else [GPT2]
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(first), decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if pre == "smollm" else []
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=first, show_progress=False
    )
    backend.train_from_iterator([t for t in TEXTS if "<|" not in t] * 3, trainer)
    if pre == "llama-bpe":  # then some words in the vocabulary cannot be reached by merges
        spec = json.loads(backend.to_str())
        spec["model"]["merges"] = spec["model"]["merges"][:-60]
        backend = Tokenizer.from_str(json.dumps(spec))
    if not first:
        backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


def byte_level(backend: Tokenizer, pre: str, padding: int = 5) -> dict:
    """Returns the metadata that llama.cpp's converter writes for a tokenizer."""
    spec = json.loads(backend.to_str())
    added = {token["id"]: token for token in spec["added_tokens"]}
    names = {id: name for name, id in backend.get_vocab().items()}
    kinds = [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(len(names))]
    ids = {name: backend.token_to_id(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")}
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [names[i] for i in range(len(names))] + [f"[PAD{i}]" for i in range(padding)],
        "tokenizer.ggml.token_type": kinds + [5] * padding,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids["im_start"], "tokenizer.ggml.eos_token_id": ids["im_end"],
        "tokenizer.ggml.padding_token_id": ids["endoftext"], "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip


def with_tokenizer(tmp_path, tokenizer: dict, without=()) -> GgufFile:
    return GgufFile(write(tmp_path / "a.gguf", {}, tokenizer=tokenizer, without=without))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizer_equals_the_published_one(tmp_path, pre):
    theirs = published(pre)
    theirs.encode_special_tokens = True
    file = with_tokenizer(tmp_path, byte_level(theirs, pre))
    ours = open_tokenizer(str(file.path))  # as for config.tokenizer
    assert {name: theirs.token_to_id(name) for name in ours.special} == ours.special
    assert set(ours.special) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    names = ("im_start", "im_end", "endoftext")
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == tuple(theirs.token_to_id(f"<|{name}|>") for name in names)
    assert ours.vocab_size == theirs.get_vocab_size() and ours.add_bos == (pre == "llama-bpe")
    for line in [*TEXTS, "a <think> b"]:
        assert ours.encode(line) == theirs.encode(line, add_special_tokens=False).ids, line
        assert ours.decode(ours.encode(line)) == theirs.decode(ours.encode(line)), line
        assert not set(ours.encode(line)) & set(ours.special.values())
    assert ours.chat_template == file.chat_template == "{{ messages }}"


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_transformers_loads_the_tokenizer_files(tmp_path, pre):
    transformers = pytest.importorskip("transformers")
    file = with_tokenizer(tmp_path, byte_level(published(pre), pre))
    for name, content in tokenizer_files(file).items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs.chat_template == "{{ messages }}"
    for line in TEXTS:
        if "<|" not in line:
            assert theirs(line).input_ids == [ours.bos_id] * ours.add_bos + ours.encode(line)


def test_sentencepiece_tokenizer_equals_llama_2(tmp_path, real_data):
    """Converts LLaMA 2's own tokenizer to the metadata that llama.cpp keeps."""
    model = real_data / "tokenizers/llama2.model"
    pieces = [dict(_protobuf(value)) for field, value in _protobuf(model.read_bytes()) if field == 1]
    file = with_tokenizer(tmp_path, {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece[1].decode() for piece in pieces],
        "tokenizer.ggml.scores": [struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces],
        "tokenizer.ggml.token_type": [piece.get(3, 1) for piece in pieces],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    })  # fmt: skip
    ours, original = read_tokenizer(file), load_tokenizer(model)
    fields = ("special", "bos_id", "eos_id", "pad_id", "unk_id", "vocab_size", "add_bos", "dummy_prefix", "legacy")
    assert [getattr(ours, name) for name in fields] == [getattr(original, name) for name in fields]
    assert not read_tokenizer(file, legacy=False).legacy and file.chat_template is None
    for line in TEXTS:
        for prefix in (True, False):
            assert ours.encode(line, prefix) == original.encode(line, prefix), line
        assert ours.decode(ours.encode(line)) == line


@pytest.mark.parametrize(
    "extra, without, message",
    [
        ({"tokenizer.ggml.model": "bert"}, [], "tokenizer.ggml.model='bert' is not one of gpt2, llama"),
        ({"tokenizer.ggml.pre": "tekken"}, [], "tokenizer.ggml.pre='tekken' is not one of gpt-2, smollm, qwen2"),
        ({"tokenizer.ggml.eos_token_id": 9999}, [], "tokenizer.ggml.eos_token_id=9999 is not one of"),
        ({"tokenizer.ggml.token_type": [1, 1]}, [], "tokenizer.ggml.token_type has 2 entries for"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, [], "tokenizer.ggml.*out of vocabulary"),
        ({"tokenizer.ggml.merges": [1, 2]}, [], "tokenizer.ggml.merges is not a list of str"),
        ({"tokenizer.ggml.tokens": ["a"] * 9, "tokenizer.ggml.token_type": [1] * 9}, [], "has a duplicate token"),
        ({"tokenizer.ggml.model": "llama"}, [], "tokenizer.ggml.scores is missing"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.5]}, [], "scores has 1 entries for"),
        *(({}, [f"tokenizer.ggml.{key}"], f"tokenizer.ggml.{key} is missing")
          for key in ("tokens", "token_type", "merges", "pre", "model", "eos_token_id")),
    ],
)  # fmt: skip
def test_invalid_tokenizer_raises_naming_the_key(tmp_path, extra, without, message):
    tokenizer = byte_level(published("gpt-2"), "gpt-2") | extra
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer(with_tokenizer(tmp_path, tokenizer, without))
    assert str(caught.value).startswith(str(tmp_path / "a.gguf")) and "\n" not in str(caught.value)


# A published file


def test_smollm2_token_ids_equal_transformers():
    """SmolLM2's tokenizer.json and llama.cpp split off single digits before GPT-2's pattern. For a GGUF, transformers
    does not, which matters for white space before a number, as in a numbered list."""
    from transformers import AutoTokenizer

    file = smollm2()
    theirs = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    ours = read_tokenizer(file)
    assert len(TEXTS) == 20
    for line in TEXTS:
        assert ours.encode(line) == theirs(line, split_special_tokens=True).input_ids, line
    assert theirs.chat_template == file.chat_template and "<|im_start|>" in file.chat_template
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 2, 49_152)
    numbered_list = "A list:\n\n1. one\n\n2.   2222 Ⅷ"
    assert ours.encode(numbered_list) != theirs(numbered_list).input_ids
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), GPT2]
    )
    for line in [*TEXTS, numbered_list]:
        assert ours.encode(line) == theirs(line, split_special_tokens=True).input_ids, line
