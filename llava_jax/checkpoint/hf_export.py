"""Writes a model's weights and config.json as transformers' `LlavaForConditionalGeneration` loads them."""

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
from llava_jax.checkpoint.torch_files import INDEX
from llava_jax.checkpoint.torch_layout import write
from llava_jax.errors import DataError

SHARD_BYTES = 5_000_000_000  # as much as transformers puts into one file


def save_hf(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, image_token_id: int, dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """params: every parameter by path. dtype: float32 | bfloat16 | float16, that of the files.

    Every process must call it; process 0 writes. One parameter at a time is gathered, and no more than one file's
    tensors are held. The folder appears when it is complete. Raises DataError where it exists or cannot be written, and
    for a model that transformers' classes cannot hold.
    """
    about = to_hf(config.vision, config.llm, config.projector, image_token_id, dtype)
    if folder.exists():
        raise DataError(f"{folder} exists already; choose a new folder")
    partial = folder.with_name(folder.name + ".partial")
    main = jax.process_index() == 0
    try:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        places, total = {}, 0
        for number, shard in enumerate(_shards(_tensors(params, config, dtype), shard_bytes)):
            places |= dict.fromkeys(shard, number)
            total += sum(x.nbytes for x in shard.values())
            if main:
                save_file(shard, partial / f"part-{number}", metadata={"format": "pt"})
        if main:
            _name_shards(partial, places, total)
            (partial / "config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
            partial.replace(folder)
    except (OSError, SafetensorError) as e:
        raise DataError(f"{folder} cannot be written: {e}") from None


def _tensors(params: dict[str, jax.Array], config: ModelConfig, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    rows = torch_rows(DIALECTS[0], None, depth=2)
    for path in sorted(params):
        whole = multihost_utils.process_allgather(params[path].astype(dtype), tiled=True)
        yield from write(rows[path], np.asarray(whole)).items()
    if config.projector == "linear":  # the second layer that their class has: it changes nothing
        width = config.llm.width
        yield from write(rows["projector/linear_2/kernel"], np.eye(width, dtype=dtype)).items()
        yield from write(rows["projector/linear_2/bias"], np.zeros(width, dtype)).items()


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
