"""Packing of examples into rows, and of rows of similar length into batches."""

import json

import numpy as np
import pytest

from llava_jax.data.packing import (
    BATCHES_PER_WINDOW,
    LengthBucketedOrder,
    buckets,
    efficiency,
    fill_unknown_sizes,
    pack,
)
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.encode import tokenize
from llava_jax.text.tokenizer import load_tokenizer

RNG = np.random.default_rng(0)


def some_sizes(n=5000):
    return np.stack([RNG.integers(10, 900, n), RNG.integers(0, 4, n)], axis=1).astype(np.int32)


def rows_of(packed):
    return [packed[i] for i in range(len(packed))]


def test_packing_of_a_small_example():
    # Length 10, one image per row: 7 and 3 fit by their tokens, but both have an image.
    sizes = np.array([[7, 1], [4, 0], [3, 1], [3, 0]])
    assert rows_of(pack(sizes, 10, 1, seed=None)) == [[0, 3], [1, 2]]
    assert rows_of(pack(sizes, 10, 2, seed=None)) == [[0, 2], [1, 3]]
    unordered = np.array([[3, 0], [4, 0], [7, 0], [6, 0]])
    assert rows_of(pack(unordered, 10, 0, seed=None)) == [[2, 0], [3, 1]]  # without sorting: [0, 1], [2], [3]


@pytest.mark.parametrize("seed", [None, 3])
def test_every_example_is_in_one_row_within_both_limits(seed):
    sizes = some_sizes()
    packed = pack(sizes, 1024, 5, seed)
    assert sorted(packed.members.tolist()) == list(range(5000))
    for row in rows_of(packed):
        tokens, images = sizes[row].sum(axis=0)
        assert row and tokens <= 1024 and images <= 5
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_rows_depend_on_sizes_and_seed_alone():
    sizes = some_sizes()
    first, same, other = pack(sizes, 1024, 8, 1), pack(sizes.copy(), 1024, 8, 1), pack(sizes, 1024, 8, 2)
    assert rows_of(first) == rows_of(same) != rows_of(other)


def test_examples_larger_than_a_row_are_refused():
    for size in ([11, 0], [5, 2]):
        with pytest.raises(ConfigError, match="do not fit 10, 1"):
            pack(np.array([[3, 0], size]), 10, 1, 0)


def test_unreadable_examples_get_the_size_of_the_next_readable():
    sizes = np.array([[0, 0], [5, 1], [0, 0], [0, 0], [7, 2], [0, 0]])
    assert fill_unknown_sizes(sizes)[:, 0].tolist() == [5, 5, 7, 7, 7, 5]
    assert fill_unknown_sizes(sizes)[:, 1].tolist() == [1, 1, 2, 2, 2, 1]
    with pytest.raises(DataError, match="none of 3 samples can be read"):
        fill_unknown_sizes(np.zeros((3, 2), int))


def test_bucket_is_the_smallest_length_that_fits():
    sizes = np.array([[1, 0], [64, 1], [65, 0], [128, 3]])
    assert buckets(sizes, (64, 128)).tolist() == [64, 64, 128, 128]
    with pytest.raises(ConfigError, match="128 tokens does not fit into any of"):
        buckets(sizes, (64, 127))


def test_bucketed_batches_show_each_example_once_at_minimal_length():
    n, b = 1000, 8
    needs = buckets(some_sizes(n), (256, 512, 1024))
    order = np.random.default_rng(5).permutation(n)
    bucketed = LengthBucketedOrder(order, needs, b, 0, n)
    batches = [bucketed.batch(step) for step in range(n // b)]
    assert sorted(sum((examples for examples, _ in batches), [])) == list(range(n))
    assert all(len(examples) == b and length == needs[examples].max() for examples, length in batches)
    mixed = sum(len(set(needs[examples])) > 1 for examples, _ in batches)
    assert mixed <= 2 * -(-n // (b * BATCHES_PER_WINDOW)), "only at borders of buckets within a window"
    lengths = [length for _, length in batches[:BATCHES_PER_WINDOW]]
    assert lengths != sorted(lengths), "batches must not be sorted by length"
    assert bucketed.batch(3) == LengthBucketedOrder(order, needs, b, 0, n).batch(3), "random access to any batch"


def test_only_the_last_bucketed_batch_is_partial():
    bucketed = LengthBucketedOrder(np.arange(30), np.full(30, 64, np.int32), 8, 0, positions=30)
    assert [len(bucketed.batch(step)[0]) for step in range(4)] == [8, 8, 8, 6]


# --- real data --------------------------------------------------------


def scienceqa(real_data, tokenizer, features):
    """Sizes of real problems as conversations: question, hint and choices; lecture, solution and answer."""
    sizes = []
    for p in json.loads((real_data / "scienceqa" / "problems.json").read_text()).values():
        question = "\n".join([p["question"], p.get("hint") or "", *p["choices"]])
        answer = "\n".join([p.get("lecture") or "", p.get("solution") or "", p["choices"][p["answer"]]])
        image = bool(p.get("image"))
        turns = [("human", "<image>\n" * image + question), ("gpt", answer)]
        ids, _ = tokenize(tokenizer, "vicuna_v1", turns, int(image))
        sizes.append((len(ids) + image * (features - 1), int(image)))
    return np.array(sizes)


def captions(real_data, tokenizer, features):
    lines = (real_data / "captioned_images" / "captions.jsonl").read_text().splitlines()
    conversations = [[("human", "<image>"), ("gpt", json.loads(line)["caption"])] for line in lines]
    return np.array([(len(tokenize(tokenizer, "plain", turns, 1)[0]) + features - 1, 1) for turns in conversations])


@pytest.mark.parametrize(
    "read, features, length, max_images",
    [(scienceqa, 256, 2048, 8), (scienceqa, 576, 2048, 8), (captions, 256, 2048, 8), (captions, 49, 512, 16)],
)
def test_rows_of_real_data_are_at_least_90_percent_full(real_data, read, features, length, max_images):
    tokenizer = load_tokenizer(real_data / "tokenizers" / "llama2.model")
    sizes = read(real_data, tokenizer, features)
    fraction = efficiency(sizes, pack(sizes, length, max_images, 0), length)
    print(f"{read.__name__}, {features} placeholders an image: {len(sizes)} samples, {100 * fraction:.1f} % full")
    assert fraction >= 0.90
