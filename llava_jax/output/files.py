"""A file that a verb was asked to write: whole or not at all."""

import json
from pathlib import Path

from llava_jax.errors import ConfigError, DataError


def write_whole(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 beside `path`, then puts it in its place; what is no file (/dev/null, /dev/stdout, a pipe)
    is written to, not replaced. Raises ConfigError where it cannot be written, DataError for half a character (a lone
    surrogate), which UTF-8 does not have; `path` is then as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(text.encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode())
        partial.replace(path)
    except UnicodeEncodeError as fault:
        near = fault.object[max(0, fault.start - 40) : fault.start]
        raise DataError(f"{path}: not written, there is half a character (a lone surrogate) behind {near!r}.") from None
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written ({fault.strerror or fault}). Name another place.") from None


def read_object(file: Path, purpose: str) -> dict:
    """The object in a json file that says `purpose`. Raises DataError where it is missing or broken."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: it says {purpose}") from None
    except (ValueError, OSError) as e:
        raise DataError(f"{file} cannot be read: {e}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no object")
    return found
