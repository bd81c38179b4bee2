"""Writes a model as transformers' `LlavaForConditionalGeneration` and `AutoProcessor` load it."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from llava_jax.architectures import ModelConfig
from llava_jax.checkpoint.dialects import DIALECTS, torch_rows
from llava_jax.checkpoint.hf_config import to_hf
from llava_jax.checkpoint.hf_processor import processor_files
from llava_jax.checkpoint.torch_files import INDEX
from llava_jax.checkpoint.torch_layout import write
from llava_jax.data.conversation import IMAGE_MARKER
from llava_jax.data.tokenizer import Tokenizer
from llava_jax.errors import DataError

VOCABULARY_AXIS = {"llm/embed/embedding": 0, "llm/head/kernel": 1}
SHARD_BYTES = 5_000_000_000  # as much as transformers puts into one file


def save_hf(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, tokenizer: Tokenizer, dtype: str,
    image_token_id: int | None = None, template: str = "vicuna_v1", aspect: str = "crop",
    shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Writes a whole model into a new folder.

    params: every parameter by path. dtype: float32 | bfloat16 | float16, that of the files. template, aspect: how
    the model was trained, for the chat template and the image processor.

    image_token_id: where the vocabulary has `<image>` already. None: it comes behind the tokenizer's last token, and
    the embedding grows to the next multiple of 64 where it has no row for it, as llava-hf's own conversion does it.

    Every process must call it; process 0 writes. One parameter at a time is gathered, and no more than one file's
    tensors are held. The folder appears when it is complete. Raises DataError where it exists or cannot be written, for
    a model that transformers' classes cannot hold, and for what `processor_files` refuses.
    """
    if image_token_id is None:
        image_token_id = tokenizer.special.get(IMAGE_MARKER, tokenizer.vocab_size)
    vocabulary = config.llm.vocab_size
    if image_token_id >= vocabulary:
        vocabulary = -(-(image_token_id + 1) // 64) * 64
    llm = dataclasses.replace(config.llm, vocab_size=vocabulary)
    about = to_hf(config.vision, llm, config.projector, image_token_id, dtype)
    texts = processor_files(config, tokenizer, image_token_id, template, aspect)
    texts["config.json"] = json.dumps(about, indent=2)
    if folder.exists():
        raise DataError(f"{folder} exists already; choose a new folder")
    partial = folder.with_name(folder.name + ".partial")
    main = jax.process_index() == 0
    try:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        places, total = {}, 0
        for number, shard in enumerate(_shards(_tensors(params, config, vocabulary, dtype), shard_bytes)):
            places |= dict.fromkeys(shard, number)
            total += sum(x.nbytes for x in shard.values())
            if main:
                save_file(shard, partial / f"part-{number}", metadata={"format": "pt"})
        if main:
            _name_shards(partial, places, total)
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8")
            partial.replace(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{folder} cannot be written: {e}") from None


def _tensors(
    params: dict[str, jax.Array], config: ModelConfig, vocabulary: int, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    rows = torch_rows(DIALECTS[0], None, depth=2)
    for path in sorted(params):
        whole = np.asarray(multihost_utils.process_allgather(params[path].astype(dtype), tiled=True))
        if path in VOCABULARY_AXIS:
            whole = _grow(whole, VOCABULARY_AXIS[path], vocabulary)
        yield from write(rows[path], whole).items()
    if config.projector == "linear":  # the second layer that their class has: it changes nothing
        width = config.llm.width
        yield from write(rows["projector/linear_2/kernel"], np.eye(width, dtype=dtype)).items()
        yield from write(rows["projector/linear_2/bias"], np.zeros(width, dtype)).items()


def _grow(table: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Adds words to a table. A new word's row is the mean of the old ones: its logit is the mean of theirs, so it is
    never the most likely."""
    new = size - table.shape[axis]
    if not new:
        return table
    mean = table.astype(np.float32).mean(axis=axis, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, new, axis)], axis)


def _shards(tensors: Iterator[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard, size = {}, 0
    for name, value in tensors:
        if shard and size + value.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += value.nbytes
    yield shard


def _name_shards(folder: Path, places: dict[str, int], total: int) -> None:
    """transformers' names: model.safetensors, or model-00001-of-00003.safetensors and an index."""
    count = max(places.values()) + 1
    if count == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        (folder / f"part-{i}").rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {t: names[i] for t, i in sorted(places.items())}}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
