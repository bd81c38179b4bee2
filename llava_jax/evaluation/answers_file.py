"""Answers files: JSON Lines that are written batch by batch and can be resumed.

FILE.settings.json beside FILE records how its answers were made. A file is not continued if the settings differ, or if
its lines are not the first of those to write, in order.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import read_object, read_text, write_whole
from llava_jax.output.json_text import parse_json


class AnswersFile:
    """An answers file that this process writes; see `open_answers_file`. count: the number of its lines."""

    def __init__(self, path: Path, handle):
        self.path, self._handle, self.count = path, handle, 0
        self._settings = path.with_name(f"{path.name}.settings.json")
        handle.seek(0)
        text = handle.read()
        self._end = text.rfind(b"\n") + 1  # a killed process may leave a partial line at the end
        self._lines = text[: self._end].splitlines()

    def check(self, settings: dict) -> None:
        """Raises ConfigError if existing lines were made with other settings (all or a subset), or unrecorded ones."""
        if not self._lines:
            return
        try:
            recorded = read_object(self._settings, "how the lines were made")
        except DataError:
            raise ConfigError(
                f"{self.path}: has {len(self._lines):,} lines, but no valid {self._settings.name} beside it that "
                "records how they were made. Choose another file."
            ) from None
        for name, value in settings.items():
            if recorded.get(name) != value:
                raise ConfigError(
                    f"{self.path}: its {len(self._lines):,} answers were made with {name} {recorded.get(name)!r}, not "
                    f"{value!r}. Choose another file, or remove this one to start over."
                )

    def begin(self, settings: dict, ids: Sequence[str]) -> None:
        """Prepares the file for `write`. settings: all that decide the answers. ids: those of all lines, in order.
        Raises ConfigError as `check` does, and DataError if the existing lines are not the first of `ids`."""
        self.check(settings)
        for number, line in enumerate(self._lines):
            expected = ids[number] if number < len(ids) else None
            try:
                question_id = parse_json(line)["question_id"]
            except (ValueError, TypeError, KeyError):
                question_id = None
            if expected is None or question_id != expected:
                raise DataError(
                    f"{self.path}: line {number + 1} is not the answer to "
                    f"{'any question' if expected is None else expected}; the file was modified. Choose another file, "
                    "or remove this one to start over."
                )
        write_whole(self._settings, json.dumps(settings, indent=1) + "\n")
        self._handle.truncate(self._end)
        self.count = len(self._lines)

    def write(self, records: Sequence[dict]) -> None:
        """Appends lines and flushes, so that a killed process does not lose them. Raises DataError on an I/O error."""
        try:
            self._handle.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
            self._handle.flush()
        except OSError as fault:  # e.g. a full disk
            raise DataError(
                f"{self.path}: cannot be written ({fault.strerror or fault}). Run the same command again to resume."
            ) from None
        self.count += len(records)


@contextlib.contextmanager
def open_answers_file(path: Path) -> Iterator[AnswersFile]:
    """Opens a new or existing answers file and locks it; an empty file is removed at the end. Raises ConfigError if it
    cannot be written, is not a regular file, or is being written by another process."""
    if path.exists() and not path.is_file():  # e.g. /dev/null, which cannot be resumed and must not be removed
        raise ConfigError(f"{path}: cannot be written (not a file). Choose another path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+b")
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written ({os.strerror(fault.errno)}). Choose another path.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path}: another process is writing it. Wait until it ends, or stop it.") from None
        try:
            yield AnswersFile(path, handle)
        finally:
            if os.fstat(handle.fileno()).st_size == 0:
                path.unlink()
    finally:
        with contextlib.suppress(OSError):  # a failed write was already reported
            handle.close()


def read_texts(path: Path) -> dict[str, str]:
    """The texts of an answers file by question id, in its order. Raises DataError that names file and line."""
    return answers_by_id(path, parse_json_lines(path, read_text(path)))[0]


def parse_json_lines(path: Path, text: str) -> list[tuple[str, object]]:
    """(location for error messages, value) of every line. Raises DataError for an invalid line or an empty file."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append((f"{path}: line {number}", parse_json(line)))
            except ValueError as fault:
                if not text.lstrip().startswith("{") and (kind := wrong_kind(path)):
                    raise DataError(f"{path} {kind}") from None
                message = f"{path}: line {number} is broken JSON ({fault}). Was it cut off? Remove it and ask again."
                raise DataError(message) from None
    if not records:
        raise DataError(f"{path}: empty. Is this an answers file?")
    return records


def answers_by_id(
    path: Path, records: Sequence[tuple[str, object]], text_key: str = "text", prompt_key: str = "prompt"
) -> tuple[dict[str, str], dict[str, str]]:
    """(texts, prompts) by question id; prompts only of records that contain them. records: see `parse_json_lines`.
    Raises DataError for a record without id or text, and for a repeated id."""
    texts, prompts, locations = {}, {}, {}
    for where, record in records:
        pid = record.get("question_id") if isinstance(record, dict) else None
        if isinstance(pid, bool) or not isinstance(pid, str | int) or not isinstance(record.get(text_key), str):
            raise DataError(f'{where}: needs the keys "question_id" and "{text_key}" (a string).')
        pid = str(pid)
        if pid in texts:
            raise DataError(f"{where}: question {pid} again, after {locations[pid]}. Keep one of them.")
        texts[pid], locations[pid] = record[text_key], where.removeprefix(f"{path}: ")
        if isinstance(record.get(prompt_key), str):
            prompts[pid] = record[prompt_key]
    return texts, prompts
