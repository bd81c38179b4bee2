"""Atomic file writes: write to a partial file, then rename."""

import codecs
import contextlib
import datetime
import difflib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.interrupts import removed_on_stop
from llava_jax.output.json_text import parse_json


@contextlib.contextmanager
def atomic_path(path: Path, partial: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary path; when the block ends, that file or folder is renamed to `path`.

    A reader of `path` sees the old content or the new one, never a part. After an error or interrupt `path` is
    unchanged, and the partial file or folder is removed.

    partial: the temporary path, in the folder of `path`; default: `<path>.partial`. Processes that write the same file
    concurrently need different ones.
    sync: fsync the file before the rename, so that a power failure cannot leave an empty `path`.

    Raises OSError if the rename fails, and what the block raises.
    """
    partial = partial or path.with_name(f"{path.name}.partial")
    try:
        with removed_on_stop(partial):
            yield partial
            if sync:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, sync: bool = False) -> None:
    """Writes bytes, or text as UTF-8, atomically. Raises OSError, and UnicodeEncodeError for a lone surrogate."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path, sync=sync) as partial:
        partial.write_bytes(data)


def write_whole(path: Path, text: str) -> None:
    """Writes `text` atomically to a path from the command line and creates its folders. What is not a regular file
    (/dev/null, /dev/stdout, a pipe) is written to, not replaced.

    Raises ConfigError if it cannot be written or is a URL, and DataError for a lone surrogate, which UTF-8 cannot
    encode. `path` is then unchanged.
    """
    local_path(path, "the file to write")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(text.encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except UnicodeEncodeError as error:
        context = error.object[max(0, error.start - 40) : error.start]
        raise DataError(f"{path}: not written, a lone surrogate follows {context!r}.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}). Choose another path.") from None


def make_writable(folder: Path) -> None:
    """Creates a folder before hours of reading. Raises ConfigError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "not allowed")
    except OSError as fault:
        raise ConfigError(f"{folder}: cannot be written to ({fault.strerror}). Name another folder.") from None


def date_of(path: Path) -> str:
    """The UTC date of the last modification of a file or folder, as YYYY-MM-DD; "" if it does not exist."""
    try:
        changed = path.stat().st_mtime
    except OSError:
        return ""
    return datetime.datetime.fromtimestamp(changed, datetime.UTC).date().isoformat()


def similar_name(path: Path) -> str:
    """Returns "; there is NAME", for messages, if `path` is missing and its folder has a file of nearly this name."""
    try:
        near = [] if path.exists() else difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    except OSError:
        near = []
    return f"; there is {near[0]}" if near else ""


def read_text(file: Path) -> str:
    """Reads a text file: UTF-8, or with a byte order mark UTF-16 or UTF-32, as PowerShell's `>` writes. The mark is
    removed. Raises DataError if it cannot be read or is not text, and ConfigError for a URL."""
    local_path(file, "a file to read")
    try:
        content = file.read_bytes()
        is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode(json.detect_encoding(content) if is_utf_16 else "utf-8-sig").removeprefix("\ufeff")
    except OSError as fault:
        raise DataError(f"{file}: cannot be read ({fault.strerror}{similar_name(file)}). Check the path.") from None
    except UnicodeDecodeError as fault:
        kind = wrong_kind(file) or f"is not UTF-8 text (byte {fault.start}). Save it as UTF-8"
        raise DataError(f"{file} {kind}") from None


def local_path(path: str | Path, name: str) -> Path:
    """Returns `path` as a Path. `name`: the flag or setting it comes from. Raises ConfigError for a URL or a bucket, of
    which Path would silently make a folder called `gs:` or `https:`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ConfigError(
            f"{name}: {path} is a URL, and only local files are read and written. Download it, or mount the bucket as "
            "a folder (docs/multi_host.md) and pass that"
        )
    return Path(path)


def read_object(file: Path, purpose: str) -> dict:
    """Reads a JSON object from a file; `purpose` says in errors what the file defines. Raises DataError if the file is
    missing, is not valid JSON (see `parse_json`) or holds no object."""
    try:
        content = parse_json(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: it defines {purpose}") from None
    except (ValueError, OSError) as e:
        if kind := wrong_kind(file):
            raise DataError(f"{file} {kind}") from None
        raise DataError(f"{file} cannot be read: {e}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no object")
    return content
