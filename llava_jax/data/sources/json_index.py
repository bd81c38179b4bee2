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
KEPT_FROM = 8 << 20  # bytes; a smaller JSON is indexed again in less than a second
PIECE = 4 << 20  # bytes read at a time
MAX_ROW = 32 << 20  # characters
SPACE = re.compile(r"[ \t\r\n]*")

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
            now = stamp(file)
            places = _places(path) if now[0] >= KEPT_FROM else []
            for place in places:
                rows = _read(place, now)
                if rows is not None:
                    return rows, now
            if places and broken is None:
                log(f"{path}: making the index of {now[0] / 1e6:,.0f} MB, once", to_stderr=True)
            rows = _scan(file, path, broken)
            if stamp(file) != now:
                raise DataError(f"{path}: changed while it was read. Start again when it is complete.")
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({os.strerror(fault.errno)}). Check the path.") from None
    if places and broken is None and not any(_write(place, rows, now) for place in places):
        folders = f"{places[0].parent} or {places[1].parent}"
        log(f"{path}: its index cannot be kept in {folders}; the next start makes it", to_stderr=True)
    return rows, now


def _places(path: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava_jax"
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return [path.with_name(f"{path.name}.index.npz"), cache / f"{name}.index.npz"]


def _read(place: Path, now: Stamp) -> np.ndarray | None:
    """The kept index, None where there is none, or it is of another file, or it cannot be true."""
    try:
        with np.load(place, allow_pickle=False) as kept:  # a zip: its checksums are verified
            if kept["stamp"].tolist() != [VERSION, *now]:
                return None
            rows = kept["rows"]
    except Exception:  # numpy and zipfile raise anything; whatever is wrong with it, it is made anew
        return None
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        return None
    starts, ends, hashes = rows.T
    in_order = (starts < ends).all() and (ends[:-1] < starts[1:]).all() and starts[0] > 0 and ends[-1] < now[0]
    return rows if in_order and (hashes >= 0).all() and (hashes < 2**48).all() else None


def _write(place: Path, rows: np.ndarray, now: Stamp) -> bool:
    """Whole or not at all; several processes may do it at once."""
    own_partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place, own_partial) as partial, open(partial, "xb") as file:
            np.savez(file, stamp=np.array([VERSION, *now], np.int64), rows=rows)
        return True
    except OSError:
        return False


class _Text:
    """The text of a file of which a piece is held. `at` is how far it is consumed; `byte` is that place in the file."""

    def __init__(self, file, path: Path):
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.byte, self.read = "", 0, 0, 0
        self.line, self.column = 1, 1  # of text[0], as json counts them

    def more(self) -> bool:
        """Forgets what is consumed and reads on. False at the end of the file."""
        piece = self.file.read(PIECE)
        behind = len(self.decoder.getstate()[0])  # bytes of a character that the last piece cut in two
        try:
            new = self.decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as fault:
            place = self.read - behind + fault.start
            raise DataError(f"{self.path}: not UTF-8 text (byte {place}). Save it as UTF-8.") from None
        if not piece:
            return False
        self.read += len(piece)
        newlines = self.text.count("\n", 0, self.at)
        self.line += newlines
        self.column = self.at - self.text.rfind("\n", 0, self.at) if newlines else self.column + self.at
        self.text, self.at = self.text[self.at :] + new, 0
        return True

    def consume(self, end: int) -> None:
        self.byte += len(self.text[self.at : end].encode())
        self.at = end

    def peek(self) -> str:
        """The next character that is no space, unconsumed; "" at the end of the file."""
        while True:
            self.consume(SPACE.match(self.text, self.at).end())
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self, decoder: json.JSONDecoder, where: str):
        """The JSON value that begins here, consumed."""
        while True:
            fault = None
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                fault = error
            except RecursionError:
                raise DataError(f"{where}: nested too deeply.", "broken JSON") from None
            # What is broken, or ends with the piece, may go on in the next.
            if (fault or end == len(self.text)) and len(self.text) - self.at < MAX_ROW and self.more():
                continue
            if fault is None:
                self.consume(end)
                return value
            column = fault.colno + (self.column - 1 if fault.lineno == 1 else 0)
            place = f"line {self.line + fault.lineno - 1} column {column}"
            long = f" (or a row beyond {MAX_ROW >> 20} MB)" if len(self.text) - self.at >= MAX_ROW else ""
            message = f"{where}: broken JSON at {place}: {fault.msg}{long}. Is the download complete?"
            raise DataError(message, "broken JSON")

    def has_next(self, where: str) -> bool:
        """Consumes the comma behind a row, or the end of the array."""
        separator = self.peek()
        if separator not in (",", "]"):
            raise DataError(f"{where}: no comma or ] behind it. Is the download complete?", "broken JSON")
        self.consume(self.at + 1)
        if self.peek() and separator == "]":
            raise DataError(f"{self.path}: text behind the end of the array. Two files glued together?", "broken JSON")
        return separator == ","

    def skip_to_row(self, decoder: json.JSONDecoder) -> bool:
        """Consumes all before the next object that has conversations (turns are objects, too). False without one."""
        while True:
            brace = self.text.find("{", self.at)
            self.consume(brace if brace >= 0 else len(self.text))
            # What begins here may go on in the next piece.
            if len(self.text) - self.at < MAX_ROW and self.more():
                continue
            if brace < 0:
                return False
            try:
                row, _ = decoder.raw_decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError):
                row = {}
            if "conversations" in row:
                return True
            self.consume(self.at + 1)


def _scan(file, path: Path, broken: dict[int, DataError] | None) -> np.ndarray:
    """Parses and checks every row -> int64[rows, 3]; for `broken` see `open_index`."""
    text, decoder, rows = _Text(file, path), json.JSONDecoder(), array.array("q")
    if text.peek() == "\ufeff":  # a byte order mark
        text.consume(text.at + 1)
    first = text.peek()
    if first != "[":
        what = "not a JSON array" if first else "empty"
        raise DataError(f"{path}: {what}; expected one array of samples: [{{...}}, {{...}}] (not JSON Lines).")
    text.consume(text.at + 1)
    if text.peek() == "]":
        raise DataError(f"{path}: an array without samples.")
    is_row_next = True
    while is_row_next:
        where = f"{path}: row {len(rows) // 3}"
        try:
            text.peek()
            start = text.byte
            row = text.value(decoder, where)
            hashed = id_hash(parse_row(row, where)[0]) if broken is None else -1
            rows.extend((start, text.byte, hashed))
            is_row_next = text.has_next(where)
        except DataError as fault:
            if broken is None or fault.kind != "broken JSON":  # what is no text holds no rows
                raise
            broken[len(rows) // 3] = fault
            rows.extend((text.byte, text.byte, -1))
            is_row_next = text.skip_to_row(decoder)
    return np.frombuffer(rows, np.int64).reshape(-1, 3)
