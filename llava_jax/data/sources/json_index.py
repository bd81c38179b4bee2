"""An index of the rows of a large JSON array or of JSON Lines, built once by `json_scan` and stored in a file.

The index is int64[rows, 4]: the byte range [start, end) of a row, the `id_hash` of its id, and its line (0 in an
array), 32 bytes per row. It is stored beside the JSON as NAME.index.npz, or in $XDG_CACHE_HOME/llava_jax (default
~/.cache) if that folder is not writable. It is valid for one size and modification time of the JSON; an outdated,
damaged or implausible index is rebuilt. Each row is checked again when it is read, so a wrong index does no harm.
"""

import dataclasses
import hashlib
import os
import uuid
from pathlib import Path

import numpy as np

from llava_jax.data.sources.json_scan import RowTable, scan_rows
from llava_jax.errors import DataError
from llava_jax.output.console import log
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import atomic_path, similar_name

VERSION = 2
MIN_BYTES_KEPT = 8 << 20  # of a JSON whose index is stored; a smaller one is indexed in less than a second

Stamp = tuple[int, int]  # size in bytes, modification time in ns


@dataclasses.dataclass(frozen=True)
class RowIndex:
    """rows: int64[rows, 4], see above. stamp: of the file. names_image: the first row with an image, as (its name in
    messages, the image); None if there is none."""

    rows: np.ndarray
    stamp: Stamp
    names_image: tuple[str, str] | None = None


def stamp(file) -> Stamp:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def open_index(path: Path, broken: dict[int, DataError] | None = None) -> RowIndex:
    """Returns the index of a JSON file.

    The first time, every row is parsed and checked, with a few chunks of the file in memory. DataError names the row.

    broken: if given, it receives the error of each row that is not JSON. Rows are then not checked otherwise, hashes
    are -1, and no index is stored. A broken row has an empty byte range; the scan continues at what looks like a row.
    """
    if path.exists() and not path.is_file():  # a pipe: rows are read in random order
        raise DataError(f"{path}: cannot be read (not a regular file). Write it to a file first.")
    try:
        with open(path, "rb") as file:
            file_stamp = stamp(file)
            index_files = _index_files(path) if file_stamp[0] >= MIN_BYTES_KEPT else []
            for index_file in index_files:
                if index := _read_index(index_file, file_stamp):
                    return index
            if kind := wrong_kind(path):
                raise DataError(f"{path} {kind}")
            if index_files and broken is None:
                log(f"{path}: indexing {file_stamp[0] / 1e6:,.0f} MB, once", to_stderr=True)
            table = RowTable(path, broken)
            scan_rows(file, table)
            if stamp(file) != file_stamp:
                raise DataError(f"{path}: changed while it was read. Run the command again when the file is complete.")
    except OSError as fault:
        problem = f"{os.strerror(fault.errno)}{similar_name(path)}"
        raise DataError(f"{path}: cannot be read ({problem}). Check the path.") from None
    index = RowIndex(table.numbers(), file_stamp, table.names_image)
    if index_files and broken is None and not any(_write_index(file, index) for file in index_files):
        folders = f"{index_files[0].parent} or {index_files[1].parent}"
        log(f"{path}: its index cannot be stored in {folders}; the next start rebuilds it", to_stderr=True)
    return index


def _index_files(path: Path) -> list[Path]:
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava_jax"
    path_hash = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return [path.with_name(f"{path.name}.index.npz"), cache_folder / f"{path_hash}.index.npz"]


def _read_index(index_file: Path, file_stamp: Stamp) -> RowIndex | None:
    """Returns the stored index; None if it is missing, damaged, outdated or implausible."""
    try:
        with np.load(index_file, allow_pickle=False) as archive:  # a zip file, whose checksums are verified
            if archive["stamp"].tolist() != [VERSION, *file_stamp]:
                return None
            rows, names_image = archive["rows"], tuple(archive["names_image"].tolist())
    except Exception:  # numpy and zipfile raise anything; the index is rebuilt in any case
        return None
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
        return None
    starts, ends, hashes, _ = rows.T
    in_order = (starts < ends).all() and (ends[:-1] < starts[1:]).all() and starts[0] >= 0 and ends[-1] <= file_stamp[0]
    if not (in_order and (hashes >= 0).all() and (hashes < 2**48).all() and len(names_image) in (0, 2)):
        return None
    return RowIndex(rows, file_stamp, names_image or None)


def _write_index(index_file: Path, index: RowIndex) -> bool:
    """Writes the index atomically -> whether it worked. Several processes may write it at the same time."""
    partial_file = index_file.with_name(f"{index_file.name}.{uuid.uuid4().hex}.partial")
    try:
        index_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(index_file, partial_file) as partial, open(partial, "xb") as file:
            names = np.array(index.names_image or (), np.str_)
            np.savez(file, stamp=np.array([VERSION, *index.stamp], np.int64), rows=index.rows, names_image=names)
        return True
    except OSError:
        return False
