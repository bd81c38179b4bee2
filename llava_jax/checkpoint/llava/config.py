"""Converts the original LLaVA's config.json (`LlavaLlamaForCausalLM`) to our architectures.

It is a LLaMA config with additional `mm_*` keys; missing ones have the defaults of the original's `builder.py` and
`llava_arch.py`. It only names the tower, and the tower's weights are often in another folder.
"""

import re

from llava_jax.checkpoint.huggingface.config import feature_layer
from llava_jax.checkpoint.huggingface.fields import flag, optional, refuse_others, text
from llava_jax.checkpoint.huggingface.text_config import language_model
from llava_jax.config.architectures import LlamaConfig
from llava_jax.errors import DataError

# LLaVA's model_type -> the decoder's. v0 releases kept `llama`.
DECODERS = {
    "llava_llama": "llama",
    "llava": "llama",
    "llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}


def read_original(config: dict, where: str) -> tuple[str, LlamaConfig, str, int, str]:
    """Returns (tower name, decoder, projector, select_layer, select_feature); `where` names the file in messages.

    Raises DataError that names the key, for an unsupported decoder or projector, for the image tiles of v1.6, and for a
    value of a wrong type.
    """

    def setting(key: str, default: str) -> str:
        return optional(text)(config.get(key), f"{where}: {key}") or default

    kind = setting("model_type", "llava")
    if kind not in DECODERS:
        raise DataError(f"{where}: model_type {kind!r} is not one of {', '.join(DECODERS)}")
    projector = setting("mm_projector_type", "linear")
    if projector != "linear" and not re.fullmatch(r"mlp[1-9]\d*x_gelu", projector):
        raise DataError(f"{where}: mm_projector_type={projector!r} is not supported, only linear and mlpNx_gelu")
    for key, tiled in (("mm_patch_merge_type", lambda x: x != "flat"), ("image_aspect_ratio", lambda x: "anyres" in x)):
        if tiled(value := setting(key, "flat")):
            raise DataError(f"{where}: {key}={value!r}: images in tiles (v1.6) are not supported")
    refuse_others(config, {"s2": (None, False), "mm_resampler_type": (None,)}, where)
    feature = setting("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise DataError(f"{where}: mm_vision_select_feature={feature!r} is not one of patch, cls_patch")
    tower = setting("mm_vision_tower", "openai/clip-vit-large-patch14")
    layer = feature_layer(config.get("mm_vision_select_layer", -2), f"{where}: mm_vision_select_layer")
    return tower, language_model(config | {"model_type": DECODERS[kind]}, where), projector, layer, feature


def wraps_images(config: dict, where: str) -> bool:
    """Returns whether each image stands between <im_start> and <im_end>. Raises DataError for another type."""
    return bool(optional(flag)(config.get("mm_use_im_start_end"), f"{where}: mm_use_im_start_end"))
