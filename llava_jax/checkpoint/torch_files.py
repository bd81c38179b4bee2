"""The tensors of a folder of safetensors files, read part by part, as transformers and the original LLaVA write them.

Only one file is open at a time: pages of a mapped file count as memory for as long as it is mapped.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from llava_jax.errors import DataError

INDEX = "model.safetensors.index.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TorchFiles:
    """Names, shapes and parts of the tensors of a folder or of one `.safetensors` file.

    Raises DataError for a folder without weights, an index that does not fit its files, a broken file, and a tensor in
    two files. safetensors itself checks the header's size and that the offsets lie inside the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._open: tuple[Path, object] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        found = weight_files(path, INDEX, "*.safetensors")
        if not found:
            raise DataError(f"{path} holds no .safetensors weights")
        for file in found:
            tensors = self._tensors(file)
            for name in tensors.keys():  # noqa: SIM118, not a dict
                if name in self._files:
                    raise DataError(f"tensor {name} is in both {self._files[name]} and {file}")
                view = tensors.get_slice(name)
                self._files[name], self._shapes[name] = file, tuple(view.get_shape())
                self._dtypes[name] = FLOATS.get(view.get_dtype(), "float32")  # `read` refuses what is not among them
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        return self._dtypes[name]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a tensor, in the dtype of the file. Raises DataError where it does not hold numbers."""
        file = self._files[name]
        try:
            view = self._tensors(file).get_slice(name)
            if view.get_dtype() not in FLOATS:
                raise DataError(f"{file}: tensor {name} holds {view.get_dtype()}, not one of {', '.join(FLOATS)}")
            return np.asarray(view[index])
        except SafetensorError as e:
            raise DataError(f"{file}: tensor {name} cannot be read: {e}") from None

    def close(self) -> None:
        """Unmaps the open file; the next `read` opens what it needs."""
        self._open = None

    def _tensors(self, file: Path):
        if self._open is None or self._open[0] != file:
            self._open = None  # unmap before mapping the next
            try:
                self._open = (file, safe_open(file, framework="np"))
            except FileNotFoundError:
                raise DataError(f"weights file {file} does not exist") from None
            except (SafetensorError, OSError) as e:
                raise DataError(f"weights file {file} is broken or not a safetensors file: {e}") from None
        return self._open[1]


def weight_files(path: Path, index_name: str, pattern: str) -> list[Path]:
    """The files of a checkpoint: `path` itself if it is one, those that the folder's index names, else all that match
    `pattern`; empty where there are none. Raises DataError for a broken index, and one that leaves its folder."""
    if path.is_file():
        return [path]
    index = path / index_name
    if not index.exists():
        return sorted(path.glob(pattern))
    try:
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise DataError(f"{index} is not an index of weights files: {e!r}") from None
    for name in wanted:
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            raise DataError(f"{index} names {name!r}, which is not a file beside it")
    return [path / name for name in sorted(wanted)]
