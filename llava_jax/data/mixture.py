"""Several sources mixed by weight: one endless source, each of whose positions is known without what came before.

What a source holds is not looked at: examples, indices of examples, packed rows of them. Here it is called an example.

Positions come in blocks of BLOCK. Every block takes the same number of examples from each source (its quota: the
weight, rounded so that the quotas sum to BLOCK), in an order drawn from the seed and the number of the block. So which
source a position has, and how many of that source's examples came before, is arithmetic. Every source has its own
epochs, each in an order of its own, drawn from the seed and its name.

A mixture may be changed where a run is continued: sources added or left out, weights changed. Kept is how many examples
of each source were taken: the others go on where they were, a new source begins at its first epoch, and one that was
left out and comes back goes on where it was left. Only the order in which the sources take turns is drawn anew.
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
    """`name` stands for the source in checkpoints and decides its order; `weight` is relative to the other parts'.
    `contents` is a digest of what the source holds, where its length does not tell (packed rows)."""

    name: str
    source: object
    weight: float
    contents: str = ""


class Mixture:
    """Source whose example at a position is drawn from `parts` by weight; seed and names decide everything.

    - The order in which parts are given plays no role.
    - `state()` is fit for JSON; `resumed` takes it up, for these parts or changed ones.

    Raises ConfigError for names that occur twice and for weights that are not positive or below 1/BLOCK of their sum.
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
        # All three also of parts that were left out. taken: examples before `start`.
        self.consumed = {part.name: 0 for part in self.parts} | (consumed or {})
        self.lengths = (lengths or {}) | {part.name: len(part.source) for part in self.parts}
        self.contents = (contents or {}) | {part.name: part.contents for part in self.parts}
        seeds = [_combined_seed(seed, id_hash(part.name)) for part in self.parts]
        self._orders = [
            grain.MapDataset.range(len(part.source)).shuffle(seed) for part, seed in zip(self.parts, seeds, strict=True)
        ]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int):
        component, index = self.locate(position)
        return self.parts[component].source[index]

    def locate(self, position: int) -> tuple[int, int]:
        """(index of the part, index within its source). Raises IndexError before `start`: that was another mixture."""
        if not self.start <= position < ENDLESS:
            raise IndexError(f"position {position}: this mixture has {self.start} to {ENDLESS}")
        block, slot = divmod(position - self.start, BLOCK)
        components, ranks = _block_order(self.seed, self.start, block, tuple(self.quotas.values()))
        component = int(components[slot])
        name = self.parts[component].name
        rank = self.consumed[name] + block * self.quotas[name] + int(ranks[slot])
        return component, int(self._orders[component][rank])

    def state(self) -> dict:
        """What `resumed` needs beside the position, the same from one change of the mixture to the next."""
        metadata = {"lengths": self.lengths, "contents": self.contents}
        return {"start": self.start, "quotas": self.quotas, "taken": self.consumed, **metadata}

    def resumed(self, state: dict, position: int) -> "Mixture":
        """These parts, continued at `position` of the mixture whose `state()` is given.

        With the same parts and weights it is that mixture. Raises ConfigError where a source has another length or
        other contents: what was taken from it would be unknown.
        """
        for part in self.parts:
            # A checkpoint from before rows of mixtures could be packed has no `contents`.
            if state.get("contents", {}).get(part.name, part.contents) != part.contents:
                raise ConfigError(
                    f"cannot continue in the data: {part.name} is packed otherwise than before. Restore data.packing, "
                    "length, max_images, the template, the tokenizer and the texts, or start a new run."
                )
            old_length = state["lengths"].get(part.name, len(part.source))
            if old_length != len(part.source):
                raise ConfigError(
                    f"cannot continue in the data: {part.name} had {old_length} examples, has {len(part.source)}. "
                    "Restore it, or give the new data another path: then it begins anew."
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
    """Positions of each part in a block, by largest remainder."""
    names, weights = [part.name for part in parts], np.array([part.weight for part in parts], np.float64)
    duplicates = {name for name in names if names.count(name) > 1}
    if not parts or duplicates:
        raise ConfigError(f"a mixture needs sources, each once; {', '.join(sorted(duplicates)) or 'none'} given twice")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ConfigError(
            f"the weights of a mixture must be positive: {dict(zip(names, weights.tolist(), strict=True))}"
        )
    shares = weights / weights.sum() * BLOCK
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: BLOCK - quotas.sum()]] += 1
    if not quotas.all():
        name = names[int(np.argmin(quotas))]
        raise ConfigError(f"the weight of {name} is below 1/{BLOCK} of the sum; raise it or leave it out")
    return dict(zip(names, quotas.tolist(), strict=True))


def _combined_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _block_order(seed: int, start: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each position of a block: its part, and how many positions before it in the block have the same part."""
    # Raw bits, sorted: numpy promises that they stay the same in later versions, of its shuffle it does not.
    order = np.argsort(np.random.Philox(np.random.SeedSequence((seed, start, block))).random_raw(BLOCK), kind="stable")
    components = np.repeat(np.arange(len(quotas)), quotas)[order]
    ranks = np.empty(BLOCK, np.int64)
    for component, quota in enumerate(quotas):
        ranks[components == component] = np.arange(quota)
    return components, ranks
