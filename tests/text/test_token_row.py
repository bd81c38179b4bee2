"""The layout of tokens and images in a row."""

import jax
import numpy as np
import pytest

from llava_jax.errors import DataError
from llava_jax.text.token_row import Batch, EncodedExample, stack_rows, token_row

F, T = False, True


def example(ids: list[int], mask: list[bool], *values: int, dtype=np.uint8) -> EncodedExample:
    """With an image of a single value for each of `values`."""
    images = np.array(values, dtype)[:, None, None, None] * np.ones((2, 2, 3), dtype)
    return EncodedExample(np.array(ids, np.int32), np.array(mask), images)


def test_examples_are_laid_out_in_order():
    examples = [example([5, 6, 7], [F, T, T], 1), example([8, 9], [F, T]), example([4], [T], 2, 3)]
    row = token_row(examples, length=8, image_slots=4, image_size=2, pad_id=9)
    assert row.tokens.tolist() == [5, 6, 7, 8, 9, 4, 9, 9]
    assert row.target_mask.tolist() == [F, T, T, F, T, T, F, F]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 2, 2, 3, 0, 0]
    assert row.images[:, 1, 1, 2].tolist() == [1, 2, 3, 0]
    assert [x.dtype for x in row] == [np.int32, bool, np.int32, np.int32, np.uint8]


def test_empty_row_and_normalized_images():
    row = token_row([], length=3, image_slots=0, image_size=2)
    assert not any(x.any() for x in row) and row.images.shape == (0, 2, 2, 3)
    half = example([1], [F], 0.5, dtype=np.float32)
    row = token_row([half], length=3, image_slots=1, image_size=2, image_dtype=np.float32)
    assert row.images.dtype == np.float32 and (row.images == 0.5).all()


def test_examples_that_do_not_fit_raise():
    layout = dict(length=3, image_slots=1, image_size=2)
    with pytest.raises(DataError, match="4 tokens and 1 images do not fit into a row of 3 and 1"):
        token_row([example([1, 2], [F, T], 1), example([1, 2], [F, T])], **layout)
    with pytest.raises(DataError, match="2 tokens and 2 images do not fit"):
        token_row([example([1, 2], [F, T], 1, 2)], **layout)


def test_batch_pytree_skips_missing_counts():
    rows = [token_row([example([i], [T], i)], length=3, image_slots=1, image_size=2) for i in (1, 2)]
    batch = stack_rows(rows)
    assert batch.tokens.tolist() == [[1, 0, 0], [2, 0, 0]] and batch.images.shape == (2, 1, 2, 2, 3)
    assert batch.replaced is None and batch.stop is None
    assert len(jax.tree.leaves(batch)) == 5
    counted = batch._replace(stop=np.ones(2, np.int32))
    doubled = jax.tree.map(lambda x: x + x, counted)
    assert isinstance(doubled, Batch) and doubled.stop.tolist() == [2, 2] and doubled.replaced is None
