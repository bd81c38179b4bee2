"""Selects captions so that rare concepts stay and frequent ones are capped: how the paper made 595K of CC3M's pairs.

The paper, appendix E: count the unique noun phrases of all captions; drop those that occur fewer than 3 times; from the
rarest of the remaining ones on, add the captions that contain the phrase to the pool, at random 100 of them if there
are more. No code was released. Decided here, where the text leaves it open:

- A phrase counts once a caption.
- The cap concerns the phrase's own captions, whether or not a rarer phrase has put them into the pool. So the order of
  the phrases decides nothing but the curve of the pool's growth.
- The draw does not depend on the order of the rows: each row gets a random number from SplitMix64, keyed by seed,
  phrase, image and caption, and the smallest numbers are drawn.
"""

import dataclasses

import numpy as np

from llava_jax.datagen.caption_rows import CaptionFile, digest_8
from llava_jax.datagen.phrase_cache import PhraseTable
from llava_jax.errors import ConfigError

# Of CC3M, in the paper: unique noun phrases before the filter and after it (figure 7), and the pairs selected.
PUBLISHED_PHRASES, PUBLISHED_KEPT, PUBLISHED_PAIRS = 108_182, 31_423, 595_375


@dataclasses.dataclass(frozen=True)
class Selection:
    """rows: int64[selected], sorted row numbers.
    counts: int64[phrases], the captions with each phrase; selected_counts: those of them that are selected.
    pool: int64[kept], the pairs in the pool after each kept phrase, from the rarest on.
    """

    rows: np.ndarray
    counts: np.ndarray
    selected_counts: np.ndarray
    pool: np.ndarray

    @property
    def kept(self) -> int:
        """The number of phrases that occur often enough."""
        return len(self.pool)


def select_captions(
    phrases: PhraseTable, row_keys: np.ndarray, *, min_count: int = 3, cap: int = 100, seed: int = 0
) -> Selection:
    """Applies the filter; see above. row_keys: uint64[rows], see `CaptionFile`.

    min_count: captions that a phrase needs. cap: captions drawn for a phrase at most.
    """
    counts = np.bincount(phrases.ids, minlength=len(phrases.names))
    order = np.argsort(counts, kind="stable")  # the rarest first; equal counts by name
    order = order[counts[order] >= min_count]
    rank = np.full(len(counts), len(order))  # of dropped phrases: after all others
    rank[order] = np.arange(len(order))
    is_drawn = (counts[phrases.ids] >= min_count) & (counts[phrases.ids] <= cap)
    is_drawn[_draw(phrases, row_keys, np.flatnonzero(counts[phrases.ids] > max(cap, min_count - 1)), cap, seed)] = True
    first = np.full(len(row_keys), len(order))  # rank of the phrase that puts a row into the pool
    np.minimum.at(first, phrases.rows[is_drawn], rank[phrases.ids[is_drawn]])
    is_selected = first < len(order)
    return Selection(
        rows=np.flatnonzero(is_selected),
        counts=counts,
        selected_counts=np.bincount(phrases.ids[is_selected[phrases.rows]], minlength=len(counts)),
        pool=np.cumsum(np.bincount(first[is_selected], minlength=len(order))),
    )


def _draw(phrases: PhraseTable, row_keys: np.ndarray, pairs: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """Returns those of `pairs` (of phrases with more than `cap` captions) that are drawn, `cap` of each phrase."""
    ids = phrases.ids[pairs]
    frequent = np.flatnonzero(np.bincount(ids, minlength=len(phrases.names)))
    position = np.empty(len(phrases.names), np.int32)
    position[frequent] = np.arange(len(frequent), dtype=np.int32)
    position = position[ids]
    keys = b"".join(digest_8(f"{seed}\0{phrases.names[i]}") for i in frequent)
    numbers = split_mix_64(np.frombuffer(keys, np.uint64)[position] ^ row_keys[phrases.rows[pairs]])
    order = np.lexsort((numbers, position))
    position = position[order]
    start = np.searchsorted(position, np.arange(len(frequent)))
    return pairs[order[np.arange(len(order)) - start[position] < cap]]


def split_mix_64(states: np.ndarray) -> np.ndarray:
    """Returns the first output of the generator SplitMix64 (Steele, Lea and Flood 2014) for each uint64 state."""
    states = states + np.uint64(0x9E3779B97F4A7C15)
    states = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return states ^ (states >> np.uint64(31))


def rows_in(captions: CaptionFile, released: CaptionFile) -> np.ndarray:
    """Returns bool[rows], which rows of `captions` are in `released`: by URL if both have URLs, else by image name.
    Raises ConfigError if there is none."""
    has_urls = captions.url_keys.any() and released.url_keys.any()
    keys, released_keys = [file.url_keys if has_urls else file.image_keys for file in (captions, released)]
    is_released = np.isin(keys, released_keys[released_keys != 0])
    if not is_released.any():
        raise ConfigError(
            f"{released.path}: none of its {len(released):,} rows is in {captions.path}, by "
            f"{'URL' if has_urls else 'image'}. Do both files write these alike?"
        )
    return is_released
