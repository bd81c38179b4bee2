"""An index of the rows of a large JSON array, built once by a scan in chunks and stored in a file.

The index is int64[rows, 3]: the byte range [start, end) of a row and the `id_hash` of its id, 24 bytes per row. It is
stored beside the JSON as NAME.index.npz, or in $XDG_CACHE_HOME/llava_jax (default ~/.cache) if that folder is not
writable. It is valid for one size and modification time of the JSON; an outdated, damaged or implausible index is
rebuilt. Each row is checked again when it is read, so a wrong index does no harm.
"""

import array
import codecs
import hashlib
import json
import os
import re
import uuid
from pathlib import Path

import numpy as np

from llava_jax.data.example import id_hash
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import DataError
from llava_jax.output.console import log
from llava_jax.output.files import atomic_path

VERSION = 1
MIN_BYTES_KEPT = 8 << 20  # of a JSON whose index is stored; a smaller one is indexed in less than a second
CHUNK_BYTES = 4 << 20
MAX_ROW_CHARS = 32 << 20
WHITESPACE = re.compile(r"[ \t\r\n]*")

Stamp = tuple[int, int]  # size in bytes, modification time in ns


def stamp(file) -> Stamp:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def open_index(path: Path, broken: dict[int, DataError] | None = None) -> tuple[np.ndarray, Stamp]:
    """Returns the index of a JSON file, int64[rows, 3], and the stamp of the file.

    The first time, every row is parsed and checked, with a few chunks of the file in memory. DataError names the row.

    broken: if given, it receives the error of each row that is not JSON. Rows are then not checked otherwise, hashes
    are -1, and no index is stored. A broken row has an empty byte range; the scan continues at what looks like a row.
    """
    try:
        with open(path, "rb") as file:
            file_stamp = stamp(file)
            index_files = _index_files(path) if file_stamp[0] >= MIN_BYTES_KEPT else []
            for index_file in index_files:
                rows = _read_index(index_file, file_stamp)
                if rows is not None:
                    return rows, file_stamp
            if index_files and broken is None:
                log(f"{path}: indexing {file_stamp[0] / 1e6:,.0f} MB, once", to_stderr=True)
            rows = _scan(file, path, broken)
            if stamp(file) != file_stamp:
                raise DataError(f"{path}: changed while it was read. Run the command again when the file is complete.")
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({os.strerror(fault.errno)}). Check the path.") from None
    if index_files and broken is None and not any(_write_index(file, rows, file_stamp) for file in index_files):
        folders = f"{index_files[0].parent} or {index_files[1].parent}"
        log(f"{path}: its index cannot be stored in {folders}; the next start rebuilds it", to_stderr=True)
    return rows, file_stamp


def _index_files(path: Path) -> list[Path]:
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava_jax"
    path_hash = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return [path.with_name(f"{path.name}.index.npz"), cache_folder / f"{path_hash}.index.npz"]


def _read_index(index_file: Path, file_stamp: Stamp) -> np.ndarray | None:
    """Returns the stored index; None if it is missing, damaged, outdated or implausible."""
    try:
        with np.load(index_file, allow_pickle=False) as archive:  # a zip file, whose checksums are verified
            if archive["stamp"].tolist() != [VERSION, *file_stamp]:
                return None
            rows = archive["rows"]
    except Exception:  # numpy and zipfile raise anything; the index is rebuilt in any case
        return None
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        return None
    starts, ends, hashes = rows.T
    in_order = (starts < ends).all() and (ends[:-1] < starts[1:]).all() and starts[0] > 0 and ends[-1] < file_stamp[0]
    return rows if in_order and (hashes >= 0).all() and (hashes < 2**48).all() else None


def _write_index(index_file: Path, rows: np.ndarray, file_stamp: Stamp) -> bool:
    """Writes the index atomically -> whether it worked. Several processes may write it at the same time."""
    partial_file = index_file.with_name(f"{index_file.name}.{uuid.uuid4().hex}.partial")
    try:
        index_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(index_file, partial_file) as partial, open(partial, "xb") as file:
            np.savez(file, stamp=np.array([VERSION, *file_stamp], np.int64), rows=rows)
        return True
    except OSError:
        return False


class _TextReader:
    """Reads a text file in chunks: `text[position:]` is not yet consumed and starts at `byte_offset` of the file."""

    def __init__(self, file, path: Path):
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.position, self.byte_offset, self.bytes_read = "", 0, 0, 0
        self.line, self.column = 1, 1  # of text[0], counted as json does

    def read_more(self) -> bool:
        """Drops the consumed text and reads another chunk -> False at the end of the file."""
        chunk = self.file.read(CHUNK_BYTES)
        pending_bytes = len(self.decoder.getstate()[0])  # of a character split by the end of the last chunk
        try:
            new_text = self.decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as fault:
            byte_offset = self.bytes_read - pending_bytes + fault.start
            raise DataError(f"{self.path}: not UTF-8 text (byte {byte_offset}). Save it as UTF-8.") from None
        if not chunk:
            return False
        self.bytes_read += len(chunk)
        newlines = self.text.count("\n", 0, self.position)
        self.line += newlines
        last_newline = self.text.rfind("\n", 0, self.position)
        self.column = self.position - last_newline if newlines else self.column + self.position
        self.text, self.position = self.text[self.position :] + new_text, 0
        return True

    def consume(self, end: int) -> None:
        self.byte_offset += len(self.text[self.position : end].encode())
        self.position = end

    def peek(self) -> str:
        """Returns the next character that is not white space, without consuming it; "" at the end of the file."""
        while True:
            self.consume(WHITESPACE.match(self.text, self.position).end())
            if self.position < len(self.text) or not self.read_more():
                return self.text[self.position : self.position + 1]

    def read_value(self, decoder: json.JSONDecoder, where: str):
        """Parses and consumes the next JSON value."""
        while True:
            fault = None
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                fault = error
            except RecursionError:
                raise DataError(f"{where}: nested too deeply.", "broken JSON") from None
            # A value that is broken, or ends with the chunk, may continue in the next chunk.
            if (fault or end == len(self.text)) and len(self.text) - self.position < MAX_ROW_CHARS and self.read_more():
                continue
            if fault is None:
                self.consume(end)
                return value
            column = fault.colno + (self.column - 1 if fault.lineno == 1 else 0)
            position = f"line {self.line + fault.lineno - 1} column {column}"
            is_long = len(self.text) - self.position >= MAX_ROW_CHARS
            hint = f" (or a row of more than {MAX_ROW_CHARS >> 20} MB)" if is_long else ""
            message = f"{where}: broken JSON at {position}: {fault.msg}{hint}. Is the download complete?"
            raise DataError(message, "broken JSON")

    def has_next(self, where: str) -> bool:
        """Consumes the comma after a row, or the end of the array -> whether another row follows."""
        separator = self.peek()
        if separator not in (",", "]"):
            raise DataError(f"{where}: no comma or ] after it. Is the download complete?", "broken JSON")
        self.consume(self.position + 1)
        if self.peek() and separator == "]":
            raise DataError(f"{self.path}: text after the end of the array. Two concatenated files?", "broken JSON")
        return separator == ","

    def skip_to_row(self, decoder: json.JSONDecoder) -> bool:
        """Skips to the next object with "conversations" (turns are objects too) -> False if there is none."""
        while True:
            brace = self.text.find("{", self.position)
            self.consume(brace if brace >= 0 else len(self.text))
            # The object may continue in the next chunk.
            if len(self.text) - self.position < MAX_ROW_CHARS and self.read_more():
                continue
            if brace < 0:
                return False
            try:
                row, _ = decoder.raw_decode(self.text, self.position)
            except (json.JSONDecodeError, RecursionError):
                row = {}
            if "conversations" in row:
                return True
            self.consume(self.position + 1)


def _scan(file, path: Path, broken: dict[int, DataError] | None) -> np.ndarray:
    """Parses and checks every row -> int64[rows, 3]. broken: see `open_index`."""
    text, decoder, rows = _TextReader(file, path), json.JSONDecoder(), array.array("q")
    if text.peek() == "\ufeff":  # a byte order mark
        text.consume(text.position + 1)
    opening = text.peek()
    if opening != "[":
        problem = "not a JSON array" if opening else "empty"
        raise DataError(f"{path}: {problem}; expected one array of samples: [{{...}}, {{...}}] (not JSON Lines).")
    text.consume(text.position + 1)
    if text.peek() == "]":
        raise DataError(f"{path}: the array has no samples.")
    is_row_next = True
    while is_row_next:
        where = f"{path}: row {len(rows) // 3}"
        try:
            text.peek()
            start = text.byte_offset
            row = text.read_value(decoder, where)
            row_hash = id_hash(parse_row(row, where)[0]) if broken is None else -1
            rows.extend((start, text.byte_offset, row_hash))
            is_row_next = text.has_next(where)
        except DataError as fault:
            if broken is None or fault.kind != "broken JSON":  # a file that is not text has no rows
                raise
            broken[len(rows) // 3] = fault
            rows.extend((text.byte_offset, text.byte_offset, -1))
            is_row_next = text.skip_to_row(decoder)
    return np.frombuffer(rows, np.int64).reshape(-1, 3)
