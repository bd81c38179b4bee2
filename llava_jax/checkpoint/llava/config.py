"""Converts the original LLaVA's config.json (`LlavaLlamaForCausalLM`) to our architectures.

It is a LLaMA config with additional `mm_*` keys; missing ones have the defaults of the original's `builder.py` and
`llava_arch.py`. It only names the tower, and the tower's weights are often in another folder.
"""

import re

from llava_jax.checkpoint.huggingface.config import language_model
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

    Raises DataError for an unsupported decoder or projector, and for the image tiles of v1.6.
    """
    kind = config.get("model_type", "llava")
    if kind not in DECODERS:
        raise DataError(f"{where}: model_type {kind!r} is not one of {', '.join(DECODERS)}")
    projector = config.get("mm_projector_type") or "linear"
    if projector != "linear" and not re.fullmatch(r"mlp[1-9]\d*x_gelu", projector):
        raise DataError(f"{where}: mm_projector_type={projector!r} is not supported, only linear and mlpNx_gelu")
    if config.get("mm_patch_merge_type", "flat") != "flat":
        raise DataError(
            f"{where}: mm_patch_merge_type={config['mm_patch_merge_type']!r}: images in tiles (v1.6) are not supported"
        )
    feature = config.get("mm_vision_select_feature") or "patch"
    if feature not in ("patch", "cls_patch"):
        raise DataError(f"{where}: mm_vision_select_feature={feature!r} is not one of patch, cls_patch")
    tower = config.get("mm_vision_tower") or "openai/clip-vit-large-patch14"
    layer = config.get("mm_vision_select_layer", -2)
    return tower, language_model(config | {"model_type": DECODERS[kind]}, where), projector, layer, feature
