"""A cache of replies on disk, so that no reply is paid for twice.

The file is JSON Lines with one reply per line, keyed by a hash of everything that was sent. Each line is fsynced at
once. A line torn by a killed process is ignored, and its request is sent again.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.json_text import parse_json

LINE_PREFIX = b'{"key": "'  # every line of a cache begins with this


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply of a chat model. input_tokens, output_tokens: the server's usage, or None."""

    text: str
    finish: str  # the server's finish reason: stop, length, content_filter, ...
    is_refused: bool  # the model or the provider's filter refused, or the text is empty
    model: str  # the name that the server returned
    input_tokens: int | None = None
    output_tokens: int | None = None


TYPES = {"text": (str,), "finish": (str,), "is_refused": (bool,), "model": (str,)}
TYPES |= {"input_tokens": (int, type(None)), "output_tokens": (int, type(None))}


def cache_key(model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, float]) -> str:
    """The hex SHA-256 of model, messages and parameters. The URL is not included: two servers that serve different
    models under one name need two caches."""
    return hashlib.sha256(json.dumps([model, messages, parameters], sort_keys=True).encode()).hexdigest()


def read_replies(path: Path) -> tuple[dict[str, Reply], int]:
    """(replies by key, number of torn lines). A missing file is an empty cache. Raises DataError for a file that is no
    cache, ConfigError for an unreadable one."""
    try:
        return _parse(path, path.read_bytes())
    except FileNotFoundError:
        return {}, 0
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}). Choose another --cache.") from None


class ReplyCache:
    """An open cache, locked by this process. replies: by key. torn: the number of torn lines. Raises as `read_replies`
    does, and ConfigError if it cannot be written or another process uses it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as fault:
            raise ConfigError(f"{path}: cannot be written ({fault.strerror}). Choose another --cache.") from None
        try:
            self._lock()
            content = path.read_bytes()
            self.replies, self.torn = _parse(path, content)
            if content and not content.endswith(b"\n"):
                self._write(b"\n")  # otherwise the next reply would extend the torn line
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._file)

    def add(self, key: str, reply: Reply) -> None:
        """Adds a reply and fsyncs it. Raises ConfigError on an I/O error, e.g. a full disk."""
        self.replies[key] = reply
        self._write(json.dumps({"key": key} | dataclasses.asdict(reply)).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(28, "No space left on device")  # the line is now torn
            os.fsync(self._file)
        except OSError as fault:
            raise ConfigError(
                f"{self.path}: cannot be written ({fault.strerror}). Free space and run the same command to resume."
            ) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{self.path}: another process is using this cache. Wait until it ends, or choose another --cache."
            ) from None


def _parse(path: Path, content: bytes) -> tuple[dict[str, Reply], int]:
    replies, torn = {}, 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            if line[: len(LINE_PREFIX)] != LINE_PREFIX[: len(line)]:
                raise TypeError("no line of a cache")
            record = parse_json(line)
            key, reply = record.pop("key"), Reply(**record)
            if not all(type(getattr(reply, name)) in types for name, types in TYPES.items()):
                raise TypeError("a value of another type")
        except ValueError:
            torn += 1
        except TypeError:
            raise DataError(f"{path}: line {number} is not a line of a reply cache. Choose another --cache.") from None
        else:
            replies[key] = reply
    return replies, torn
