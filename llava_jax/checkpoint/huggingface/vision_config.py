"""Converts between Hugging Face's config.json of a CLIP tower and VisionConfig; defaults as in `text_config`."""

import dataclasses

from llava_jax.checkpoint.huggingface.fields import act, count, integer, positive, read_fields, refuse_others, text
from llava_jax.checkpoint.huggingface.text_config import hf_act
from llava_jax.config.architectures import VISION, VisionConfig
from llava_jax.errors import DataError

_CLIP = dict(
    hidden_size=(count, 768), intermediate_size=(count, 3072), num_hidden_layers=(count, 12),
    num_attention_heads=(count, 12), image_size=(count, 224), patch_size=(count, 32), hidden_act=(act, "quick_gelu"),
    layer_norm_eps=(positive, 1e-5), num_channels=(integer, 3),
)  # fmt: skip
_ONLY = {"per_layer_config": (None, {}), "tie_last_hidden_states": (None, False)}
TOWERS = {
    "openai/clip-vit-large-patch14": VISION["clip_l14_224"],
    "openai/clip-vit-large-patch14-336": VISION["clip_l14_336"],
}


def vision_tower(config: dict, where: str, select_layer: int, select_feature: str) -> VisionConfig:
    """Converts a `clip_vision_model` config, or the vision part of a `clip` config.

    Raises DataError that names the key, for another model, a value of a wrong type, a setting that we lack, and a
    `select_layer` that the tower does not have.
    """
    kind = text(config.get("model_type", "clip_vision_model"), f"{where}: model_type")
    if kind != "clip_vision_model":
        raise DataError(f"{where}: vision tower {kind!r} is not supported, only clip_vision_model")
    c = read_fields(config, _CLIP, where)
    refuse_others(config, _ONLY, where)
    if c["num_channels"] != 3:
        raise DataError(f"{where}: num_channels={c['num_channels']} is not supported, only 3")
    width, heads = c["hidden_size"], c["num_attention_heads"]
    if width % heads:
        raise DataError(f"{where}: hidden_size={width} is not a multiple of num_attention_heads={heads}")
    if c["patch_size"] > c["image_size"]:
        raise DataError(f"{where}: patch_size={c['patch_size']} is above image_size={c['image_size']}")
    tower = VisionConfig(
        image_size=c["image_size"], patch_size=c["patch_size"], width=width, layers=c["num_hidden_layers"],
        heads=heads, mlp_width=c["intermediate_size"], activation=c["hidden_act"], norm_eps=c["layer_norm_eps"],
        select_layer=select_layer, select_feature=select_feature,
    )  # fmt: skip
    return with_features(tower, where, select_layer, select_feature)


def with_features(tower: VisionConfig, where: str, select_layer: int, select_feature: str) -> VisionConfig:
    """Returns the tower with these features selected. Raises DataError for a layer that it does not have."""
    vision = dataclasses.replace(tower, select_layer=select_layer, select_feature=select_feature)
    if not 0 <= vision.blocks_used <= vision.layers:
        raise DataError(f"{where}: feature layer {select_layer} is not one of the {vision.layers + 1} hidden states")
    return vision


def hf_tower(vision: VisionConfig) -> dict:
    """Returns a CLIP tower's config.json."""
    return dict(
        model_type="clip_vision_model", hidden_size=vision.width, intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.layers, num_attention_heads=vision.heads, image_size=vision.image_size,
        patch_size=vision.patch_size, hidden_act=hf_act(vision.activation), layer_norm_eps=vision.norm_eps,
    )  # fmt: skip
