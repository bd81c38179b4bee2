"""Converts between Hugging Face's config.json and our architectures.

transformers omits values equal to its defaults, so these defaults are repeated here (from 5.23,
`configuration_{llama,mistral,qwen2,clip,llava}.py`). Settings that our models do not support raise, naming the key.
"""

from pathlib import Path

from llava_jax.config.architectures import VISION, LlamaConfig, RopeScaling, VisionConfig
from llava_jax.errors import DataError
from llava_jax.output.files import read_object

_LLAMA = dict(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=None, head_dim=None, hidden_act="silu", max_position_embeddings=2048, rms_norm_eps=1e-6,
    tie_word_embeddings=False, attention_bias=False, mlp_bias=False, sliding_window=None, use_sliding_window=True,
)  # fmt: skip
LANGUAGE_MODELS = {
    "llama": _LLAMA,
    "mistral": _LLAMA
    | dict(intermediate_size=14_336, num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096),
    "qwen2": _LLAMA
    | dict(
        vocab_size=151_936, intermediate_size=22_016, num_key_value_heads=32, max_position_embeddings=32_768,
        sliding_window=4096, use_sliding_window=False,
    ),
}  # fmt: skip
_CLIP = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3,
    image_size=224, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)  # fmt: skip
# The default tower of a LlavaConfig: CLIP L/14-336.
_LLAVA_TOWER = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
    patch_size=14,
)  # fmt: skip
STRATEGIES = {"default": "patch", "full": "cls_patch"}
TOWERS = {
    "openai/clip-vit-large-patch14": VISION["clip_l14_224"],
    "openai/clip-vit-large-patch14-336": VISION["clip_l14_336"],
}


def read_hf_config(folder: Path) -> dict:
    """Reads config.json. Raises DataError if it is missing or broken, or needs custom code (auto_map)."""
    file = folder / "config.json"
    config = read_object(file, "what model the weights are of")
    if "auto_map" in config:
        raise DataError(f"{file} needs custom code (auto_map); only built-in architectures are loaded")
    return config


def language_model(config: dict, where: str) -> LlamaConfig:
    """Converts a LLaMA, Mistral or Qwen2 config; `where` names its file in messages.

    The context is limited to the sliding window if there is one (Mistral 0.1), because attention differs beyond it.
    Raises DataError for another model, and for unsupported biases, activations or RoPE scalings.
    """
    kind = str(config.get("model_type", "llama"))  # str: a list is not hashable
    if kind not in LANGUAGE_MODELS:
        raise DataError(f"{where}: language model {kind!r} is not one of {', '.join(LANGUAGE_MODELS)}")
    c = LANGUAGE_MODELS[kind] | config
    for key, supported in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if c[key] != supported:
            raise DataError(f"{where}: {key}={c[key]!r} is not supported, only {supported!r}")
    _check_numbers(
        c, where,
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps",
         "max_position_embeddings"),
        ("num_key_value_heads", "head_dim", "sliding_window"),
    )  # fmt: skip
    rope_base, scaling = _rope(c, where)
    max_positions = c["max_position_embeddings"]
    if c["sliding_window"] and c["use_sliding_window"]:
        max_positions = min(max_positions, c["sliding_window"])
    heads = c["num_attention_heads"]
    return LlamaConfig(
        vocab_size=c["vocab_size"], width=c["hidden_size"], layers=c["num_hidden_layers"], heads=heads,
        kv_heads=c["num_key_value_heads"] or heads, head_size=c["head_dim"] or c["hidden_size"] // heads,
        mlp_width=c["intermediate_size"], norm_eps=c["rms_norm_eps"], rope_base=rope_base, rope_scaling=scaling,
        qkv_bias=kind == "qwen2", tied_head=c["tie_word_embeddings"], max_positions=max_positions,
    )  # fmt: skip


def _check_numbers(c: dict, where: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Raises DataError unless values are positive integers (floats for an epsilon); `optional` may be null or 0."""
    for key in (*needed, *(key for key in optional if c[key] is not None)):
        kinds = (int, float) if key.endswith("eps") else (int,)
        if type(c[key]) not in kinds or c[key] < 0 or (c[key] == 0 and key in needed):
            raise DataError(f"{where}: {key}={c[key]!r} is not a valid number")


def _rope(c: dict, where: str) -> tuple[float, RopeScaling | None]:
    """Returns (base, scaling). transformers 5 writes `rope_parameters`, older ones `rope_theta`, `rope_scaling`."""
    rope = {"rope_theta": c.get("rope_theta", 10_000.0)}
    for key in ("rope_scaling", "rope_parameters"):
        rope |= _group(c, key, where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    try:
        if kind == "default":
            return float(rope["rope_theta"]), None
        if kind == "linear":
            return float(rope["rope_theta"]), RopeScaling("linear", float(rope["factor"]))
        if kind == "llama3":
            return float(rope["rope_theta"]), RopeScaling(
                "llama3", float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )  # fmt: skip
    except KeyError as e:
        raise DataError(f"{where}: rotary scaling {kind!r} lacks {e}") from None
    except (TypeError, ValueError):
        raise DataError(f"{where}: rotary scaling {rope!r} has a value that is no number") from None
    raise DataError(f"{where}: rotary scaling {kind!r} is not one of default, linear, llama3")


def _group(config: dict, key: str, where: str) -> dict:
    """Returns the nested settings `key`, {} if absent or null. Raises DataError if they are not a dict."""
    group = config.get(key) or {}
    if not isinstance(group, dict):
        raise DataError(f"{where}: {key}={group!r} is not a group of settings")
    return group


def vision_tower(config: dict, where: str, select_layer: int, select_feature: str) -> VisionConfig:
    """Converts a `clip_vision_model` config, or the vision part of a `clip` config. Raises DataError otherwise."""
    kind = config.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise DataError(f"{where}: vision tower {kind!r} is not supported, only clip_vision_model")
    c = _CLIP | config
    if c["hidden_act"] not in ("quick_gelu", "gelu") or c["num_channels"] != 3:
        raise DataError(f"{where}: a tower with {c['hidden_act']!r} and {c['num_channels']} channels is not supported")
    _check_numbers(
        c, where,
        ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "layer_norm_eps"),
    )  # fmt: skip
    return VisionConfig(
        image_size=c["image_size"], patch_size=c["patch_size"], width=c["hidden_size"], layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"], mlp_width=c["intermediate_size"], activation=c["hidden_act"],
        norm_eps=c["layer_norm_eps"], select_layer=select_layer, select_feature=select_feature,
    )  # fmt: skip


def hf_llava(config: dict, where: str) -> tuple[VisionConfig, LlamaConfig, str]:
    """Returns (tower, decoder, activation between the projector's two layers) of a LlavaConfig."""
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise DataError(f"{where}: vision_feature_layer={layer!r}: features of several layers are not supported")
    strategy = str(config.get("vision_feature_select_strategy", "default"))
    if strategy not in STRATEGIES:
        raise DataError(f"{where}: vision_feature_select_strategy={strategy!r} is not one of {', '.join(STRATEGIES)}")
    if not config.get("multimodal_projector_bias", True):
        raise DataError(f"{where}: a projector without biases is not supported")
    tower = _group(config, "vision_config", where)
    if tower.get("model_type", "clip_vision_model") == "clip_vision_model":
        tower = _LLAVA_TOWER | tower
    text = dict(_group(config, "text_config", where))
    # transformers writes this flag on either level
    text["tie_word_embeddings"] = text.get("tie_word_embeddings", False) or config.get("tie_word_embeddings", False)
    act = config.get("projector_hidden_act", "gelu")
    if act not in ("gelu", "linear"):
        raise DataError(f"{where}: projector_hidden_act={act!r} is not one of gelu, linear")
    return vision_tower(tower, where, layer, STRATEGIES[strategy]), language_model(text, where), act


def to_hf(vision: VisionConfig, llm: LlamaConfig, projector: str, image_token_id: int, dtype: str) -> dict:
    """Returns the config.json of a `LlavaForConditionalGeneration`; reading it gives the same architectures.

    RoPE settings use the keys of every transformers version (`rope_theta`, `rope_scaling`). A linear projector is
    written with `projector_hidden_act="linear"` and an identity as second layer, see `save_hf`.
    Raises DataError for a model that transformers' classes cannot represent.
    """
    if projector not in ("linear", "mlp2x_gelu"):
        raise DataError(f"Hugging Face's LLaVA has a projector of two layers; {projector} cannot be written for it")
    if llm.qkv_bias and llm.head_size * llm.heads != llm.width:
        raise DataError("Hugging Face's Qwen2 has no separate head size: heads * head_size must equal the width")
    text = hf_text(llm) | dict(
        model_type="qwen2" if llm.qkv_bias else "llama",
        architectures=["Qwen2ForCausalLM" if llm.qkv_bias else "LlamaForCausalLM"], dtype=dtype,
    )  # fmt: skip
    tower = hf_tower(vision) | dict(dtype=dtype)
    strategy = next(name for name, feature in STRATEGIES.items() if feature == vision.select_feature)
    return dict(
        model_type="llava", architectures=["LlavaForConditionalGeneration"], dtype=dtype,
        text_config=text if llm.qkv_bias else text | {"head_dim": llm.head_size}, vision_config=tower,
        vision_feature_layer=vision.select_layer, vision_feature_select_strategy=strategy,
        projector_hidden_act="linear" if projector == "linear" else "gelu", multimodal_projector_bias=True,
        image_token_index=image_token_id, image_seq_length=vision.features, tie_word_embeddings=llm.tied_head,
    )  # fmt: skip


def hf_text(llm: LlamaConfig) -> dict:
    """Returns the keys of a decoder's config.json that LLaMA and Qwen2 share."""
    return dict(
        vocab_size=llm.vocab_size, hidden_size=llm.width, intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers, num_attention_heads=llm.heads, num_key_value_heads=llm.kv_heads,
        hidden_act="silu", rms_norm_eps=llm.norm_eps, rope_theta=llm.rope_base, rope_scaling=_hf_scaling(llm),
        max_position_embeddings=llm.max_positions, tie_word_embeddings=llm.tied_head,
    )  # fmt: skip


def hf_tower(vision: VisionConfig) -> dict:
    """Returns a CLIP tower's config.json."""
    return dict(
        model_type="clip_vision_model", hidden_size=vision.width, intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.layers, num_attention_heads=vision.heads, image_size=vision.image_size,
        patch_size=vision.patch_size, hidden_act=vision.activation, layer_norm_eps=vision.norm_eps,
    )  # fmt: skip


def _hf_scaling(llm: LlamaConfig) -> dict | None:
    s = llm.rope_scaling
    if s is None:
        return None
    if s.kind == "linear":
        return dict(rope_type="linear", factor=s.factor)
    return dict(
        rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor, high_freq_factor=s.high_freq_factor,
        original_max_position_embeddings=s.original_max_positions,
    )  # fmt: skip
