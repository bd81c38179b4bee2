"""The ledger of requests and replies on disk, so that no reply is paid for twice and a cost limit survives a kill.

The file is JSON Lines, only appended to. Each line begins with a key, a hash of everything that is sent, and is fsynced
at once:

    {"key", "sent": text}                 a try, before it is sent; text: the last message
    {"key", "sent": text, "batch": name}  the same, as a part of a batch
    {"key", "unpaid": reason}             the try failed and is not charged
    {"key", "text", "finish", ...}        its reply, before anything is done with it: the fields of `Reply`
    {"key": name, "batch_id": id}         the server accepted a batch
    {"key": name, "batch_ended": status}  all replies of a batch are in the ledger

A line torn by a killed process is ignored. If that was a reply, its request is sent again.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    is_batch: bool = False  # from the Batch API, at half the price


TYPES = {"text": (str,), "finish": (str,), "is_refused": (bool,), "model": (str,), "is_batch": (bool,)}
TYPES |= {"input_tokens": (int, type(None)), "output_tokens": (int, type(None))}


@dataclasses.dataclass
class BatchRecord:
    """A batch of requests. id: the server's, None if it is not known to have been accepted. ended: its last status."""

    keys: list[str] = dataclasses.field(default_factory=list)
    id: str | None = None
    ended: str | None = None


@dataclasses.dataclass
class Ledger:
    """The content of a cache. replies: by key. open_tries: tries by key that have no outcome and may be charged.
    batches: by name. torn: the number of torn lines."""

    replies: dict[str, Reply] = dataclasses.field(default_factory=dict)
    open_tries: Counter[str] = dataclasses.field(default_factory=Counter)
    batches: dict[str, BatchRecord] = dataclasses.field(default_factory=dict)
    torn: int = 0

    def live_batches(self) -> dict[str, BatchRecord]:
        return {name: batch for name, batch in self.batches.items() if batch.ended is None}

    def apply(self, record: dict) -> None:
        """Adds a line. Raises TypeError for one that no cache contains."""
        key = record.pop("key")
        match record:
            case {"text": _}:
                reply = Reply(**record)
                if not all(type(getattr(reply, name)) in types for name, types in TYPES.items()):
                    raise TypeError("a value of another type")
                self.replies[key] = reply
                if not reply.is_batch and self.open_tries[key]:
                    self.open_tries[key] -= 1
            case {"sent": str(), "batch": str(name), **fields} if not fields:
                self.batches.setdefault(name, BatchRecord()).keys.append(key)
            case {"sent": str(), **fields} if not fields:
                self.open_tries[key] += 1
            case {"unpaid": str(), **fields} if not fields:
                self.open_tries[key] -= 1
            case {"batch_id": str(value), **fields} if not fields and key in self.batches:
                self.batches[key].id = value
            case {"batch_ended": str(value), **fields} if not fields and key in self.batches:
                self.batches[key].ended = value
            case _:
                raise TypeError("no line of a cache")


def cache_key(model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, float]) -> str:
    """The hex SHA-256 of model, messages and parameters. The URL is not included: two servers that serve different
    models under one name need two caches."""
    return hashlib.sha256(json.dumps([model, messages, parameters], sort_keys=True).encode()).hexdigest()


def read_replies(path: Path) -> tuple[dict[str, Reply], int]:
    """(replies by key, number of torn lines). A missing file is an empty cache. Raises DataError for a file that is no
    cache, ConfigError for an unreadable one."""
    try:
        ledger = _parse(path, path.read_bytes())
    except FileNotFoundError:
        return {}, 0
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}). Choose another --cache.") from None
    return ledger.replies, ledger.torn


class ReplyCache:
    """An open cache, locked by this process. ledger: its content. Raises as `read_replies` does, and ConfigError if it
    cannot be written or another process uses it."""

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
            self.ledger = _parse(path, content)
            if content and not content.endswith(b"\n"):
                self._write(b"\n")  # otherwise the next reply would extend the torn line
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._file)

    @property
    def replies(self) -> dict[str, Reply]:
        return self.ledger.replies

    def add(self, key: str, reply: Reply) -> None:
        """Adds a reply and fsyncs it. This and the following methods raise ConfigError on an I/O error, e.g. a full
        disk."""
        self._append([{"key": key} | dataclasses.asdict(reply)])

    def add_batch_replies(self, replies: Mapping[str, Reply]) -> None:
        self._append([{"key": key} | dataclasses.asdict(reply) for key, reply in replies.items()])

    def add_sent(self, key: str, text: str) -> None:
        """Adds a try. Until its outcome is added, it may be charged."""
        self._append([{"key": key, "sent": text}])

    def add_unpaid(self, key: str, reason: str) -> None:
        """Adds that the last try of a request failed and is not charged."""
        self._append([{"key": key, "unpaid": reason}])

    def add_batch(self, name: str, texts: Mapping[str, str]) -> None:
        """Adds a batch before it is sent. texts: the last message of each request by key."""
        self._append([{"key": key, "sent": text, "batch": name} for key, text in texts.items()])

    def set_batch(self, name: str, **change: str) -> None:
        """Adds what is known of a batch: batch_id or batch_ended."""
        self._append([{"key": name} | change])

    def _append(self, records: Iterable[dict]) -> None:
        records = list(records)
        self._write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        for record in records:
            self.ledger.apply(record)

    def _write(self, lines: bytes) -> None:
        try:
            if os.write(self._file, lines) < len(lines):
                raise OSError(28, "No space left on device")  # the last line is now torn
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


def _parse(path: Path, content: bytes) -> Ledger:
    ledger = Ledger()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            if line[: len(LINE_PREFIX)] != LINE_PREFIX[: len(line)]:
                raise TypeError("no line of a cache")
            ledger.apply(parse_json(line))
        except ValueError:
            ledger.torn += 1
        except TypeError:
            raise DataError(f"{path}: line {number} is not a line of a reply cache. Choose another --cache.") from None
    return ledger
