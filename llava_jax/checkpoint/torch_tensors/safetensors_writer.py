"""Writes safetensors files in torch's layout, holding one tensor in memory at a time.

The header contains every tensor's offset and comes first. Offsets are therefore computed from shapes; then each tensor
is gathered, converted to torch's layout, written and freed.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from llava_jax.checkpoint.torch_tensors.name_map import TensorMapping, tensor_names, torch_shape
from llava_jax.checkpoint.torch_tensors.safetensors_reader import FLOATS, INDEX
from llava_jax.checkpoint.torch_tensors.transpose import to_torch

SHARD_BYTES = 5_000_000_000  # transformers' default
CODES = {dtype: code for code, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`dtype`: float32 | bfloat16 | float16. `value()` returns the array; every process must call it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def torch_tensors(mapping: TensorMapping, param: jax.Array, dtype: str | None) -> list[Tensor]:
    """Returns the torch tensors of a parameter, one per layer if it is stacked. dtype: None for its own."""
    dtype = dtype or param.dtype.name
    shape = param.shape[1:] if mapping.stacked else param.shape

    def value(layer: int) -> np.ndarray:
        layer_param = param[layer] if mapping.stacked else param
        return to_torch(mapping.groups, gather_tensor(layer_param).astype(dtype, copy=False))

    return [
        Tensor(name, torch_shape(mapping.groups, shape), dtype, lambda i=i: value(i))
        for i, name in enumerate(tensor_names(mapping, param.shape))
    ]


def gather_tensor(x: jax.Array) -> np.ndarray:
    """Returns the whole array on this host. Every process must call it."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def files_dtype(params: Iterable[jax.Array], dtype: str | None) -> str:
    """Returns the dtype for config.json: that of all tensors, or float32 if they differ."""
    dtypes = {dtype} if dtype else {x.dtype.name for x in params}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def write_tensors(folder: Path, tensors: Sequence[Tensor], max_bytes: int) -> None:
    """Writes model.safetensors, or shards model-00001-of-00003.safetensors ... and their index. A shard has up to
    `max_bytes`, unless a single tensor is larger. Process 0 writes. Raises OSError."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > max_bytes:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors" for i in range(count)]
    for file, shard in zip(files, shards, strict=True):
        _write_file(folder / file, shard)
    if count > 1 and jax.process_index() == 0:
        weight_map = {t.name: file for file, shard in zip(files, shards, strict=True) for t in shard}
        total = sum(tensor.bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_file(file: Path, tensors: list[Tensor]) -> None:
    tensors = sorted(tensors, key=lambda t: -np.dtype(t.dtype).itemsize)  # aligns every tensor to its item size
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for t in tensors:
        start, end = end, end + t.bytes
        header[t.name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    is_main = jax.process_index() == 0
    if is_main:
        file.write_bytes(len(text).to_bytes(8, "little") + text)
    for t in tensors:
        value = t.value()
        assert (value.shape, value.dtype.name) == (t.shape, t.dtype), t.name
        if is_main:
            with file.open("ab") as f:
                f.write(value.reshape(-1).view(np.uint8))
