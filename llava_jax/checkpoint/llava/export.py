"""Exports a model in the original LLaVA's format (`LlavaLlamaForCausalLM`), as safetensors.

The tower is included (`model.vision_tower.vision_tower.*`), unless the model was read from an original without a tower
and a separate tower folder. The original's code builds towers by name; a tower with another shape is described by
`vision_config`, our own key, which the original ignores.
"""

import dataclasses
import json
from pathlib import Path

import jax

from llava_jax.checkpoint.chat_templates import CHAT_TEMPLATE
from llava_jax.checkpoint.huggingface.config import projector_activation
from llava_jax.checkpoint.huggingface.processor import chat_template
from llava_jax.checkpoint.huggingface.text_config import hf_text
from llava_jax.checkpoint.huggingface.vision_config import TOWERS, hf_tower
from llava_jax.checkpoint.new_folder import check_new, new_folder
from llava_jax.checkpoint.tokenizer import copy_tokenizer
from llava_jax.checkpoint.torch_tensors.dialects import DIALECTS, torch_mappings
from llava_jax.checkpoint.torch_tensors.safetensors_writer import SHARD_BYTES, files_dtype, torch_tensors, write_tensors
from llava_jax.config.architectures import ModelConfig, projector_depth
from llava_jax.errors import DataError
from llava_jax.text.chat_template import bos_and_eos
from llava_jax.text.templates import DEFAULT_TEMPLATE, find_template
from llava_jax.text.tokenizer import Tokenizer

ORIGINAL = next(dialect for dialect in DIALECTS if dialect.name == "original")


def save_original(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, tokenizer: Tokenizer, tokenizer_path: Path | None,
    dtype: str | None, aspect: str = "crop", known: dict | None = None, tower: str | None = None,
    tower_is_inside: bool = True, wraps_images: bool = False, template: str = DEFAULT_TEMPLATE,
    shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Writes a whole model into a new folder.

    params, dtype: see `save_hf`. tokenizer_path: the tokenizer's files to copy; None: they are generated.
    known: config.json of the original that the model was read from; keys that do not contradict the model are kept.
    tower: prefix of its tensor names, None: the default. tower_is_inside: False omits it. wraps_images, template: as in
    training. The original chooses its template by the model's name; ours is written as a chat template, for `load`.

    Every process must call it; process 0 writes. One tensor is gathered at a time. The folder appears when it is
    complete. Raises DataError if it exists or cannot be written.
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
            has_own = tokenizer.chat_template or (partial / CHAT_TEMPLATE).exists()
            if (template != DEFAULT_TEMPLATE or has_own) and not find_template(template).text_is_dropped:
                jinja = chat_template(template, wraps_images, *bos_and_eos(tokenizer))
                (partial / CHAT_TEMPLATE).write_text(jinja, encoding="utf-8")


def to_original(
    config: ModelConfig, dtype: str, aspect: str, known: dict, tower_is_inside: bool, wraps_images: bool
) -> dict:
    """Returns the original's config.json; reading it gives the same architectures.

    `mm_use_im_start_end` and `mm_use_im_patch_token` are always written: the original reads their absence as true.
    Raises DataError for a projector that the original lacks.
    """
    vision, llm = config.vision, config.llm
    if projector_activation(config.projector) not in ("gelu", "linear"):
        raise DataError(f"the original's projectors have GELUs; {config.projector} cannot be written for it")
    is_qwen2 = llm.qkv_bias and not llm.o_bias
    kind = ("llava_qwen", "LlavaQwenForCausalLM") if is_qwen2 else ("llava_llama", "LlavaLlamaForCausalLM")
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
    if scaling and scaling.kind in ("linear", "dynamic"):  # the key of the transformers version that LLaVA uses
        required["rope_scaling"] = dict(type=scaling.kind, factor=scaling.factor)
    if llm.head_size * llm.heads != llm.width:
        required["head_dim"] = llm.head_size
    if aspect == "pad" or known.get("image_aspect_ratio") == "pad":
        required["image_aspect_ratio"] = "pad" if aspect == "pad" else "square"
    if tower_is_inside:
        required["unfreeze_mm_vision_tower"] = True  # else the original builds the tower after loading weights
        if known.get("mm_vision_tower", name) not in TOWERS:
            required["vision_config"] = hf_tower(vision)
    stale = ("rope_parameters", "dtype", "sliding_window", "use_sliding_window", "vision_config", "attention_bias",
             "mlp_bias", "layer_types", "original_max_position_embeddings")  # fmt: skip
    return defaults | {key: value for key, value in known.items() if key not in stale} | required
