"""The architecture that a GGUF file's metadata describes."""

import numpy as np

from llava_jax.checkpoint.gguf_files.file import ROPE_FACTORS, SUPPORTED_KEYS, GgufFile
from llava_jax.checkpoint.huggingface.text_config import language_model
from llava_jax.config.architectures import LlamaConfig, RopeScaling
from llava_jax.errors import DataError


def architecture(file: GgufFile) -> LlamaConfig:
    """Returns the decoder config of a file, derived through the equivalent Hugging Face config.json.

    LLaMA 3.1's RoPE scaling has no metadata key; it is recognised by the factors in `rope_freqs.weight`.
    Raises DataError, naming the key or tensor, if one is missing, contradicts another (the vocabulary size), or
    needs what our models do not support: experts, YaRN, partial rotary dimensions, biases in a LLaMA, ...
    """
    arch, size = file.arch, file.size
    if "model.embed_tokens.weight" not in file:
        raise DataError(f"{file.path}: tensor token_embd.weight is missing")
    vocabulary = file.shape("model.embed_tokens.weight")[0]
    tokens = len(file.value("tokenizer.ggml.tokens", list, [])) or vocabulary
    for key, count in (("tokenizer.ggml.tokens", tokens), (f"{arch}.vocab_size", size("vocab_size", vocabulary))):
        if count != vocabulary:
            raise DataError(f"{file.path}: {key}: {count} tokens, but token_embd.weight has {vocabulary} rows")
    width, heads = size("embedding_length"), size("attention.head_count")
    head_size = size("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if size(key, head_size) != head_size:
            raise DataError(f"{file.path}: {arch}.{key}={size(key)} is not the head size {head_size}; not supported")
    for key, value in file.metadata.items():
        if key.startswith(f"{arch}.") and key.removeprefix(f"{arch}.") not in SUPPORTED_KEYS and value:
            raise DataError(f"{file.path}: {key}={value!r:.40} is not supported")
    biases = [name for name in file.names() if name.endswith(".bias")]
    window = file.value(f"{arch}.attention.sliding_window", int, 0)
    config = dict(
        model_type=arch, vocab_size=vocabulary, hidden_size=width, intermediate_size=size("feed_forward_length"),
        num_hidden_layers=size("block_count"), num_attention_heads=heads, head_dim=head_size,
        num_key_value_heads=size("attention.head_count_kv", heads), max_position_embeddings=size("context_length"),
        rms_norm_eps=file.value(f"{arch}.attention.layer_norm_rms_epsilon", float),
        rope_theta=file.value(f"{arch}.rope.freq_base", float, 10_000.0), sliding_window=window or None,
        use_sliding_window=bool(window), tie_word_embeddings="lm_head.weight" not in file,
        attention_bias=arch == "llama" and any(".self_attn." in name for name in biases),
        mlp_bias=any(".mlp." in name for name in biases),
    )  # fmt: skip
    return language_model(config | {"rope_scaling": _rope_scaling(file, config)}, str(file.path))


def _rope_scaling(file: GgufFile, config: dict) -> dict | None:
    """Returns the `rope_scaling` of the equivalent config.json."""
    factor = float(file.value(f"{file.arch}.rope.scaling.factor", float, 0.0))
    factor = factor or float(file.value(f"{file.arch}.rope.scale_linear", float, 0.0))
    kind = file.value(f"{file.arch}.rope.scaling.type", str, "linear" if factor not in (0.0, 1.0) else "none")
    if kind not in ("none", "linear"):
        raise DataError(f"{file.path}: {file.arch}.rope.scaling.type={kind!r} is not supported, only none and linear")
    stored = file.rope_factors
    if stored is None:
        return None if kind == "none" else {"rope_type": kind, "factor": factor or 1.0}
    scaling = RopeScaling("llama3", float(stored.max()))
    low, high, d = scaling.low_freq_factor, scaling.high_freq_factor, config["head_dim"]
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, d, 2) / d)
    smooth = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / scaling.factor + smooth)
    if kind != "none" or stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise DataError(f"{file.path}: tensor {ROPE_FACTORS} is not the RoPE scaling of LLaMA 3.1; not supported")
    return dict(
        rope_type="llama3", factor=scaling.factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=scaling.original_max_positions,
    )  # fmt: skip
