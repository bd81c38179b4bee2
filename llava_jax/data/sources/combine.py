"""Sources made of other sources: subsets, concatenations, and the held-out split."""

from collections.abc import Sequence

import numpy as np

from llava_jax.data.example import id_hash
from llava_jax.data.packing import digest
from llava_jax.errors import ConfigError, DataError

MAX_HASHED = 100_000_000  # ids; a split of more by hash would take hours


class Subset:
    """The examples of a source at `indices`. A `range` needs no memory, so it also works for endless sources.

    >>> list(Subset("abcdef", range(1, 6, 2)))
    ['b', 'd', 'f']
    """

    def __init__(self, source, indices: Sequence[int] | np.ndarray):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.source[int(self.indices[index])]

    def id_hashes(self) -> np.ndarray:
        return id_hashes(self.source)[np.asarray(self.indices)]


class Concatenated:
    """Several sources, one after the other.

    >>> "".join(Concatenated(["abc", "de"])[i] for i in (0, 2, 3, 4))
    'acde'
    """

    def __init__(self, sources: Sequence):
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int):
        index = range(len(self))[index]
        source_index = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[source_index][index - (int(self._ends[source_index - 1]) if source_index else 0)]

    def id_hashes(self) -> np.ndarray:
        return np.concatenate([id_hashes(source) for source in self.sources])


def train_eval_split(source, fraction: float, minimum: int) -> tuple[Subset, Subset]:
    """Splits a source into (train, held out) by the SHA-256 of each example's id.

    An example is held out if its hash, as a number in [0, 1), is below `fraction`. This depends on its id only: new
    rows or another order move no row, and rows that share an id (an image's conversation, description and reasoning)
    stay together. If this gives fewer than `minimum` examples, the lowest hashes are held out. A source whose examples
    are slow to read may have a method `id_hashes()` -> int64[n].

    Raises ConfigError for a fraction outside of [0, 1) or a source too long to hash, DataError if no training example
    is left.
    """
    if not 0 <= fraction < 1 or minimum < 0:
        raise ConfigError(f"held-out fraction must be in [0, 1) and minimum >= 0; got {fraction} and {minimum}")
    if len(source) > MAX_HASHED:
        raise ConfigError(f"{len(source):,} examples are too many to split by id; use `Subset(source, range(...))`")
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


def ids_of_sources(names: Sequence[str], source) -> dict[str, tuple[int, str]]:
    """Returns name -> (examples, a short digest of their ids in order) of each source that is concatenated in `source`,
    or of `source` itself. The digest is "" where every example would be read for it, or none has an id of its own."""
    sources = source.sources if isinstance(source, Concatenated) else (source,)
    return {name: (len(part), _ids_digest(part)) for name, part in zip(names, sources, strict=True)}


def _ids_digest(source) -> str:
    whole = source.source if isinstance(source, Subset) else source
    if not hasattr(whole, "id_hashes") or len(source) > MAX_HASHED:
        return ""
    return digest(id_hashes(source))


def id_hashes(source) -> np.ndarray:
    """Returns int64[n], the `id_hash` of every id; examples are read only if the source has no `id_hashes()`."""
    if hasattr(source, "id_hashes"):
        return source.id_hashes()
    return np.array([id_hash(source[index].id) for index in range(len(source))], np.int64)
