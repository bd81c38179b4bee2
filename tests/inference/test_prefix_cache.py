"""The cache of prefixes: it finds the longest one, replaces those that it extends, and stays within its bytes."""

import random

import numpy as np
import pytest

from llava_jax.inference.prefix_cache import PrefixCache, common_length

SHARED = np.arange(5)


def random_tokens(rng: random.Random) -> np.ndarray:
    """Few different tokens, so that many conversations share a start."""
    return np.concatenate([SHARED, np.array([rng.randrange(2) for _ in range(rng.randrange(8))], np.int64)])


@pytest.mark.parametrize("seed", range(20))
def test_longest_common_start_is_found(seed):
    rng, cache, known = random.Random(seed), PrefixCache(1 << 20), []
    for number in range(40):
        tokens = random_tokens(rng)
        lengths = [common_length(known_tokens, tokens) for known_tokens in known]
        count, name = cache.longest(tokens)
        assert count == max(lengths, default=0)
        assert name is None or common_length(known[name], tokens) == count
        assert cache.holds(tokens) == any(length == len(tokens) for length in lengths)
        cache.add(tokens, number, 1)
        known.append(tokens)
    distinct = {tuple(tokens) for tokens in known}
    extended = {a for a in distinct if any(a != b and b[: len(a)] == a for b in distinct)}
    assert len(cache) <= len(distinct) and len(cache) >= len(distinct - extended)


def test_extended_prefix_is_replaced_and_the_least_used_one_is_dropped():
    cache = PrefixCache(10)
    cache.add(np.array([1, 2]), "short", 4)
    cache.add(np.array([1, 2, 3]), "long", 4)
    assert len(cache) == 1 and cache.bytes == 4 and cache.longest(np.array([1, 2, 9])) == (2, "long")
    cache.add(np.array([7, 8]), "other", 4)
    assert cache.longest(np.array([1, 2, 3])) == (3, "long")  # used last
    cache.add(np.array([5]), "new", 4)
    assert cache.longest(np.array([7, 8])) == (0, None) and cache.bytes == 8
    cache.add(np.array([6]), "too large", 11)
    assert cache.longest(np.array([6])) == (0, None)
