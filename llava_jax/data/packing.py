"""Packs examples into rows, and sorts rows into batches by length: pure functions of the examples' sizes.

Sizes are known before training (text is tokenised once, no image is opened), so the number of rows and the contents of
each row are known too. Packed rows therefore keep random access, an integer as iterator state, and the same batches for
any number of processes and workers.

Legend: n examples; sizes int32[n, 2], the number of tokens and images of each.
"""

import dataclasses
import hashlib

import numpy as np

from llava_jax.errors import ConfigError, DataError

WINDOW = 1024  # examples that are packed together
BATCHES_PER_WINDOW = 32  # batches that are sorted by bucket together


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The examples of each row: row i has `members[starts[i] : starts[i + 1]]`, indices into the source."""

    members: np.ndarray  # int64[n]
    starts: np.ndarray  # int64[rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> list[int]:
        row = range(len(self))[row]
        return self.members[self.starts[row] : self.starts[row + 1]].tolist()


def pack(sizes: np.ndarray, length: int, max_images: int, seed: int | None) -> PackedRows:
    """Packs every example into exactly one row of up to `length` tokens and `max_images` images.

    Examples are shuffled by `seed` (None: not shuffled) and packed in windows of `WINDOW`, longest first, each into the
    first row of its window with room for its tokens and images (first-fit decreasing). No example is split. All epochs
    have the same rows, each in another order.

        sizes [[7, 1], [4, 0], [3, 1]], length 10, max_images 1: rows [0], [1, 2]     (0 and 2 would be two images)

    Raises ConfigError for an example larger than a row.
    """
    if (sizes > (length, max_images)).any():
        raise ConfigError(f"examples of up to {sizes.max(axis=0)} tokens, images do not fit {length}, {max_images}")
    # RandomState, because numpy guarantees that its numbers never change; those of default_rng may change.
    order = np.arange(len(sizes)) if seed is None else np.random.RandomState(seed % 2**32).permutation(len(sizes))
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-sizes[window, 0], kind="stable")]
        tokens, images = np.full(len(window), length), np.full(len(window), max_images)  # room in each row
        packed: list[list[int]] = []
        for example, (token_count, image_count) in zip(window.tolist(), sizes[window].tolist(), strict=True):
            candidates = slice(len(packed) + 1)
            row = int(((tokens[candidates] >= token_count) & (images[candidates] >= image_count)).argmax())
            if row == len(packed):
                packed.append([])
            packed[row].append(example)
            tokens[row] -= token_count
            images[row] -= image_count
        rows += packed
    starts = np.cumsum([0, *map(len, rows)])
    return PackedRows(np.concatenate(rows).astype(np.int64), starts)


def efficiency(sizes: np.ndarray, packed: PackedRows, length: int) -> float:
    """Returns the share of the rows' tokens that are not padding."""
    return float(sizes[packed.members, 0].sum() / (len(packed) * length))


def fill_unknown_sizes(sizes: np.ndarray) -> np.ndarray:
    """Gives unreadable examples (0 tokens) the size of the next readable one, as the limit of their substitutes. Raises
    DataError if no example can be read."""
    readable = np.flatnonzero(sizes[:, 0])
    if not len(readable):
        raise DataError(f"none of {len(sizes)} samples can be read")
    unreadable = np.flatnonzero(sizes[:, 0] == 0)
    filled = sizes.copy()
    filled[unreadable] = sizes[readable[np.searchsorted(readable, unreadable) % len(readable)]]
    return filled


def buckets(sizes: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns int32[n], the smallest of the ascending `lengths` that fits each example. ConfigError if none does."""
    if sizes[:, 0].max() > lengths[-1]:
        raise ConfigError(f"an example of {sizes[:, 0].max()} tokens does not fit into any of the lengths {lengths}")
    return np.array(lengths, np.int32)[np.searchsorted(lengths, sizes[:, 0])]


class LengthBucketedOrder:
    """An order of examples, rearranged so that each batch has examples of about the same length.

    Windows of `BATCHES_PER_WINDOW` batches are sorted by bucket, cut into batches, and the batches are shuffled. Every
    host computes the whole global batch, so all hosts agree on its length.
    """

    def __init__(self, order, bucket: np.ndarray, batch_size: int, seed: int, positions: int):
        """order: position -> example. bucket: int32[n], the row length of each example. positions: of the whole run."""
        self.order, self.bucket, self.batch_size = order, bucket, batch_size
        self.seed, self.positions = seed, positions
        self._windows: dict[int, list[np.ndarray]] = {}  # up to two: near a border, threads need both

    def batch(self, step: int) -> tuple[list[int], int]:
        """Returns (examples of the batch, length of its rows). The last batch of a run may have fewer examples."""
        window, index_in_window = divmod(step, BATCHES_PER_WINDOW)
        windows = self._windows  # read once: other threads may replace it
        if window not in windows:
            neighbors = {other: batches for other, batches in windows.items() if abs(other - window) == 1}
            windows = self._windows = {**neighbors, window: self._batches(window)}
        batch = windows[window][index_in_window]
        return batch.tolist(), int(self.bucket[batch].max())

    def _batches(self, window: int) -> list[np.ndarray]:
        count = BATCHES_PER_WINDOW * self.batch_size
        stop = min((window + 1) * count, self.positions)
        examples = np.array([int(self.order[i]) for i in range(window * count, stop)])
        examples = examples[np.argsort(self.bucket[examples], kind="stable")]
        batches = np.split(examples, range(self.batch_size, len(examples), self.batch_size))
        # A partial batch stays last: filler belongs at the end of the run.
        full_batches = len(examples) // self.batch_size
        shuffled = np.random.RandomState((self.seed % 2**32, window)).permutation(full_batches).tolist()
        return [batches[i] for i in [*shuffled, *range(full_batches, len(batches))]]


def digest(*arrays: np.ndarray) -> str:
    """Returns a short digest of arrays, which a resumed run compares."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]
