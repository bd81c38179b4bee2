"""Writes a model in the original LLaVA's format (`LlavaLlamaForCausalLM`), as safetensors.

The tower is written inside (`model.vision_tower.vision_tower.*`), except where it came from a folder of its own, beside
an original that has none: such a model is written as it was found. The original's code builds the towers it knows by
name; one of another shape is described by `vision_config`, a key of ours which it does not read.
"""

import dataclasses
import json
from pathlib import Path

import jax

from llava_jax.checkpoint.huggingface.config import TOWERS, hf_text, hf_tower
from llava_jax.checkpoint.new_folder import check_new, new_folder
from llava_jax.checkpoint.tokenizer import copy_tokenizer
from llava_jax.checkpoint.torch_tensors.dialects import DIALECTS, torch_mappings
from llava_jax.checkpoint.torch_tensors.safetensors_writer import SHARD_BYTES, files_dtype, torch_tensors, write_tensors
from llava_jax.config.architectures import ModelConfig, projector_depth
from llava_jax.text.tokenizer import Tokenizer

ORIGINAL = next(dialect for dialect in DIALECTS if dialect.name == "original")


def save_original(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, tokenizer: Tokenizer, tokenizer_path: Path | None,
    dtype: str | None, aspect: str = "crop", known: dict | None = None, tower: str | None = None,
    tower_is_inside: bool = True, wraps_images: bool = False, shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Writes a whole model into a new folder.

    params, dtype: as `save_hf` has them. tokenizer_path: where its files are, copied as they are; None: they are made.
    known: the config.json of the original that the model was read from; what does not contradict the model stays.
    tower: the prefix of its tensors, None for the original's own. tower_is_inside: False leaves them out. wraps_images:
    see `wrap_images`.

    Every process must call it; process 0 writes. No more than one tensor is gathered at a time. The folder appears when
    it is complete. Raises DataError where it exists or cannot be written.
    """
    check_new(folder)
    depth = projector_depth(config.projector)
    stored_dtype = files_dtype(params.values(), dtype)
    config_json = to_original(config, stored_dtype, aspect, known or {}, tower_is_inside, wraps_images)
    mappings = torch_mappings(ORIGINAL, None, depth, tower)
    paths = [path for path in sorted(params) if tower_is_inside or not path.startswith("vision/")]
    with new_folder(folder) as partial:
        tensors = [tensor for path in paths for tensor in torch_tensors(mappings[path], params[path], dtype)]
        write_tensors(partial, tensors, shard_bytes)
        if jax.process_index() == 0:
            copy_tokenizer(partial, tokenizer, tokenizer_path, config.llm.max_positions)
            (partial / "config.json").write_text(json.dumps(config_json, indent=2), encoding="utf-8")


def to_original(
    config: ModelConfig, dtype: str, aspect: str, known: dict, tower_is_inside: bool, wraps_images: bool
) -> dict:
    """The original's config.json; read back, it gives the same architectures.

    The keys that say whether words are added for an image must be there: the original takes their absence for a yes.
    """
    vision, llm = config.vision, config.llm
    kind = ("llava_qwen", "LlavaQwenForCausalLM") if llm.qkv_bias else ("llava_llama", "LlavaLlamaForCausalLM")
    selection = dict(select_layer=vision.select_layer, select_feature=vision.select_feature)
    name = next((name for name, c in TOWERS.items() if dataclasses.replace(c, **selection) == vision), None)
    scaling = llm.rope_scaling
    defaults = dict(
        model_type=kind[0], architectures=[kind[1]], use_mm_proj=True, mm_use_im_patch_token=False,
        mm_patch_merge_type="flat", tokenizer_padding_side="right",
        tokenizer_model_max_length=llm.max_positions, tune_mm_mlp_adapter=False, freeze_mm_mlp_adapter=False,
        mm_vision_tower=name or "custom", image_aspect_ratio="square",
    )  # fmt: skip
    required = hf_text(llm) | dict(
        torch_dtype=dtype, mm_use_im_start_end=wraps_images, mm_hidden_size=vision.width,
        mm_projector_type=config.projector,
        mm_vision_select_layer=vision.select_layer, mm_vision_select_feature=vision.select_feature,
    )  # fmt: skip
    if scaling and scaling.kind == "linear":  # under the name that transformers had when LLaVA was made
        required["rope_scaling"] = dict(type="linear", factor=scaling.factor)
    if llm.head_size * llm.heads != llm.width:
        required["head_dim"] = llm.head_size
    if aspect == "pad" or known.get("image_aspect_ratio") == "pad":
        required["image_aspect_ratio"] = "pad" if aspect == "pad" else "square"
    if tower_is_inside:
        required["unfreeze_mm_vision_tower"] = True  # or the original builds the tower too late to fill it
        if known.get("mm_vision_tower", name) not in TOWERS:
            required["vision_config"] = hf_tower(vision)
    stale = ("rope_parameters", "dtype", "sliding_window", "use_sliding_window", "vision_config")
    return defaults | {key: value for key, value in known.items() if key not in stale} | required
