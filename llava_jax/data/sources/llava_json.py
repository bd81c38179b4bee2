"""Random-access sources of examples: the original's training JSON, parts and joins of sources, a held-out split.

A source has `__len__` and `__getitem__(index) -> Example`; anything that has them can be trained on.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.json_index import open_index, stamp
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.files import open_images

MAX_HASHED = 100_000_000  # ids; beyond it a split by hash would take hours


class LlavaJson:
    """The original's training file: one JSON array of the rows that `llava_row` describes.

    Every row is parsed and checked before the first is handed out, without holding the file; the place of each is kept
    in an index file (see `json_index`), so that this is done once. Then a row is read when asked for. Image files are
    opened by nobody yet.

    - `image_folder` is the root of the image paths, or a zip archive with entries of these names.

    Raises DataError that names the file, the row and the key, when constructed; for an image path that leaves
    `image_folder` (by "..", absolute, or through a symbolic link) or is not in the archive, when the row is read.
    With `is_strict=False` a broken row raises only when it is read, and keeps its number: that is how a whole file is
    searched for faults.
    """

    def __init__(self, path: str | Path, image_folder: str | Path, is_strict: bool = True):
        self.path = Path(path)
        self.images = open_images(image_folder, self.path)
        self._broken: dict[int, DataError] = {}  # rows that are no JSON
        self._index, self._stamp = open_index(self.path, None if is_strict else self._broken)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        row_id, turns, images = parse_row(*self.raw(index))
        where = f"{self.path}: sample {row_id!r}"
        return Example(row_id, turns, tuple(self.images.find(image, where) for image in images))

    def example_id(self, index: int) -> str:
        """The id alone, without a look at the images."""
        return parse_row(*self.raw(index))[0]

    def id_hashes(self) -> np.ndarray:
        """int64[n], the `id_hash` of every id; only of a file opened strictly."""
        return self._index[:, 2]

    def raw(self, index: int) -> tuple[object, str]:
        """(the row as its JSON says, unchecked; the words that name it in a fault)."""
        index = range(len(self))[index]
        if index in self._broken:
            raise self._broken[index]
        start, end, hashed = self._index[index].tolist()
        try:
            with open(self.path, "rb") as file:
                same = stamp(file) == self._stamp
                file.seek(start)
                text = file.read(end - start)
        except OSError:
            same = False
        if not same:
            raise DataError(f"{self.path}: changed or gone since it was opened. Start again, and leave it alone.")
        where = f"{self.path}: row {index}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):  # bytes that are no row
            row = None
        if hashed >= 0 and (not isinstance(row, dict) or id_hash(str(row.get("id"))) != hashed):
            raise DataError(
                f"{where} is not where its index says: the file was changed and its time put back, or the index is not "
                f"ours. Remove {self.path.name}.index.npz, or touch the file, and start again."
            )
        return row, where


class Subset:
    """Some indices of a source, as a source. A `range` costs no memory, so an endless source has sub-ranges too.

    >>> list(Subset("abcdef", range(1, 6, 2)))
    ['b', 'd', 'f']
    """

    def __init__(self, source, indices: Sequence[int] | np.ndarray):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.source[int(self.indices[index])]


class Joined:
    """Several sources, one behind the other, as one.

    >>> "".join(Joined(["abc", "de"])[i] for i in (0, 2, 3, 4))
    'acde'
    """

    def __init__(self, sources: Sequence):
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int):
        index = range(len(self))[index]
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[which][index - (int(self._ends[which - 1]) if which else 0)]

    def id_hashes(self) -> np.ndarray:
        return np.concatenate([id_hashes(source) for source in self.sources])


def held_out_split(source, fraction: float, minimum: int) -> tuple[Subset, Subset]:
    """Splits a source into (train, held out) by the SHA-256 of each example's id.

    An example is held out when its hash, read as a number in [0, 1), is below `fraction`. Only its own id decides, so
    new rows move no other row, the order of rows does not matter, and rows that share an id (one picture's
    conversation, description and reasoning) stay together. When that gives fewer than `minimum`, the lowest hashes are
    held out until there are as many. Where reading an example is costly, a source offers `id_hashes()`, int64[n].

    Raises ConfigError for a fraction outside [0, 1) or a source too long to hash, DataError when nothing is left to
    train on.
    """
    if not 0 <= fraction < 1 or minimum < 0:
        raise ConfigError(f"held-out fraction must be in [0, 1) and minimum >= 0; got {fraction} and {minimum}")
    if len(source) > MAX_HASHED:
        raise ConfigError(f"{len(source):,} examples are too many to split by id; take `Subset(source, range(...))`")
    hashes = id_hashes(source) / 2**48
    held_out = hashes < fraction
    if held_out.sum() < minimum <= len(hashes):
        held_out = hashes <= np.sort(hashes)[minimum - 1]
    if held_out.sum() < minimum or held_out.all():
        raise DataError(
            f"{len(source)} examples: holding out {fraction:.1%}, at least {minimum}, leaves nothing to train on. "
            "Hold out fewer or bring more data."
        )
    return Subset(source, np.flatnonzero(~held_out)), Subset(source, np.flatnonzero(held_out))


def id_hashes(source) -> np.ndarray:
    """int64[n], the `id_hash` of every id of a source; examples are read only where it does not know them itself."""
    if hasattr(source, "id_hashes"):
        return source.id_hashes()
    return np.array([id_hash(source[index].id) for index in range(len(source))], np.int64)
