"""Parquet as written by Hugging Face's datasets. Needs pyarrow: pip install 'llava_jax[parquet]'.

Columns: `id`, `conversations` (list of {from, value}) and `image` or `images`: bytes, {bytes, path}, a path, a list of
these, or null. Other columns are not read.

Row groups are read as a whole, so reading examples in random order reads a whole group for each. For training, convert
Parquet to ArrayRecord with `data build`, which reads it once and in order.
"""

import collections
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.files import open_images

COLUMNS = ("id", "image", "images", "conversations")
GROUPS_CACHED = 2


def is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


class ParquetRows:
    """The rows of Parquet files as dicts of `columns`, as far as a file has them. A pickled copy reopens the files.

    Raises DataError for a file that is broken or lacks a column of `required`, for no rows at all, and when a row group
    cannot be read.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], required: Sequence[str], name: Path):
        self.columns = columns
        self._groups = []  # (file, number of the row group, rows)
        for file in files:
            parquet = _open(file)
            names = set(parquet.schema_arrow.names)
            if not set(required) <= names:
                needed, present = " and ".join(required), ", ".join(sorted(names))
                raise DataError(f"{file}: needs the columns {needed}; it has {present}.")
            counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            self._groups += [(file, i, row_count) for i, row_count in enumerate(counts)]
        self._ends = np.cumsum([row_count for _, _, row_count in self._groups])
        if not self._groups or not self._ends[-1]:
            raise DataError(f"{name}: no rows.")
        self._cache, self._lock = collections.OrderedDict(), threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._cache, self._lock = collections.OrderedDict(), threading.Lock()

    def read(self, index: int) -> tuple[dict, str]:
        """Returns (a row, its name in error messages)."""
        index = range(len(self))[index]
        group = int(np.searchsorted(self._ends, index, side="right"))
        file, number, rows = self._groups[group]
        row_in_group = index - int(self._ends[group]) + rows
        row = self._read_group(group).slice(row_in_group, 1).to_pylist()[0]
        return row, f"{file}: row {row_in_group} of group {number}"

    def _read_group(self, group: int):
        """Returns a row group as a table; the last few are cached."""
        with self._lock:  # otherwise several threads would read the same group
            if group not in self._cache:
                file, number, _ = self._groups[group]
                parquet = _open(file)
                columns = [name for name in self.columns if name in parquet.schema_arrow.names]
                try:
                    self._cache[group] = parquet.read_row_group(number, columns=columns)
                except Exception as fault:  # pyarrow's errors derive from many
                    message = f"{file}: group {number} cannot be read ({_first_line(fault)}). Copy it again."
                    raise DataError(message) from None
                while len(self._cache) > GROUPS_CACHED:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]


class ParquetSource:
    """A Parquet file, or the *.parquet files of a folder, sorted by name.

    images: the folder or zip archive of images that rows name but do not contain. The constructor raises DataError for
    a missing column or a broken file; reading raises DataError with the file and the row.
    """

    def __init__(self, path: str | Path, images: str | Path = ""):
        path = Path(path)
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        self.images = open_images(images, path) if images else None
        self.rows = ParquetRows(self.files, COLUMNS, ("id", "conversations"), path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row, where = self.rows.read(index)
        key = "image" if row.get("image") is not None else "images"
        cells = row.get(key)
        cells = [] if cells is None else cells if isinstance(cells, list) else [cells]
        # parse_row needs names; an image of bytes only gets one.
        row[key] = [_image_path(image) or f"image {i}" for i, image in enumerate(cells)] or None
        row_id, turns, names = parse_row(row, where)
        where = f"{where}: sample {row_id!r}"
        images = tuple(self._image(image, name, where) for image, name in zip(cells, names, strict=True))
        return Example(row_id, turns, images)

    def id_hashes(self) -> np.ndarray:
        """Returns int64[n], the `id_hash` of every id, without reading images."""
        ids = (i for file in self.files for i in _open(file).read(columns=["id"])["id"].to_pylist())
        return np.array([id_hash(str(i)) for i in ids], np.int64)

    def _image(self, image, name: str, where: str) -> bytes | Path:
        data = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(data, bytes):
            return data
        if not self.images:
            raise DataError(f"{where}: image {name!r} is not in the file. Pass the image folder or zip archive.")
        return self.images.find(name, where)


def read_columns(file: Path, columns: Sequence[str]) -> list[dict]:
    """Reads some columns of a whole file; "image.path" reads a field of a struct. Raises DataError if it is broken."""
    try:
        return _open(file).read(columns=list(columns)).to_pylist()
    except DataError:
        raise
    except Exception as fault:  # pyarrow's errors derive from many
        raise DataError(f"{file}: cannot be read ({_first_line(fault)}). Copy it again.") from None


def parquet_schema(file: Path):
    """Returns pyarrow's schema. Raises DataError if the file is broken, ConfigError without pyarrow."""
    return _open(file).schema_arrow


def _image_path(image) -> str | None:
    return image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None


def _open(file: Path):
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(f"{file}: Parquet needs pyarrow: pip install 'llava_jax[parquet]'") from None
    try:
        return parquet.ParquetFile(file)
    except Exception as fault:  # pyarrow's errors derive from many
        raise DataError(f"{file}: not a readable Parquet file ({_first_line(fault)}). Copy it again.") from None


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:120]
