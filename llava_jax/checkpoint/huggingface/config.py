"""Converts between Hugging Face's config.json of a LLaVA and our architectures; defaults as in `text_config`."""

from pathlib import Path

from llava_jax.checkpoint.huggingface.fields import act, flag, group, integer, refuse_others, text
from llava_jax.checkpoint.huggingface.text_config import hf_act, hf_text, language_model
from llava_jax.checkpoint.huggingface.vision_config import hf_tower, vision_tower
from llava_jax.config.architectures import LlamaConfig, VisionConfig
from llava_jax.errors import DataError
from llava_jax.output.files import read_object

# The tower of a LlavaConfig without `vision_config`: CLIP L/14-336.
_LLAVA_TOWER = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
    patch_size=14,
)  # fmt: skip
STRATEGIES = {"default": "patch", "full": "cls_patch"}


def read_hf_config(folder: Path) -> dict:
    """Reads config.json. Raises DataError if it is missing or broken, or needs custom code (auto_map)."""
    file = folder / "config.json"
    config = read_object(file, "what model the weights are of")
    if "auto_map" in config:
        raise DataError(f"{file} needs custom code (auto_map); only built-in architectures are loaded")
    return config


def hf_llava(config: dict, where: str) -> tuple[VisionConfig, LlamaConfig, str]:
    """Returns (tower, decoder, activation between the projector's two layers or `linear`) of a LlavaConfig. Raises
    DataError that names the key, for another model, a value of a wrong type, and a setting that our models lack."""
    refuse_others(config, {"model_type": ("llava",), "per_layer_config": (None, {})}, where)
    layer = feature_layer(config.get("vision_feature_layer", -2), f"{where}: vision_feature_layer")
    strategy = text(config.get("vision_feature_select_strategy", "default"), f"{where}: vision_feature_select_strategy")
    if strategy not in STRATEGIES:
        raise DataError(f"{where}: vision_feature_select_strategy={strategy!r} is not one of {', '.join(STRATEGIES)}")
    if not flag(config.get("multimodal_projector_bias", True), f"{where}: multimodal_projector_bias"):
        raise DataError(f"{where}: multimodal_projector_bias=False: a projector without biases is not supported")
    tower = group(config, "vision_config", where) or _LLAVA_TOWER
    decoder = dict(group(config, "text_config", where))
    # transformers writes this flag on either level
    tied = [flag(c.get("tie_word_embeddings", False), f"{where}: tie_word_embeddings") for c in (decoder, config)]
    decoder["tie_word_embeddings"] = any(tied)
    name = config.get("projector_hidden_act", "gelu")
    between = "linear" if name == "linear" else act(name, f"{where}: projector_hidden_act")
    return vision_tower(tower, where, layer, STRATEGIES[strategy]), language_model(decoder, where), between


def projector_activation(name: str) -> str:
    """Returns the activation between a projector's layers: `mlp2x_quick_gelu` -> quick_gelu, `linear` -> linear."""
    return name.partition("x_")[2] or "linear"


def feature_layer(value: object, name: str) -> int:
    """Returns the hidden state that the projector reads. Raises DataError for a list of several."""
    if isinstance(value, list) and len(value) > 1:
        raise DataError(f"{name}={value!r:.80}: features of several layers are not supported")
    return integer(value, name)


def to_hf(vision: VisionConfig, llm: LlamaConfig, projector: str, image_token_id: int, dtype: str) -> dict:
    """Returns the config.json of a `LlavaForConditionalGeneration`; reading it gives the same architectures.

    RoPE settings use the keys of every transformers version (`rope_theta`, `rope_scaling`). A linear projector is
    written with `projector_hidden_act="linear"` and an identity as second layer, see `save_hf`.
    Raises DataError for a model that transformers' classes cannot represent.
    """
    if projector != "linear" and not projector.startswith("mlp2x_"):
        raise DataError(f"Hugging Face's LLaVA has a projector of two layers; {projector} cannot be written for it")
    is_qwen2 = llm.qkv_bias and not llm.o_bias
    if is_qwen2 and (llm.head_size * llm.heads != llm.width or llm.mlp_bias):
        raise DataError(
            "Hugging Face's Qwen2 has no separate head size and no biases in its MLP: heads * head_size must equal the "
            "width"
        )
    decoder = hf_text(llm) | dict(
        model_type="qwen2" if is_qwen2 else "llama",
        architectures=["Qwen2ForCausalLM" if is_qwen2 else "LlamaForCausalLM"], dtype=dtype,
    )  # fmt: skip
    tower = hf_tower(vision) | dict(dtype=dtype)
    strategy = next(name for name, feature in STRATEGIES.items() if feature == vision.select_feature)
    return dict(
        model_type="llava", architectures=["LlavaForConditionalGeneration"], dtype=dtype,
        text_config=decoder if is_qwen2 else decoder | {"head_dim": llm.head_size}, vision_config=tower,
        vision_feature_layer=vision.select_layer, vision_feature_select_strategy=strategy,
        projector_hidden_act=hf_act(projector_activation(projector)),
        multimodal_projector_bias=True, image_token_index=image_token_id, image_seq_length=vision.features,
        tie_word_embeddings=llm.tied_head,
    )  # fmt: skip
