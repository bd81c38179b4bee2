"""The one writer of files that must be complete or absent: write to a partial file, then rename."""

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llava_jax.errors import ConfigError, DataError


@contextlib.contextmanager
def atomic_path(path: Path, partial: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Yields where to write; when the block ends, that file or folder is renamed to `path`.

    A reader of `path` sees the old content or the new one, never a part. After any error or interrupt `path` is as it
    was, and the partial file or folder is removed.

    partial: where to write, in the folder of `path`. The default is `<path>.partial`. Processes that may write the same
    file at the same time need different ones.
    sync: flush the file to the disk before the rename, so that a power failure cannot leave an empty `path`.

    Raises OSError where it cannot be renamed, and what the block raises.
    """
    partial = partial or path.with_name(f"{path.name}.partial")
    try:
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
    """Writes bytes, or text as UTF-8, by `atomic_path`. Raises OSError, UnicodeEncodeError for a lone surrogate."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path, sync=sync) as partial:
        partial.write_bytes(data)


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to a file that the user named, atomically, and makes its folders. What is not a regular file
    (/dev/null, /dev/stdout, a pipe) is written to, not replaced.

    Raises ConfigError where it cannot be written, DataError for a lone surrogate, which UTF-8 cannot encode; `path` is
    then as it was.
    """
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
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}). Name another place.") from None


def date_of(path: Path) -> str:
    """The day, in UTC, on which a file or a folder last changed, as YYYY-MM-DD; "" where there is none."""
    try:
        changed = path.stat().st_mtime
    except OSError:
        return ""
    return datetime.datetime.fromtimestamp(changed, datetime.UTC).date().isoformat()


def read_object(file: Path, purpose: str) -> dict:
    """The object in a json file that says `purpose`. Raises DataError where it is missing or broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: it says {purpose}") from None
    except (ValueError, OSError) as e:
        raise DataError(f"{file} cannot be read: {e}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no object")
    return content
