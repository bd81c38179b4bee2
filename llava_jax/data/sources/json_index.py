"""Where each row of a big JSON array begins and ends: found once, in pieces, and kept in a file.

The index is int64[rows, 3]: the bytes [start, end) of a row and the `id_hash` of its id, 24 bytes a row. It lies beside
the JSON as NAME.index.npz, or, where that folder cannot be written, in $XDG_CACHE_HOME/llava_jax (default ~/.cache).
It belongs to one size and modification time of the JSON; an index of another, a damaged one, or one that cannot be true
is made anew. Whoever reads a row checks it again: an index that lies does no harm.
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
MIN_BYTES_KEPT = 8 << 20  # bytes; a smaller JSON is indexed again in less than a second
CHUNK_BYTES = 4 << 20  # bytes read at a time
MAX_ROW_CHARS = 32 << 20  # characters
WHITESPACE = re.compile(r"[ \t\r\n]*")

Stamp = tuple[int, int]  # size, time of the last change in ns


def stamp(file) -> Stamp:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def open_index(path: Path, broken: dict[int, DataError] | None = None) -> tuple[np.ndarray, Stamp]:
    """The index of a JSON file, int64[rows, 3], and the stamp of the file that it belongs to.

    The first time every row is parsed and checked, with at most a few pieces of the file in memory. Raises DataError
    that names the file and the row.

    broken: is filled with what is wrong with the rows that are no JSON, and then nothing else about rows is checked,
    no hash made (it is -1) and nothing kept. Such a row has no bytes; the next thing that looks like a row follows it.
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
                log(f"{path}: making the index of {file_stamp[0] / 1e6:,.0f} MB, once", to_stderr=True)
            rows = _scan(file, path, broken)
            if stamp(file) != file_stamp:
                raise DataError(f"{path}: changed while it was read. Start again when it is complete.")
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({os.strerror(fault.errno)}). Check the path.") from None
    if index_files and broken is None and not any(_write_index(file, rows, file_stamp) for file in index_files):
        folders = f"{index_files[0].parent} or {index_files[1].parent}"
        log(f"{path}: its index cannot be kept in {folders}; the next start makes it", to_stderr=True)
    return rows, file_stamp


def _index_files(path: Path) -> list[Path]:
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava_jax"
    path_hash = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return [path.with_name(f"{path.name}.index.npz"), cache_folder / f"{path_hash}.index.npz"]


def _read_index(index_file: Path, file_stamp: Stamp) -> np.ndarray | None:
    """The kept index, None where there is none, or it is of another file, or it cannot be true."""
    try:
        with np.load(index_file, allow_pickle=False) as archive:  # a zip: its checksums are verified
            if archive["stamp"].tolist() != [VERSION, *file_stamp]:
                return None
            rows = archive["rows"]
    except Exception:  # numpy and zipfile raise anything; whatever is wrong with it, it is made anew
        return None
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        return None
    starts, ends, hashes = rows.T
    in_order = (starts < ends).all() and (ends[:-1] < starts[1:]).all() and starts[0] > 0 and ends[-1] < file_stamp[0]
    return rows if in_order and (hashes >= 0).all() and (hashes < 2**48).all() else None


def _write_index(index_file: Path, rows: np.ndarray, file_stamp: Stamp) -> bool:
    """Whole or not at all; several processes may do it at once."""
    partial_file = index_file.with_name(f"{index_file.name}.{uuid.uuid4().hex}.partial")
    try:
        index_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(index_file, partial_file) as partial, open(partial, "xb") as file:
            np.savez(file, stamp=np.array([VERSION, *file_stamp], np.int64), rows=rows)
        return True
    except OSError:
        return False


class _TextReader:
    """The text of a file of which a piece is held. `at` is how far it is consumed; `byte` is that place in the file."""

    def __init__(self, file, path: Path):
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.position, self.byte_offset, self.bytes_read = "", 0, 0, 0
        self.line, self.column = 1, 1  # of text[0], as json counts them

    def read_more(self) -> bool:
        """Forgets what is consumed and reads on. False at the end of the file."""
        chunk = self.file.read(CHUNK_BYTES)
        pending_bytes = len(self.decoder.getstate()[0])  # bytes of a character that the last piece cut in two
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
        """The next character that is no space, unconsumed; "" at the end of the file."""
        while True:
            self.consume(WHITESPACE.match(self.text, self.position).end())
            if self.position < len(self.text) or not self.read_more():
                return self.text[self.position : self.position + 1]

    def read_value(self, decoder: json.JSONDecoder, where: str):
        """The JSON value that begins here, consumed."""
        while True:
            fault = None
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                fault = error
            except RecursionError:
                raise DataError(f"{where}: nested too deeply.", "broken JSON") from None
            # What is broken, or ends with the piece, may go on in the next.
            if (fault or end == len(self.text)) and len(self.text) - self.position < MAX_ROW_CHARS and self.read_more():
                continue
            if fault is None:
                self.consume(end)
                return value
            column = fault.colno + (self.column - 1 if fault.lineno == 1 else 0)
            position = f"line {self.line + fault.lineno - 1} column {column}"
            is_long = len(self.text) - self.position >= MAX_ROW_CHARS
            hint = f" (or a row beyond {MAX_ROW_CHARS >> 20} MB)" if is_long else ""
            message = f"{where}: broken JSON at {position}: {fault.msg}{hint}. Is the download complete?"
            raise DataError(message, "broken JSON")

    def has_next(self, where: str) -> bool:
        """Consumes the comma behind a row, or the end of the array."""
        separator = self.peek()
        if separator not in (",", "]"):
            raise DataError(f"{where}: no comma or ] behind it. Is the download complete?", "broken JSON")
        self.consume(self.position + 1)
        if self.peek() and separator == "]":
            raise DataError(f"{self.path}: text behind the end of the array. Two files glued together?", "broken JSON")
        return separator == ","

    def skip_to_row(self, decoder: json.JSONDecoder) -> bool:
        """Consumes all before the next object that has conversations (turns are objects, too). False without one."""
        while True:
            brace = self.text.find("{", self.position)
            self.consume(brace if brace >= 0 else len(self.text))
            # What begins here may go on in the next piece.
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
    """Parses and checks every row -> int64[rows, 3]; for `broken` see `open_index`."""
    text, decoder, rows = _TextReader(file, path), json.JSONDecoder(), array.array("q")
    if text.peek() == "\ufeff":  # a byte order mark
        text.consume(text.position + 1)
    opening = text.peek()
    if opening != "[":
        problem = "not a JSON array" if opening else "empty"
        raise DataError(f"{path}: {problem}; expected one array of samples: [{{...}}, {{...}}] (not JSON Lines).")
    text.consume(text.position + 1)
    if text.peek() == "]":
        raise DataError(f"{path}: an array without samples.")
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
            if broken is None or fault.kind != "broken JSON":  # what is no text holds no rows
                raise
            broken[len(rows) // 3] = fault
            rows.extend((text.byte_offset, text.byte_offset, -1))
            is_row_next = text.skip_to_row(decoder)
    return np.frombuffer(rows, np.int64).reshape(-1, 3)
