"""Converts between Hugging Face's config.json of a language model and LlamaConfig.

transformers omits values equal to its defaults, so these are repeated here (from 5.24, `configuration_{llama,mistral,
qwen2}.py`). Settings that change its result and that our models lack raise, naming the key.
"""

import math

from llava_jax.checkpoint.huggingface.fields import (
    act,
    count,
    flag,
    group,
    integer,
    number,
    optional,
    positive,
    read_fields,
    refuse_others,
    text,
)
from llava_jax.config.architectures import LlamaConfig, RopeScaling
from llava_jax.errors import DataError

_LLAMA = dict(
    vocab_size=(count, 32_000), hidden_size=(count, 4096), intermediate_size=(count, 11_008),
    num_hidden_layers=(count, 32), num_attention_heads=(count, 32), num_key_value_heads=(optional(count), None),
    head_dim=(optional(count), None), hidden_act=(act, "silu"), max_position_embeddings=(count, 2048),
    rms_norm_eps=(positive, 1e-6), tie_word_embeddings=(flag, False), attention_bias=(flag, False),
    mlp_bias=(flag, False), sliding_window=(optional(count), None), use_sliding_window=(flag, True),
    max_window_layers=(integer, 0), rope_theta=(positive, 10_000.0),
)  # fmt: skip
_MISTRAL = dict(
    intermediate_size=(count, 14_336), num_key_value_heads=(optional(count), 8),
    max_position_embeddings=(count, 131_072), sliding_window=(optional(count), 4096),
)  # fmt: skip
_QWEN2 = dict(
    vocab_size=(count, 151_936), intermediate_size=(count, 22_016), num_key_value_heads=(optional(count), 32),
    max_position_embeddings=(count, 32_768), sliding_window=(optional(count), 4096), use_sliding_window=(flag, False),
    max_window_layers=(integer, 28),
)  # fmt: skip
LANGUAGE_MODELS = {"llama": _LLAMA, "mistral": _LLAMA | _MISTRAL, "qwen2": _LLAMA | _QWEN2}
# Key -> the values with which transformers computes what we compute.
_ONLY = {"is_causal": (True, None), "per_layer_config": (None, {}), "partial_rotary_factor": (None, 1)}
# Rope type -> readers of its keys. Other types, and other keys that transformers reads, are refused.
_ROPE_TYPES = {
    "default": {},
    "linear": dict(factor=(positive, None)),
    "dynamic": dict(factor=(positive, None)),
    "llama3": dict(
        factor=(positive, None), low_freq_factor=(positive, None), high_freq_factor=(positive, None),
        original_max_position_embeddings=(count, None),
    ),
    "yarn": dict(
        factor=(optional(positive), None), original_max_position_embeddings=(count, None),
        beta_fast=(optional(number), None), beta_slow=(optional(number), None), truncate=(optional(flag), True),
        attention_factor=(optional(number), None), mscale=(optional(number), None),
        mscale_all_dim=(optional(number), None),
    ),
}  # fmt: skip


def language_model(config: dict, where: str) -> LlamaConfig:
    """Converts a LLaMA, Mistral or Qwen2 config; `where` names its file in messages.

    The context is limited to the sliding window if there is one (Mistral 0.1), because attention differs beyond it.
    Raises DataError that names the key, for another model, a value of a wrong type, and a setting that we lack.
    """
    kind = text(config.get("model_type", "llama"), f"{where}: model_type")
    if kind not in LANGUAGE_MODELS:
        raise DataError(f"{where}: language model {kind!r} is not one of {', '.join(LANGUAGE_MODELS)}")
    c = read_fields(config, LANGUAGE_MODELS[kind], where)
    refuse_others(config, _ONLY, where)
    for key in ("attention_bias", "mlp_bias"):
        if c[key] and kind != "llama":
            raise DataError(f"{where}: {key}=True is not supported in a {kind}")
    heads = c["num_attention_heads"]
    kv_heads = c["num_key_value_heads"] or heads
    if heads % kv_heads:
        raise DataError(f"{where}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    head_size = c["head_dim"] or c["hidden_size"] // heads
    if head_size % 2 or not c["head_dim"] and c["hidden_size"] % heads:
        raise DataError(
            f"{where}: hidden_size={c['hidden_size']}, num_attention_heads={heads} and head_dim={c['head_dim']} do not "
            "give heads of an even size"
        )
    rope_base, scaling = _rope(config, c, where)
    max_positions, window = c["max_position_embeddings"], _window(config, c, kind, where)
    if scaling and scaling.kind == "dynamic":
        max_positions = int(max_positions * scaling.factor)
    return LlamaConfig(
        vocab_size=c["vocab_size"], width=c["hidden_size"], layers=c["num_hidden_layers"], heads=heads,
        kv_heads=kv_heads, head_size=head_size, mlp_width=c["intermediate_size"], norm_eps=c["rms_norm_eps"],
        rope_base=rope_base, rope_scaling=scaling, qkv_bias=kind == "qwen2" or c["attention_bias"],
        o_bias=c["attention_bias"], mlp_bias=c["mlp_bias"], activation=c["hidden_act"],
        tied_head=c["tie_word_embeddings"], max_positions=min(max_positions, window or max_positions),
    )  # fmt: skip


def _window(config: dict, c: dict, kind: str, where: str) -> int | None:
    """Returns the number of tokens within which every layer attends to all, None for any number."""
    window = c["sliding_window"] if c["use_sliding_window"] else None
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or set(map(str, types)) - {"full_attention", "sliding_attention"}:
            raise DataError(f"{where}: layer_types={types!r:.80} has others than full_attention and sliding_attention")
        if len(types) != c["num_hidden_layers"] or "sliding_attention" in types and not window:
            raise DataError(f"{where}: layer_types={types!r:.80} does not fit num_hidden_layers and sliding_window")
    if kind != "qwen2":
        return window
    slides = "sliding_attention" in types if types is not None else c["num_hidden_layers"] > c["max_window_layers"]
    return window if slides else None


def _rope(config: dict, c: dict, where: str) -> tuple[float, RopeScaling | None]:
    """Returns (base, scaling), as transformers 5 reads them: `rope_scaling`, its older key, wins over
    `rope_parameters`, and `rope_theta` at the top is the default of the base."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope, name = group(config, key, where), f"{where}: {key}"
    kind = text(rope.get("rope_type", rope.get("type", "default")), f"{name}: rope_type")
    if kind not in _ROPE_TYPES:
        raise DataError(f"{name}: rotary scaling {kind!r} is not one of {', '.join(_ROPE_TYPES)}")
    refuse_others(rope, {"partial_rotary_factor": (None, 1), "mrope_section": (None,)}, name)
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise DataError(f"{name}: {nested[0]}: rotary settings by layer type are not supported")
    original = {"original_max_position_embeddings": c["max_position_embeddings"]} | rope
    if "original_max_position_embeddings" in config:  # Phi-3's place for it, which wins in transformers
        original |= {"original_max_position_embeddings": config["original_max_position_embeddings"]}
    missing = [key for key in _ROPE_TYPES[kind] if key not in original and _ROPE_TYPES[kind][key][0] is positive]
    if missing:
        raise DataError(f"{name}: rotary scaling {kind!r} lacks {missing[0]!r}")
    r = read_fields(original, _ROPE_TYPES[kind], name)
    base = positive(rope["rope_theta"], f"{name}: rope_theta") if "rope_theta" in rope else c["rope_theta"]
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling("linear", r["factor"])
    if kind == "dynamic":
        return base, RopeScaling("dynamic", r["factor"], original_max_positions=c["max_position_embeddings"])
    positions = r["original_max_position_embeddings"]
    if kind == "llama3":
        return base, RopeScaling("llama3", r["factor"], r["low_freq_factor"], r["high_freq_factor"], positions)
    factor = r["factor"] or c["max_position_embeddings"] / positions
    return base, RopeScaling(
        "yarn", factor, original_max_positions=positions, beta_fast=r["beta_fast"] or 32.0,
        beta_slow=r["beta_slow"] or 1.0, truncate=bool(r["truncate"]), attention_factor=_attention_factor(r, factor),
    )  # fmt: skip


def _attention_factor(r: dict, factor: float) -> float:
    """Returns what YaRN multiplies sine and cosine with (transformers' `_compute_yarn_parameters`)."""
    if r["attention_factor"] is not None:
        return r["attention_factor"]

    def scale(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(r["mscale"]) / scale(r["mscale_all_dim"]) if r["mscale"] and r["mscale_all_dim"] else scale(1.0)


def hf_text(llm: LlamaConfig) -> dict:
    """Returns the keys of a decoder's config.json that LLaMA and Qwen2 share. Those of a bias are written if there is
    one, because transformers 4 and Qwen2 do not know them."""
    s, positions = llm.rope_scaling, llm.max_positions
    if s and s.kind == "dynamic":
        positions = s.original_max_positions
    biases = dict(attention_bias=llm.o_bias, mlp_bias=llm.mlp_bias)
    return dict(
        vocab_size=llm.vocab_size, hidden_size=llm.width, intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers, num_attention_heads=llm.heads, num_key_value_heads=llm.kv_heads,
        hidden_act=hf_act(llm.activation), rms_norm_eps=llm.norm_eps, rope_theta=llm.rope_base,
        rope_scaling=s and _hf_scaling(s), max_position_embeddings=positions, tie_word_embeddings=llm.tied_head,
    ) | {key: True for key, present in biases.items() if present}  # fmt: skip


def hf_act(name: str) -> str:
    """Returns transformers' name of an activation."""
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


def _hf_scaling(s: RopeScaling) -> dict:
    settings = dict(rope_type=s.kind, factor=s.factor)
    if s.kind == "llama3":
        settings |= dict(low_freq_factor=s.low_freq_factor, high_freq_factor=s.high_freq_factor)
    if s.kind == "yarn":
        settings |= dict(
            beta_fast=s.beta_fast, beta_slow=s.beta_slow, truncate=s.truncate, attention_factor=s.attention_factor
        )
    if s.kind in ("llama3", "yarn"):
        settings["original_max_position_embeddings"] = s.original_max_positions
    return settings
