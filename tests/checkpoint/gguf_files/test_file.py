"""Tensors and architecture of GGUF files of the LLaMA family, and errors for other and damaged files."""

import dataclasses
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.gguf_files import file as gguf_module
from llava_jax.checkpoint.gguf_files.config import architecture
from llava_jax.checkpoint.gguf_files.file import GgufFile, is_gguf
from llava_jax.checkpoint.module_file import load_module
from llava_jax.config.architectures import LLM, RopeScaling
from llava_jax.errors import ConfigError, DataError
from llava_jax.models.params import abstract_model
from tests.checkpoint.gguf_files.gguf_files import (
    CONFIG,
    KINDS,
    finish,
    gguf,
    hf_tensors,
    permuted,
    read_all,
    smollm2,
    write,
)
from tests.fixtures.tiny_models import uneven

# Tensors


def test_row_permutation_of_one_small_head_is_undone(tmp_path):
    config = dataclasses.replace(CONFIG, heads=1, kv_heads=1, head_size=4, width=4, mlp_width=4, layers=1, vocab_size=2)
    q = np.arange(4, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    assert permuted(q, 1)[:, 0].tolist() == [0, 2, 1, 3]
    file = GgufFile(
        write(tmp_path / "a.gguf", hf_tensors(config) | {"model.layers.0.self_attn.q_proj.weight": q}, config)
    )
    np.testing.assert_array_equal(read_all(file, "model.layers.0.self_attn.q_proj.weight"), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_names_shapes_and_values_equal_hugging_face(tmp_path, arch, kind):
    config = dataclasses.replace(CONFIG, qkv_bias=arch == "qwen2")
    expected = hf_tensors(config)
    file = GgufFile(write(tmp_path / "größe 模型.gguf", expected, config, kind, arch))
    assert file.names() == sorted(expected) and all(name in file for name in expected)
    assert architecture(file) == config
    for name, value in expected.items():
        values = read_all(file, name)
        assert values.dtype == np.float32 and values.shape == file.shape(name) == value.shape
        stored = KINDS[kind] if value.ndim == 2 else KINDS["F32"]
        np.testing.assert_array_equal(values, gguf.dequantize(gguf.quantize(value, stored), stored), err_msg=name)
        precision = {"F32": 1e9, "F16": 1e3, "Q8_0": 250}[kind]
        np.testing.assert_allclose(values, value, atol=np.abs(value).max() / precision)


@pytest.mark.parametrize("kind", KINDS)
def test_partial_read_equals_slice_of_full_tensor(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(gguf_module, "_CHUNK", 200)  # several chunks per tensor
    file = GgufFile(write(tmp_path / "a.gguf", kind=kind))
    random = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):
        whole = read_all(file, name)
        for _ in range(40):
            index = tuple(slice(*sorted(random.choice(n + 1, 2, replace=False).tolist())) for n in whole.shape)
            np.testing.assert_array_equal(file.read(name, index), whole[index], err_msg=f"{name} {index}")


@pytest.mark.parametrize("kind", ["BF16", "Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_other_quantizations_are_decoded(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block_length, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row_bytes = 512 // block_length * block_bytes
    stored = np.random.default_rng(0).integers(0, 60, (6, row_bytes), np.uint8)  # no infinite scales
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_tensor("blk.0.ffn_up.weight", stored, raw_dtype=kind)
    finish(writer)
    expected = gguf.dequantize(stored, kind)
    values = GgufFile(tmp_path / "a.gguf").read("model.layers.0.mlp.up_proj.weight", (slice(1, 5), slice(100, 300)))
    assert expected.shape == (6, 512) and len(np.unique(values)) > 2
    np.testing.assert_array_equal(values, expected[1:5, 100:300])


def test_gguf_loads_as_a_language_model(tmp_path):
    path = write(tmp_path / "a file.gguf")
    config = dataclasses.replace(uneven(), llm=architecture(GgufFile(path)))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: x.shape for path, x in abstract_model(config)[0].items()}
    specs = {path: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding) for path, shape in shapes.items()}
    params = load_module(str(path), "llm", specs)
    assert set(params) == {path for path in shapes if path.startswith("llm/")}
    q = hf_tensors(CONFIG)["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(params["llm/layers/q/kernel"][1], q.T.reshape(64, 4, 16))
    with pytest.raises(DataError, match="a file.gguf has no vision"):
        load_module(str(path), "vision", specs)
    with pytest.raises(ConfigError, match="a file.gguf is a language model in one file; leave out tower and base"):
        open_external(path, base=tmp_path)


def test_file_does_not_stay_mapped(tmp_path):
    file = GgufFile(write(tmp_path / "a.gguf"))
    read_all(file, "model.norm.weight")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


# Architecture


def gguf_with(tmp_path, extra=(), without=(), tensors=(), **fields) -> GgufFile:
    config = dataclasses.replace(CONFIG, **fields)
    weights = {
        name: value for name, value in hf_tensors(config).items() if not (config.tied_head and "lm_head" in name)
    }
    return GgufFile(write(tmp_path / "a.gguf", weights | dict(tensors), config, extra=extra, without=without))


def rope_factors(scaling: RopeScaling, base: float, head_size: int) -> np.ndarray:
    """Computes rope_freqs.weight as llama.cpp's converter does, one frequency at a time."""
    frequency_factors = []
    for i in range(0, head_size, 2):
        wavelength = 2 * np.pi * base ** (i / head_size)
        if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
            frequency_factors.append(1.0)
        elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
            frequency_factors.append(scaling.factor)
        else:
            part = scaling.original_max_positions / wavelength - scaling.low_freq_factor
            part /= scaling.high_freq_factor - scaling.low_freq_factor
            frequency_factors.append(1 / ((1 - part) / scaling.factor + part))
    return np.asarray(frequency_factors, np.float32)


def test_missing_head_is_tied_to_the_embedding(tmp_path):
    file = gguf_with(tmp_path, tied_head=True)
    assert "lm_head.weight" not in file and architecture(file).tied_head


def test_optional_keys_have_defaults(tmp_path):
    optional = (
        "rope.freq_base",
        "rope.dimension_count",
        "attention.key_length",
        "attention.value_length",
        "vocab_size",
    )
    assert architecture(gguf_with(tmp_path, without=[f"llama.{key}" for key in optional])) == CONFIG


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_1_rope_scaling_is_recognised(tmp_path, factor):
    scaling = RopeScaling("llama3", factor)
    tensors = {"rope_freqs.weight": rope_factors(scaling, 500_000.0, 16)}
    assert len(set(tensors["rope_freqs.weight"])) > 2, "scaled, unscaled and interpolated frequencies"
    file = gguf_with(tmp_path, tensors=tensors, rope_base=500_000.0)
    assert architecture(file).rope_scaling == scaling
    assert "rope_freqs.weight" not in file and "rope_freqs.weight" not in file.names()


def test_linear_rope_scaling_and_sliding_window_are_read(tmp_path):
    file = gguf_with(tmp_path, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert architecture(file).rope_scaling == RopeScaling("linear", 4.0)
    assert architecture(gguf_with(tmp_path, {"llama.rope.scale_linear": 2.0})).rope_scaling == RopeScaling(
        "linear", 2.0
    )
    assert architecture(gguf_with(tmp_path, {"llama.attention.sliding_window": 32})).max_positions == 32


BIAS = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(extra={"llama.rope.scaling.type": "yarn"}), "llama.rope.scaling.type='yarn' is not supported"),
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
        (dict(extra={"llama.rope.freq_base": float("nan")}), "rope_theta=nan is not a number"),
        (dict(tensors={"rope_freqs.weight": np.full(8, 2, np.float32)}), "rope_freqs.weight is not the RoPE scaling"),
        (dict(tensors={"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}), "ffn_gate_inp.weight .* is not"),
    ],
)  # fmt: skip
def test_unsupported_architecture_raises_naming_the_key(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        architecture(gguf_with(tmp_path, **change))
    assert str(caught.value).startswith(str(tmp_path / "a.gguf")) and "\n" not in str(caught.value)


# Broken files


def test_gguf_is_recognised_by_its_first_bytes(tmp_path):
    (tmp_path / "b.gguf").write_bytes(b"PK\x03\x04")
    assert is_gguf(write(tmp_path / "a.bin")) and not is_gguf(tmp_path / "b.gguf") and not is_gguf(tmp_path)


def test_truncated_file_raises_naming_the_file(tmp_path):
    data = write(tmp_path / "a.gguf", extra={"tokenizer.ggml.scores": [0.5] * 64}).read_bytes()
    for length in sorted({*range(0, 4096, 61), *range(4096, len(data), len(data) // 40), len(data) - 1}):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
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
        (header(HUGE) + bytes(400), "damaged .* it is truncated"),
        (header(ARCH + text("llama"), ARCH + text("llama")), "damaged .*Duplicate general.architecture"),
        (header(ARCH + text("llama"), tensors=1) + VAST + bytes(64), "damaged"),
        (header(tensors=1 << 60), "damaged .* it is truncated"),
    ],
    ids=["other format", "version 1", "empty", "gemma", "huge array", "duplicate key", "huge tensor", "many tensors"],
)  # fmt: skip
def test_damaged_file_raises_naming_the_file(tmp_path, data, message):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(DataError, match=f"a.gguf.*{message}") as caught:
        GgufFile(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


def test_missing_file_raises_naming_the_file(tmp_path):
    with pytest.raises(DataError, match="a.gguf does not exist"):
        GgufFile(tmp_path / "a.gguf")


def test_undecodable_quantization_raises_naming_the_tensor(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 4), np.int8))
    finish(writer)
    with pytest.raises(DataError, match="a.gguf is damaged .*token_embd.weight holds I8, which gguf does not decode"):
        GgufFile(tmp_path / "a.gguf")


def test_missing_gguf_package_raises_with_install_command(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'llava_jax\[gguf\]'"):
        GgufFile(path)


# A published file


def test_smollm2_tensors_equal_transformers():
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with the package accelerate")
    from transformers import AutoModelForCausalLM

    file = smollm2()
    path = file.path
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32").state_dict()
    assert architecture(file) == LLM["smollm2_135m"]
    assert {*file.names(), "lm_head.weight"} == set(theirs)
    for name in file.names():
        np.testing.assert_array_equal(read_all(file, name), theirs[name].numpy(), err_msg=name)
