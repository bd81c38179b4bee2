"""Replies of language models on disk, so that none is paid for twice.

JSON Lines, a reply a line, found by the hash of everything that was sent. A line is written at once and is on disk
before the next request goes out; one that a killed process cut off is asked again.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.errors import ConfigError, DataError

LINE_PREFIX = b'{"key": "'  # of every line; what begins otherwise, we did not write


@dataclasses.dataclass(frozen=True)
class Reply:
    """`finish`: why it ended, in the server's words (stop, length, content_filter ..). `is_refused`: there is nothing
    but a refusal, the provider's filter stepped in, or the text is empty. `model`: what the server calls itself.
    Tokens as the server counted them, None where it did not."""

    text: str
    finish: str
    is_refused: bool
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None


def cache_key(model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, float]) -> str:
    """The SHA-256, in hex, of what decides a reply: model, messages and parameters. Not of where the model runs: two
    servers that call different models by the same name need two caches."""
    return hashlib.sha256(json.dumps([model, messages, parameters], sort_keys=True).encode()).hexdigest()


def read_replies(path: Path) -> tuple[dict[str, Reply], int]:
    """(replies by key, how many lines were cut off). A file that does not exist has none.

    Raises DataError for a file that is no cache, ConfigError for one that cannot be read.
    """
    try:
        return _parse(path, path.read_bytes())
    except FileNotFoundError:
        return {}, 0
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}). Name another cache.") from None


class ReplyCache:
    """An open cache, of this process alone: `replies` by key, and `add`. Raises as `read_replies` does, and ConfigError
    where it cannot be written or another process has it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as fault:
            raise ConfigError(f"{path}: cannot be written ({fault.strerror}). Name another cache.") from None
        try:
            self._lock()
            content = path.read_bytes()
            self.replies, self.torn = _parse(path, content)
            if content and not content.endswith(b"\n"):
                self._write(b"\n")  # or the next reply would be part of the line that was cut off
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._file)

    def add(self, key: str, reply: Reply) -> None:
        """On disk when this returns. Raises ConfigError, of a full disk for one."""
        self.replies[key] = reply
        self._write(json.dumps({"key": key} | dataclasses.asdict(reply)).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(28, "No space left on device")  # the rest does not fit; what is there counts as cut off
            os.fsync(self._file)
        except OSError as fault:
            raise ConfigError(
                f"{self.path}: cannot be written ({fault.strerror}). Make room; the same command continues."
            ) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{self.path}: another process is using this cache. Wait for its end, or name another cache."
            ) from None


def _parse(path: Path, content: bytes) -> tuple[dict[str, Reply], int]:
    replies, torn = {}, 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            if line[: len(LINE_PREFIX)] != LINE_PREFIX[: len(line)]:
                raise TypeError("of another kind")
            record = json.loads(line)
            key, reply = record.pop("key"), Reply(**record)
            if not isinstance(reply.text, str):
                raise TypeError("no text")
        except ValueError:
            torn += 1
        except TypeError:
            raise DataError(f"{path}: line {number} is not of a cache of replies. Name another cache.") from None
        else:
            replies[key] = reply
    return replies, torn
