"""JSON Lines of answers that are written batch by batch, and go on where they were left.

Beside FILE lies FILE.settings.json: how its answers are made. A file that other settings made is not continued, nor one
whose lines are not the first of those to write, in their order.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import write_whole


class AnswersFile:
    """One process at a time writes it; see `open_answers_file`. `count`: the lines that are there."""

    def __init__(self, path: Path, handle):
        self.path, self._handle, self.count = path, handle, 0
        self._settings = path.with_name(f"{path.name}.settings.json")
        handle.seek(0)
        text = handle.read()
        self._end = text.rfind(b"\n") + 1  # a process that was killed may have left the beginning of a line behind it
        self._lines = text[: self._end].splitlines()

    def check(self, settings: dict) -> None:
        """Raises ConfigError where the lines that are there were made with other settings than these, which need not be
        all, or by nobody knows whom."""
        if not self._lines:
            return
        try:
            recorded = json.loads(self._settings.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(
                f"{self.path}: has {len(self._lines):,} lines, but no {self._settings.name} beside it that says how "
                "they were made. Name another file."
            ) from None
        for name, value in settings.items():
            if recorded.get(name) != value:
                raise ConfigError(
                    f"{self.path}: its {len(self._lines):,} answers were made with {name} {recorded.get(name)!r}, not "
                    f"{value!r}. Name another file, or remove this one to begin anew."
                )

    def begin(self, settings: dict, ids: Sequence[str]) -> None:
        """Before the first `write`: settings are all that decide the answers, `ids` those of all lines in their order.
        Raises ConfigError as `check`, DataError where the lines that are there are not the first of `ids`."""
        self.check(settings)
        for number, line in enumerate(self._lines):
            expected = ids[number] if number < len(ids) else None
            try:
                question_id = json.loads(line)["question_id"]
            except (ValueError, TypeError, KeyError):
                question_id = None
            if expected is None or question_id != expected:
                raise DataError(
                    f"{self.path}: line {number + 1} is not the answer to "
                    f"{'any question' if expected is None else expected}, as it was when it was written. Name another "
                    "file, or remove this one to begin anew."
                )
        write_whole(self._settings, json.dumps(settings, indent=1) + "\n")
        self._handle.truncate(self._end)
        self.count = len(self._lines)

    def write(self, records: Sequence[dict]) -> None:
        """Appends lines; they are the system's at return, and a killed process does not lose them. Raises DataError."""
        try:
            self._handle.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
            self._handle.flush()
        except OSError as fault:  # a full disk, say
            raise DataError(
                f"{self.path}: cannot be written ({fault.strerror or fault}). The same command continues it."
            ) from None
        self.count += len(records)


@contextlib.contextmanager
def open_answers_file(path: Path) -> Iterator[AnswersFile]:
    """A file that is new, or goes on. Raises ConfigError where it cannot be written or another process writes it, and
    for what is no file."""
    if path.exists() and not path.is_file():  # /dev/null, say: it could not go on, and must not be removed
        raise ConfigError(f"{path}: cannot be written (not a file). Name another place.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+b")
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written ({os.strerror(fault.errno)}). Name another place.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path}: another process is writing it; wait for its end, or stop it") from None
        try:
            yield AnswersFile(path, handle)
        finally:
            if os.fstat(handle.fileno()).st_size == 0:
                path.unlink()
    finally:
        with contextlib.suppress(OSError):  # what could not be written was said
            handle.close()


def read_texts(path: Path) -> dict[str, str]:
    """The texts of an answers file by question id, in its order. Raises DataError that names the file, and the line at
    fault."""
    return answers_by_id(path, parse_json_lines(path, read_answers_text(path)))[0]


def read_answers_text(path: Path) -> str:
    """Raises DataError where the file cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror}).") from None
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: not UTF-8 ({fault}). Is this a file of answers?") from None


def parse_json_lines(path: Path, text: str) -> list[tuple[str, object]]:
    """(where it is, for error messages; the value) of every line. Raises DataError for a broken line or none."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append((f"{path}: line {number}", json.loads(line)))
            except (ValueError, RecursionError):
                message = f"{path}: line {number} is broken JSON. Was it cut off? Remove it, and answer it again."
                raise DataError(message) from None
    if not records:
        raise DataError(f"{path}: empty. Is this a file of answers?")
    return records


def answers_by_id(
    path: Path, records: Sequence[tuple[str, object]], text_key: str = "text", prompt_key: str = "prompt"
) -> tuple[dict[str, str], dict[str, str]]:
    """(texts, prompts) by question id, prompts as far as the records have them. records: as `parse_json_lines`. Raises
    DataError for a record without id or text, and for an id that occurs twice."""
    texts, prompts, locations = {}, {}, {}
    for where, record in records:
        pid = record.get("question_id") if isinstance(record, dict) else None
        if isinstance(pid, bool) or not isinstance(pid, str | int) or not isinstance(record.get(text_key), str):
            raise DataError(f'{where}: needs the keys "question_id" and "{text_key}" with a text.')
        pid = str(pid)
        if pid in texts:
            raise DataError(f"{where}: question {pid} again, after {locations[pid]}. Keep one of them.")
        texts[pid], locations[pid] = record[text_key], where.removeprefix(f"{path}: ")
        if isinstance(record.get(prompt_key), str):
            prompts[pid] = record[prompt_key]
    return texts, prompts
