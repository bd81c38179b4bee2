"""Keys and values of what was read and answered before, found by their tokens: a conversation is never read twice."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prefix:
    """The keys and values of some tokens. Position i depends on the tokens up to i alone, so that any part from the
    start is a prefix too."""

    tokens: np.ndarray  # int64[n], as of `prefix_key`
    arrays: Any  # a pytree of device arrays
    bytes: int


class PrefixCache:
    """Keeps the most recently used prefixes, up to `max_bytes`. Safe for threads."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self.bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._prefixes)

    def longest(self, tokens: np.ndarray) -> tuple[int, Any]:
        """(number of tokens from the start, arrays that hold them): the longest that is known, (0, None) if none."""
        best, key = 0, None
        with self._lock:
            for name, prefix in self._prefixes.items():
                # One number of each is read first: conversations often share their start, and there are many of them.
                if len(prefix.tokens) <= best or len(tokens) <= best or prefix.tokens[best] != tokens[best]:
                    continue
                count = common_length(prefix.tokens, tokens)
                if count > best:
                    best, key = count, name
            if key is None:
                return 0, None
            self._prefixes.move_to_end(key)
            return best, self._prefixes[key].arrays

    def holds(self, tokens: np.ndarray) -> bool:
        """Whether all these tokens are the start of a known prefix."""
        with self._lock:
            return any(is_start(tokens, prefix.tokens) for prefix in self._prefixes.values())

    def add(self, tokens: np.ndarray, arrays: Any, size: int) -> None:
        """Keeps a prefix of `size` bytes, in place of those that it begins with."""
        if size > self.max_bytes:
            return
        with self._lock:
            for name, prefix in list(self._prefixes.items()):
                if is_start(prefix.tokens, tokens):
                    self._drop(name)
            self._prefixes[tokens.tobytes()] = Prefix(tokens, arrays, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._drop(next(iter(self._prefixes)))

    def _drop(self, name: bytes) -> None:
        self.bytes -= self._prefixes.pop(name).bytes


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many first elements of two int64 arrays are equal."""
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return int(differing[0]) if len(differing) else size


def is_start(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether b begins with a, which is not empty. Their tokens at the end of a mostly differ, if not."""
    return len(a) <= len(b) and a[-1] == b[len(a) - 1] and np.array_equal(a, b[: len(a)])


def prefix_key(tokens: np.ndarray, image_token_id: int, images: Sequence[bytes], features: int) -> np.ndarray:
    """Tokens int32[n] -> int64[n] in which the `features` placeholders of each image name its content.

    images: a digest of at least 8 bytes per image, in order.
    """
    key = tokens.astype(np.int64)
    names = [-1 - (int.from_bytes(digest[:8], "little") >> 1) for digest in images]
    key[tokens == image_token_id] = np.repeat(np.array(names, np.int64), features)
    return key
