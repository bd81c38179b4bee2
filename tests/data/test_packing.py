"""packing.py: which examples share a row, and which rows share a batch."""

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


def rows_of(groups):
    return [groups[i] for i in range(len(groups))]


def test_packing_is_a_picture():
    #  length 10, one image a row: 7 and 3 would fit by their tokens, but both have an image
    sizes = np.array([[7, 1], [4, 0], [3, 1], [3, 0]])
    assert rows_of(pack(sizes, 10, 1, seed=None)) == [[0, 3], [1, 2]]
    assert rows_of(pack(sizes, 10, 2, seed=None)) == [[0, 2], [1, 3]]
    unordered = np.array([[3, 0], [4, 0], [7, 0], [6, 0]])
    assert rows_of(pack(unordered, 10, 0, seed=None)) == [[2, 0], [3, 1]]  # as they come: [0, 1], [2], [3]


@pytest.mark.parametrize("seed", [None, 3])
def test_every_example_is_in_exactly_one_row_and_rows_hold_what_they_may(seed):
    sizes = some_sizes()
    groups = pack(sizes, 1024, 5, seed)
    assert sorted(groups.members.tolist()) == list(range(5000))
    for row in rows_of(groups):
        tokens, images = sizes[row].sum(axis=0)
        assert row and tokens <= 1024 and images <= 5
    with pytest.raises(IndexError):
        groups[len(groups)]


def test_rows_depend_on_sizes_and_seed_alone():
    sizes = some_sizes()
    one, same, other = pack(sizes, 1024, 8, 1), pack(sizes.copy(), 1024, 8, 1), pack(sizes, 1024, 8, 2)
    assert rows_of(one) == rows_of(same) != rows_of(other)


def test_what_is_larger_than_a_row_is_refused():
    for size in ([11, 0], [5, 2]):
        with pytest.raises(ConfigError, match="do not go into 10, 1"):
            pack(np.array([[3, 0], size]), 10, 1, 0)


def test_what_cannot_be_read_gets_the_room_of_the_next_that_can():
    sizes = np.array([[0, 0], [5, 1], [0, 0], [0, 0], [7, 2], [0, 0]])
    assert fill_unknown_sizes(sizes)[:, 0].tolist() == [5, 5, 7, 7, 7, 5]
    assert fill_unknown_sizes(sizes)[:, 1].tolist() == [1, 1, 2, 2, 2, 1]
    with pytest.raises(DataError, match="not one of 3 samples can be read"):
        fill_unknown_sizes(np.zeros((3, 2), int))


def test_a_bucket_is_the_smallest_length_that_holds():
    sizes = np.array([[1, 0], [64, 1], [65, 0], [128, 3]])
    assert buckets(sizes, (64, 128)).tolist() == [64, 64, 128, 128]
    with pytest.raises(ConfigError, match="128 tokens does not go into any of"):
        buckets(sizes, (64, 127))


def test_batches_of_buckets_show_every_example_once_and_are_no_longer_than_they_must():
    n, b = 1000, 8
    needs = buckets(some_sizes(n), (256, 512, 1024))
    order = np.random.default_rng(5).permutation(n)
    bucketed = LengthBucketedOrder(order, needs, b, 0, n)
    batches = [bucketed.batch(step) for step in range(n // b)]
    assert sorted(sum((examples for examples, _ in batches), [])) == list(range(n))
    assert all(len(examples) == b and length == needs[examples].max() for examples, length in batches)
    mixed = sum(len(set(needs[examples])) > 1 for examples, _ in batches)
    assert mixed <= 2 * -(-n // (b * BATCHES_PER_WINDOW)), "only where two buckets meet in a window"
    lengths = [length for _, length in batches[:BATCHES_PER_WINDOW]]
    assert lengths != sorted(lengths), "short ones first would be a curriculum"
    assert bucketed.batch(3) == LengthBucketedOrder(order, needs, b, 0, n).batch(3), "any batch at once"


def test_only_the_last_batch_of_buckets_is_not_full():
    bucketed = LengthBucketedOrder(np.arange(30), np.full(30, 64, np.int32), 8, 0, positions=30)
    assert [len(bucketed.batch(step)[0]) for step in range(4)] == [8, 8, 8, 6]


# --- real data --------------------------------------------------------


def scienceqa(real_data, tokenizer, features):
    """Sizes of the real problems as instructions: question, hint and choices, then lecture, solution and answer."""
    sizes = []
    for p in json.loads((real_data / "scienceqa" / "problems.json").read_text()).values():
        asked = "\n".join([p["question"], p.get("hint") or "", *p["choices"]])
        said = "\n".join([p.get("lecture") or "", p.get("solution") or "", p["choices"][p["answer"]]])
        image = bool(p.get("image"))
        ids, _ = tokenize(tokenizer, "vicuna_v1", [("human", "<image>\n" * image + asked), ("gpt", said)], int(image))
        sizes.append((len(ids) + image * (features - 1), int(image)))
    return np.array(sizes)


def captions(real_data, tokenizer, features):
    lines = (real_data / "captioned_images" / "captions.jsonl").read_text().splitlines()
    told = [[("human", "<image>"), ("gpt", json.loads(line)["caption"])] for line in lines]
    return np.array([(len(tokenize(tokenizer, "plain", turns, 1)[0]) + features - 1, 1) for turns in told])


@pytest.mark.parametrize(
    "read, features, length, max_images",
    [(scienceqa, 256, 2048, 8), (scienceqa, 576, 2048, 8), (captions, 256, 2048, 8), (captions, 49, 512, 16)],
)
def test_rows_of_real_data_are_at_least_90_percent_full(real_data, read, features, length, max_images):
    tokenizer = load_tokenizer(real_data / "tokenizers" / "llama2.model")
    sizes = read(real_data, tokenizer, features)
    full = efficiency(sizes, pack(sizes, length, max_images, 0), length)
    print(f"{read.__name__}, {features} placeholders an image: {len(sizes)} samples, {100 * full:.1f} % full")
    assert full >= 0.90
