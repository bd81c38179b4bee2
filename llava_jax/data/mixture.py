"""A mixture of several sources by weight: an endless source with random access to any position.

The items of a source may be examples, indices of examples or packed rows. They are all called examples here.

Positions are grouped in blocks of BLOCK. Every block has the same number of examples of each source (its quota: the
weight, rounded so that the quotas sum to BLOCK), in an order drawn from the seed and the block number. The source of a
position, and how many of its examples came before, are therefore computed without history. Each source has its own
epochs, each in another order, drawn from the seed and the source's name.

A resumed run may change the mixture: add or remove sources, or change weights. The number of examples consumed from
each source is kept. A source that stays continues at its position, a new source starts at its first epoch, and a source
that was removed and is added again continues where it stopped. Only the interleaving of the sources is drawn again.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from llava_jax.data.example import id_hash
from llava_jax.errors import ConfigError

BLOCK = 10_000  # positions
ENDLESS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """A source of a mixture. name: identifies it in checkpoints and seeds its order. weight: relative to the others.
    contents: a digest of its items, where their number does not identify them (packed rows)."""

    name: str
    source: object
    weight: float
    contents: str = ""


class Mixture:
    """A source that draws from `parts` by weight; only seed, names and weights decide the order, not that of `parts`.

    `state()` is JSON-serialisable; `resumed` restores it, for the same or changed parts.
    Raises ConfigError for a name that occurs twice, and for a weight that is not positive or below 1/BLOCK of the sum.
    """

    def __init__(
        self,
        parts: Sequence[MixtureComponent],
        seed: int,
        start: int = 0,
        consumed: dict[str, int] | None = None,
        lengths: dict[str, int] | None = None,
        contents: dict[str, str] | None = None,
    ):
        self.parts, self.seed, self.start = tuple(sorted(parts, key=lambda part: part.name)), seed, start
        self.quotas = _quotas(self.parts)
        # These include parts that were removed. consumed: examples of each part before `start`.
        self.consumed = {part.name: 0 for part in self.parts} | (consumed or {})
        self.lengths = (lengths or {}) | {part.name: len(part.source) for part in self.parts}
        self.contents = (contents or {}) | {part.name: part.contents for part in self.parts}
        self._orders = [
            grain.MapDataset.range(len(part.source)).shuffle(_seed_of(seed, id_hash(part.name))) for part in self.parts
        ]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int):
        component, index = self.locate(position)
        return self.parts[component].source[index]

    def locate(self, position: int) -> tuple[int, int]:
        """Returns (index of the part, index within its source). IndexError before `start`, in an earlier mixture."""
        if not self.start <= position < ENDLESS:
            raise IndexError(f"position {position} is outside of this mixture, which has {self.start} to {ENDLESS}")
        block, slot = divmod(position - self.start, BLOCK)
        components, ranks = _block_order(self.seed, self.start, block, tuple(self.quotas.values()))
        component = int(components[slot])
        name = self.parts[component].name
        rank = self.consumed[name] + block * self.quotas[name] + int(ranks[slot])
        return component, int(self._orders[component][rank])

    def state(self) -> dict:
        """Returns what `resumed` needs besides the position; constant until the mixture is changed."""
        metadata = {"lengths": self.lengths, "contents": self.contents}
        return {"start": self.start, "quotas": self.quotas, "taken": self.consumed, **metadata}

    def resumed(self, state: dict, position: int) -> "Mixture":
        """Returns the mixture of these parts that continues the mixture of `state` at `position`.

        With the same parts and weights the order is unchanged. Raises ConfigError if a source has another length or
        other contents, because its consumed examples would be unknown.
        """
        for part in self.parts:
            # Checkpoints from before mixtures could be packed have no `contents`.
            if state.get("contents", {}).get(part.name, part.contents) != part.contents:
                raise ConfigError(
                    f"cannot resume the data: {part.name} is packed differently than before. Restore data.packing, "
                    "length, max_images, the template, the tokenizer and the texts, or start a new run."
                )
            old_length = state["lengths"].get(part.name, len(part.source))
            if old_length != len(part.source):
                raise ConfigError(
                    f"cannot resume the data: {part.name} had {old_length} examples, now it has {len(part.source)}. "
                    "Restore it, or give the new data another path; it then starts at its first epoch."
                )
        start, consumed, metadata = state["start"], state["taken"], (state["lengths"], state.get("contents", {}))
        if state["quotas"] == self.quotas:
            return Mixture(self.parts, self.seed, start, consumed, *metadata)
        names, quotas = zip(*sorted(state["quotas"].items()), strict=True)
        block, slot = divmod(position - start, BLOCK)
        components, _ = _block_order(self.seed, start, block, quotas)
        counts_in_block = np.bincount(components[:slot], minlength=len(quotas)).tolist()
        added = {name: block * quota + n for name, quota, n in zip(names, quotas, counts_in_block, strict=True)}
        consumed = {name: count + added.get(name, 0) for name, count in consumed.items()}
        return Mixture(self.parts, self.seed, position, consumed, *metadata)


def _quotas(parts: Sequence[MixtureComponent]) -> dict[str, int]:
    """Returns the number of positions of each part in a block, by the largest remainder method."""
    names, weights = [part.name for part in parts], np.array([part.weight for part in parts], np.float64)
    duplicates = {name for name in names if names.count(name) > 1}
    if not parts or duplicates:
        raise ConfigError(f"a mixture needs sources, each once; duplicates: {', '.join(sorted(duplicates)) or 'none'}")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ConfigError(
            f"the weights of a mixture must be positive: {dict(zip(names, weights.tolist(), strict=True))}"
        )
    shares = weights / weights.sum() * BLOCK
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: BLOCK - quotas.sum()]] += 1
    if not quotas.all():
        name = names[int(np.argmin(quotas))]
        raise ConfigError(f"the weight of {name} is below 1/{BLOCK} of the sum; raise it or remove the source")
    return dict(zip(names, quotas.tolist(), strict=True))


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _block_order(seed: int, start: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each position of a block: its part, and the number of earlier positions of the same part in it."""
    # Sorted raw bits, because numpy guarantees their stability between versions, but not that of its shuffle.
    order = np.argsort(np.random.Philox(np.random.SeedSequence((seed, start, block))).random_raw(BLOCK), kind="stable")
    components = np.repeat(np.arange(len(quotas)), quotas)[order]
    ranks = np.empty(BLOCK, np.int64)
    for component, quota in enumerate(quotas):
        ranks[components == component] = np.arange(quota)
    return components, ranks
