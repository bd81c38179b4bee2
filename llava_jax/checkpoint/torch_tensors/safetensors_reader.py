"""Reads parts of tensors from safetensors files, as transformers and the original LLaVA write them.

Parts are read, not memory-mapped: a mapped file is loaded page by page and counts as memory while it is mapped.
"""

import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from llava_jax.checkpoint.torch_tensors.transpose import aligned_empty
from llava_jax.checkpoint.torch_tensors.weight_files import weight_files
from llava_jax.errors import DataError
from llava_jax.output.file_kind import wrong_kind

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64}


@dataclasses.dataclass(frozen=True)
class _TensorLocation:
    """Where a tensor is. `dtype`: in safetensors' spelling. `start`: byte offset in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class TorchFiles:
    """A TensorReader of a folder (see `weight_files`) or of one `.safetensors` file. No file stays open. files: reads
    these instead; `path` then only names them in messages.

    Raises DataError for a folder without weights, an index that does not match its files, a broken file or one of
    another kind, and a tensor in two files. safetensors itself checks the header size and that offsets lie inside the
    file.
    """

    def __init__(self, path: Path, files: list[Path] | None = None):
        self.path = path
        self._locations: dict[str, _TensorLocation] = {}
        files = files or weight_files(path, WEIGHTS, "*.safetensors")
        if not files:
            raise DataError(f"{path} holds no .safetensors weights")
        for file in files:
            for name, location in _tensor_locations(file).items():
                if name in self._locations:
                    raise DataError(f"tensor {name} is in both {self._locations[name].file} and {file}")
                self._locations[name] = location

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def names(self) -> list[str]:
        return sorted(self._locations)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._locations[name].shape

    def dtype(self, name: str) -> str:
        code = self._locations[name].dtype
        return FLOATS.get(code, code)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the part `index` of a tensor, in its stored dtype. Raises DataError if that is neither a float dtype
        nor int64 (of position ids), or the file is missing or has become shorter."""
        location = self._locations[name]
        if location.dtype not in DTYPES:
            raise DataError(f"{location.file}: tensor {name} holds {location.dtype}, not one of {', '.join(FLOATS)}")
        dtype = np.dtype(DTYPES[location.dtype])
        try:
            if all(part.indices(n) == (0, n, 1) for part, n in zip(index[1:], location.shape[1:], strict=True)):
                first, stop, _ = index[0].indices(location.shape[0]) if index else (0, 1, 1)
                values = aligned_empty((stop - first, *location.shape[1:]) if index else (), dtype)
                _fill(values, location.file, location.start + first * math.prod(location.shape[1:]) * dtype.itemsize)
                return values
            # Some columns of every row: a temporary map reads only the pages that contain them.
            return np.array(np.memmap(location.file, dtype, "r", location.start, location.shape)[index])
        except (OSError, ValueError) as e:  # ValueError: from numpy, the file is too short to map
            raise DataError(f"{location.file}: tensor {name} cannot be read: {e}") from None


def _tensor_locations(file: Path) -> dict[str, _TensorLocation]:
    """Returns tensor name -> location in one file. Raises DataError if the file is missing or broken."""
    try:
        with safe_open(file, framework="np") as tensors:  # validates the header
            views = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118, not a dict
            types = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
    except FileNotFoundError:
        raise DataError(f"weights file {file} does not exist") from None
    except (SafetensorError, OSError) as e:
        if kind := wrong_kind(file):
            raise DataError(f"{file} {kind}") from None
        raise DataError(f"weights file {file} is broken or not a safetensors file: {e}") from None
    starts = {name: 8 + size + header[name]["data_offsets"][0] for name in views}
    return {name: _TensorLocation(file, *types[name], start) for name, start in starts.items()}


def _fill(target: np.ndarray, file: Path, start: int) -> None:
    """Fills a contiguous array with the bytes from `start`. Raises OSError if the file ends too early."""
    remaining = memoryview(target.reshape(-1).view(np.uint8))
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while remaining:
            count = opened.readinto(remaining)
            if not count:
                raise OSError("the file is shorter than it was when it was opened")
            remaining = remaining[count:]
