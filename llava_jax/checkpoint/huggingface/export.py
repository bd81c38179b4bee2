"""Exports a model for transformers' `LlavaForConditionalGeneration` and `AutoProcessor`."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from llava_jax.checkpoint.huggingface.config import to_hf
from llava_jax.checkpoint.huggingface.processor import processor_files
from llava_jax.checkpoint.new_folder import check_new, new_folder
from llava_jax.checkpoint.torch_tensors.dialects import DIALECTS, torch_mappings
from llava_jax.checkpoint.torch_tensors.name_map import TensorMapping
from llava_jax.checkpoint.torch_tensors.safetensors_writer import (
    SHARD_BYTES,
    Tensor,
    files_dtype,
    gather_tensor,
    torch_tensors,
    write_tensors,
)
from llava_jax.checkpoint.torch_tensors.transpose import to_torch
from llava_jax.config.architectures import ModelConfig
from llava_jax.text.templates import IMAGE_MARKER
from llava_jax.text.tokenizer import Tokenizer

VOCABULARY_AXIS = {"llm/embed/embedding": 0, "llm/head/kernel": 1}


def save_hf(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, tokenizer: Tokenizer, dtype: str | None,
    image_token_id: int | None = None, template: str = "vicuna_v1", aspect: str = "crop",
    shard_bytes: int = SHARD_BYTES, tower: str | None = None, wraps_images: bool = False,
) -> None:  # fmt: skip
    """Writes a whole model into a new folder.

    params: every parameter by path. dtype: float32 | bfloat16 | float16 of the files; None: each parameter's own.
    template, aspect, wraps_images: as in training, for the chat template and the image processor. tower: prefix of the
    tower's tensor names, None for that of llava-hf's files.

    image_token_id: the id of `<image>` if the vocabulary has it. None: it follows the tokenizer's last token, and an
    embedding without a row for it grows to the next multiple of 64, as in llava-hf's own conversion.

    Every process must call it; process 0 writes. One tensor is gathered at a time. The folder appears when it is
    complete. Raises DataError if it exists or cannot be written, for a model that transformers' classes cannot
    represent, and as `processor_files` does.
    """
    check_new(folder)
    if image_token_id is None:
        image_token_id = tokenizer.special.get(IMAGE_MARKER, tokenizer.vocab_size)
    vocabulary = config.llm.vocab_size
    if image_token_id >= vocabulary:
        vocabulary = -(-(image_token_id + 1) // 64) * 64
    llm = dataclasses.replace(config.llm, vocab_size=vocabulary)
    config_json = to_hf(config.vision, llm, config.projector, image_token_id, files_dtype(params.values(), dtype))
    texts = processor_files(config, tokenizer, image_token_id, template, aspect, wraps_images)
    texts["config.json"] = json.dumps(config_json, indent=2)
    tensors = list(_tensors(params, config, vocabulary, dtype, tower))
    with new_folder(folder) as partial:
        write_tensors(partial, tensors, shard_bytes)
        if jax.process_index() == 0:
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8")


def _tensors(
    params: dict[str, jax.Array], config: ModelConfig, vocabulary: int, dtype: str | None, tower: str | None
) -> Iterator[Tensor]:
    mappings = torch_mappings(DIALECTS[0], None, depth=2, tower=tower)
    for path in sorted(params):
        if path in VOCABULARY_AXIS and params[path].shape[VOCABULARY_AXIS[path]] != vocabulary:
            yield _resized_vocabulary(mappings[path], params[path], VOCABULARY_AXIS[path], vocabulary, dtype)
        else:
            yield from torch_tensors(mappings[path], params[path], dtype)
    if config.projector == "linear":  # transformers' class has a second layer: the identity
        width, stored = config.llm.width, dtype or params["projector/linear_1/kernel"].dtype.name
        kernel, bias = mappings["projector/linear_2/kernel"].name, mappings["projector/linear_2/bias"].name
        yield Tensor(kernel, (width, width), stored, lambda: np.eye(width, dtype=stored))
        yield Tensor(bias, (width,), stored, lambda: np.zeros(width, stored))


def _resized_vocabulary(mapping: TensorMapping, param: jax.Array, axis: int, size: int, dtype: str | None) -> Tensor:
    """Returns an embedding or head grown to `size` tokens. New rows are the mean of the old ones: their logit is the
    mean logit, so a new token is never the most likely."""
    dtype = dtype or param.dtype.name
    width = param.shape[1 - axis]

    def value() -> np.ndarray:
        table = gather_tensor(param).astype(dtype, copy=False)
        mean = table.astype(np.float32).mean(axis=axis, keepdims=True).astype(dtype)
        return to_torch(mapping.groups, np.concatenate([table, np.repeat(mean, size - table.shape[axis], axis)], axis))

    return Tensor(mapping.name, (size, width), dtype, value)
