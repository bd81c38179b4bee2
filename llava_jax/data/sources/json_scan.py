"""Finds the rows of LLaVA's JSON, which is one array of rows, or JSON Lines: one row a line. Reads in chunks."""

import array
import codecs
import contextlib
import json
import re
from pathlib import Path

import numpy as np

from llava_jax.data.example import id_hash
from llava_jax.data.sources.llava_row import image_names, parse_row
from llava_jax.errors import DataError, harmless
from llava_jax.output.json_text import STRICT, parse_json

CHUNK_BYTES = 4 << 20
MAX_ROW_CHARS = 32 << 20  # of an array's row; of a line, bytes
WHITESPACE = re.compile(r"[ \t\r\n]*")
STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
OBJECT = re.compile(rb"(\xef\xbb\xbf)?\s*\{")  # at the start of a file
CHECK_DOWNLOAD = "Is the download complete?"


class RowTable:
    """The rows of a file as they are added.

    broken: None, or receives the error of each row that is not JSON; rows are then not checked otherwise, and hashes
    are -1. names_image: the first row with an image, as (its name in messages, the image); None if there is none.
    """

    def __init__(self, path: Path, broken: dict[int, DataError] | None):
        self.path, self.broken, self.names_image = path, broken, None
        self._numbers = array.array("q")

    def __len__(self) -> int:
        return len(self._numbers) // 4

    def where(self, line: int = 0) -> str:
        return where_is(self.path, len(self), line)

    def add(self, row, where: str, start: int, end: int, line: int = 0) -> None:
        """Adds a row of the byte range [start, end). Raises DataError for one that is refused (not if lenient)."""
        if not self._numbers and isinstance(row, dict) and "caption" in row and "conversations" not in row:
            raise DataError(
                f"{self.path}: pairs of image and caption, not conversations. Convert them: `python -m llava_jax data "
                "captions` (docs/data.md)."
            )
        row_hash, names = -1, []
        if self.broken is None:
            row_id, _, names = parse_row(row, where)
            row_hash = id_hash(row_id)
        elif self.names_image is None and isinstance(row, dict):
            with contextlib.suppress(DataError):
                names = image_names(row, where)
        if names and self.names_image is None:
            self.names_image = where, names[0]
        self._numbers.extend((start, end, row_hash, line))

    def add_broken(self, fault: DataError, position: int, line: int = 0) -> None:
        """Adds a row that is not JSON, with an empty byte range. Raises `fault` if rows must not be broken."""
        if self.broken is None or fault.kind != "broken JSON":  # a file that is not text has no rows
            raise fault
        self.broken[len(self)] = fault
        self._numbers.extend((position, position, -1, line))

    def numbers(self) -> np.ndarray:
        """Returns int64[rows, 4]: byte range, `id_hash`, and the line (0 in an array)."""
        return np.frombuffer(self._numbers, np.int64).reshape(-1, 4)


def where_is(path: Path, row: int, line: int) -> str:
    """Returns the name of a row in messages. line: counted from 1; 0 in an array."""
    return f"{path}: line {line}" if line else f"{path}: row {row}"


def scan_rows(file, table: RowTable) -> None:
    """Parses every row of the open binary `file` and adds it to `table`, a RowTable or what has its methods.

    Raises DataError for a file that is neither an array nor JSON Lines, or has no rows, and what the table raises for
    a row that it refuses.
    """
    # In JSON Lines bytes that are not UTF-8 concern their line only, so no text is decoded to recognize them.
    is_object = OBJECT.match(file.read(CHUNK_BYTES))
    file.seek(0)
    text = _TextReader(file, table.path)
    opening = "{" if is_object else text.opening()
    if opening == "{":
        _refuse_other_object(file, text)
        _scan_lines(file, table)
    elif opening == "[":
        _scan_array(text, table)
    else:
        problem = f"begins with {harmless(text.text[text.position :][:20])!r}" if opening else "is empty"
        raise DataError(f"{table.path}: {problem}; expected one array of samples, [{{...}}, {{...}}], or JSON Lines.")


def _scan_array(text: "_TextReader", table: RowTable) -> None:
    text.consume(text.position + 1)
    if text.peek() == "]":
        raise DataError(f"{table.path}: the array has no samples.")
    is_row_next = True
    while is_row_next:
        where = table.where()
        try:
            text.peek()
            start = text.byte_offset
            row, fault = text.read_value(where)
            if fault:
                table.add_broken(fault, start)
            else:
                table.add(row, where, start, text.byte_offset)
            is_row_next = text.has_next(where)
        except DataError as error:
            table.add_broken(error, text.byte_offset)
            is_row_next = text.skip_to_row()


def _refuse_other_object(file, text: "_TextReader") -> None:
    """Raises DataError for an object over several lines, and for a single one that is no row: no JSON Lines."""
    try:
        text.opening()
        start = text.byte_offset
        value, fault = text.read_value("")
        end, is_alone = text.byte_offset, not text.peek()
    except DataError:
        return  # `_scan_lines` names the line
    file.seek(start)
    is_row = fault or value.keys() & {"conversations", "caption"}
    if b"\n" in file.read(end - start) or is_alone and not is_row:
        value = value or {}
        lists = [key for key, item in value.items() if isinstance(item, list)]
        hint = f" If the samples are in its key {harmless(lists[0])!r}, write that list alone." if lists else ""
        raise DataError(
            f"{text.path}: not a JSON array, and not JSON Lines with an object on each line; expected one array of "
            f"samples, [{{...}}, {{...}}], or JSON Lines.{hint}"
        )


def _scan_lines(file, table: RowTable) -> None:
    file.seek(0)
    start = number = 0
    while line := file.readline(MAX_ROW_CHARS + 1):
        number, where = number + 1, table.where(number + 1)
        length, is_long = len(line), len(line) > MAX_ROW_CHARS
        while is_long and not line.endswith(b"\n") and (line := file.readline(MAX_ROW_CHARS)):
            length += len(line)
        try:
            if is_long:
                raise DataError(f"{where}: more than {MAX_ROW_CHARS >> 20} MB long.", "broken JSON")
            if line.removeprefix(codecs.BOM_UTF8).strip():
                table.add(parse_line(line, where), where, start, start + len(line.rstrip()), number)
        except DataError as fault:
            table.add_broken(fault, start, number)
        start += length


def parse_line(line: bytes, where: str):
    """Parses a line of JSON Lines. Raises DataError, starting with `where`, if it is not JSON (see `parse_json`)."""
    try:
        return parse_json(line.decode())
    except UnicodeDecodeError as fault:
        problem = f"not UTF-8 text (byte {fault.start} of the line). Save it as UTF-8"
    except json.JSONDecodeError as fault:
        problem = f"broken JSON at column {fault.colno}: {fault.msg}. {CHECK_DOWNLOAD}"
        if fault.msg == "Extra data":
            problem = f"broken JSON: text after the object, at column {fault.colno}. Write one object on each line"
    except ValueError as fault:
        problem = f"broken JSON: {fault}"
    raise DataError(f"{where}: {problem}", "broken JSON")


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
        self.line, self.column = self.line_and_column(self.position)
        self.text, self.position = self.text[self.position :] + new_text, 0
        return True

    def line_and_column(self, position: int) -> tuple[int, int]:
        """Returns the position in the file of text[position]."""
        newlines = self.text.count("\n", 0, position)
        last_newline = self.text.rfind("\n", 0, position)
        return self.line + newlines, position - last_newline if newlines else self.column + position

    def consume(self, end: int) -> None:
        self.byte_offset += len(self.text[self.position : end].encode())
        self.position = end

    def peek(self) -> str:
        """Returns the next character that is not white space, without consuming it; "" at the end of the file."""
        while True:
            self.consume(WHITESPACE.match(self.text, self.position).end())
            if self.position < len(self.text) or not self.read_more():
                return self.text[self.position : self.position + 1]

    def opening(self) -> str:
        """Consumes a byte order mark -> `peek()`."""
        if self.peek() == "\ufeff":
            self.consume(self.position + 1)
        return self.peek()

    def read_value(self, where: str) -> tuple[object, DataError | None]:
        """Parses and consumes the next JSON value -> (value, None), or (None, fault) for a complete value that
        `parse_json` refuses. Raises DataError for one whose end is not known, and consumes nothing."""
        while True:
            value = fault = end = None
            try:
                value, end = STRICT.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                fault = error
            except (ValueError, RecursionError) as error:
                fault, end = error, self.closing_bracket()
            # A value that is broken, or ends with the chunk, may continue in the next chunk.
            is_long = len(self.text) - self.position >= MAX_ROW_CHARS
            if end in (None, len(self.text)) and not is_long and self.read_more():
                continue
            break
        if isinstance(fault, json.JSONDecodeError):
            line, column = self.line_and_column(fault.pos)
            hint = f" (or a row of more than {MAX_ROW_CHARS >> 20} MB)" if is_long else ""
            message = f"{where}: broken JSON at line {line} column {column}: {fault.msg}{hint}. {CHECK_DOWNLOAD}"
            raise DataError(message, "broken JSON")
        if fault:
            line, column = self.line_and_column(self.position)
            problem = "it is nested too deeply" if isinstance(fault, RecursionError) else str(fault)
            fault = DataError(f"{where}: broken JSON, begins at line {line} column {column}: {problem}", "broken JSON")
            if end is None:
                raise fault
        self.consume(end)
        return value, fault

    def closing_bracket(self) -> int | None:
        """Returns the end of the next value if it is an array or object; None if it does not end in `text`. Recognizes
        strings and brackets only, so it works where the parser gives up."""
        depth = 0
        for token in STRING_OR_BRACKET.finditer(self.text, self.position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth <= 0:
                return token.end() if depth == 0 and token[0] in "]}" else None
        return None

    def has_next(self, where: str) -> bool:
        """Consumes the comma after a row, or the end of the array -> whether another row follows."""
        separator = self.peek()
        if separator not in (",", "]"):
            raise DataError(f"{where}: no comma or ] after it. {CHECK_DOWNLOAD}", "broken JSON")
        self.consume(self.position + 1)
        if self.peek() and separator == "]":
            raise DataError(f"{self.path}: text after the end of the array. Two concatenated files?", "broken JSON")
        return separator == ","

    def skip_to_row(self) -> bool:
        """Skips to the next object with "conversations" (turns are objects too) -> False if there is none."""
        while True:
            brace = self.text.find("{", self.position)
            self.consume(brace if brace >= 0 else len(self.text))
            # The object may continue in the next chunk.
            if len(self.text) - self.position < MAX_ROW_CHARS and self.read_more():
                continue
            if brace < 0:
                return False
            end = self.position + 1
            try:
                row, _ = STRICT.raw_decode(self.text, self.position)
                if "conversations" in row:
                    return True
            except json.JSONDecodeError:
                pass
            except RecursionError:  # to try each of its brackets would take quadratic time
                end = self.closing_bracket() or len(self.text)
            except ValueError:  # complete, but refused: `read_value` names it
                if '"conversations"' in self.text[self.position : self.closing_bracket() or self.position]:
                    return True
            self.consume(end)
