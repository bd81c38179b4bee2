"""Exact and near duplicates among texts, by MinHash (Broder 1997) and locality-sensitive hashing.

A text is the set of its shingles: all runs of 3 words, without case and punctuation. Two texts are near duplicates if
their sets have a Jaccard similarity of 0.8 or more. MinHash only proposes the pairs to compare; the similarity that
decides is that of the sets (of 64-bit hashes), so that no pair is reported by chance. A pair of similarity 0.8 is
missed with a probability of 0.2%, one of 0.9 practically never. Equal texts give equal results in every process.
"""

import itertools
import re
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

SIMILARITY = 0.8
SHINGLE = 3  # words
BANDS, ROWS = 20, 6  # a pair is compared if all 6 hashes of one of the 20 bands are equal
DOUBT = 0.15  # 4 standard deviations of the similarity that 120 hashes estimate
CHUNK = 1 << 12  # texts that are hashed at once
WORD = re.compile(r"\w+")
MIX = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest to 2**64 / golden ratio


def duplicates(texts: Sequence[tuple[Hashable, str]]) -> dict[Hashable, Hashable]:
    """Returns {id of a duplicate: id of the earlier text that it repeats}.

    texts: (id, text), ids unique. Only texts that are no duplicates themselves count as earlier ones; of several, the
    first. Without the keys of the result, no near duplicates are left. Raises ValueError for an id that occurs twice.
    """
    ids = [text_id for text_id, _ in texts]
    if len(set(ids)) < len(ids):
        raise ValueError(f"the id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice")
    shingles, ends = _shingles(text for _, text in texts)
    signatures = _signatures(shingles, ends)
    keys, is_shared = _band_keys(signatures)
    buckets, result = defaultdict(list), {}
    for i in np.flatnonzero(is_shared.any(axis=1)).tolist():  # the others resemble no text
        own = [buckets[key] for key in keys[i][is_shared[i]].tolist()]
        earlier = _first_similar(i, sorted(set().union(*own)), signatures, shingles, ends)
        if earlier is not None:
            result[ids[i]] = ids[earlier]
        else:
            for bucket in own:
                bucket.append(i)
    return result


def _shingles(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a uint64 hash of each shingle of each text, joined; int64[texts]: where those of each text end).

    A text of fewer words is padded to one shingle.
    """
    vocabulary = defaultdict(itertools.count(1).__next__)  # word -> number
    tokens, lengths = array("q"), array("q")
    for text in texts:
        numbers = [vocabulary[word] for word in WORD.findall(text.casefold())]
        numbers += [0] * (SHINGLE - len(numbers))
        tokens.extend(numbers)
        lengths.append(len(numbers))
    joined, lengths = np.array(tokens, dtype=np.uint64), np.array(lengths, dtype=np.int64)
    hashes = np.zeros_like(joined)
    for k in range(SHINGLE):
        hashes = (hashes + np.roll(joined, -k)) * MIX  # modulo 2**64
    is_inside = np.ones(len(joined), dtype=bool)  # not across the end of a text
    for k in range(1, SHINGLE):
        is_inside[np.cumsum(lengths) - k] = False
    return hashes[is_inside], np.cumsum(lengths - (SHINGLE - 1))


def _signatures(shingles: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the MinHash signatures, uint32[texts, BANDS * ROWS]: the least value of each hash function."""
    rng = np.random.default_rng(0)
    factors, offsets = rng.integers(0, 1 << 64, (2, BANDS * ROWS), dtype=np.uint64)
    factors |= np.uint64(1)
    starts = np.concatenate([[0], ends])
    signatures = np.empty((len(ends), BANDS * ROWS), dtype=np.uint32)
    for first in range(0, len(ends), CHUNK):
        part = starts[first : first + CHUNK + 1]
        mixed = shingles[part[0] : part[-1]]
        mixed = mixed ^ (mixed >> np.uint64(29))
        for k in range(BANDS * ROWS):
            hashes = ((mixed * factors[k] + offsets[k]) >> np.uint64(32)).astype(np.uint32)
            signatures[first : first + CHUNK, k] = np.minimum.reduceat(hashes, part[:-1] - part[0])
    return signatures


def _band_keys(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint64[texts, BANDS]: the bucket of each band; bool[texts, BANDS]: whether another text is in it)."""
    keys = np.empty((len(signatures), BANDS), dtype=np.uint64)
    is_shared = np.empty(keys.shape, dtype=bool)
    for band in range(BANDS):
        key = np.full(len(signatures), band, dtype=np.uint64)
        for column in signatures[:, band * ROWS : (band + 1) * ROWS].T:
            key = (key ^ column) * MIX
        _, position, count = np.unique(key, return_inverse=True, return_counts=True)
        keys[:, band], is_shared[:, band] = key, count[position] > 1
    return keys, is_shared


def _first_similar(i: int, candidates: list[int], signatures: np.ndarray, shingles: np.ndarray, ends: np.ndarray):
    """Returns the first of the candidates that is a near duplicate of text i, or None."""
    if not candidates:
        return None
    estimates = (signatures[candidates] == signatures[i]).mean(axis=1)
    own = _shingle_set(i, shingles, ends)
    for k in np.array(candidates)[estimates >= SIMILARITY - DOUBT].tolist():
        other = _shingle_set(k, shingles, ends)
        if len(own & other) >= SIMILARITY * len(own | other):
            return k
    return None


def _shingle_set(i: int, shingles: np.ndarray, ends: np.ndarray) -> set[int]:
    return set(shingles[ends[i - 1] if i else 0 : ends[i]].tolist())
