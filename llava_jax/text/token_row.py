"""The arrays that the model reads: a row of tokens and images, and a batch of rows. Only this module lays them out.

Legend: B rows of a batch, T tokens of a row, N image slots of a row, H = W = the side of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llava_jax.errors import DataError


class EncodedExample(NamedTuple):
    """One example, or one prompt, of a row: n tokens and m images."""

    ids: np.ndarray  # int32[n], each image a run of placeholders
    mask: np.ndarray  # bool[n], True where the token is trained on; a prompt has none
    images: np.ndarray  # uint8[m, H, W, 3]; of a prompt also float, if already normalized


class TokenRow(NamedTuple):
    """One row. The images of all its examples fill the first slots, in order: that is how the model assigns them."""

    tokens: np.ndarray  # int32[T], padded on the right
    target_mask: np.ndarray  # bool[T], True where the token is trained on (the loss does the shift)
    positions: np.ndarray  # int32[T], counted from 0 in each segment; 0 at padding
    segment_ids: np.ndarray  # int32[T]: 1, 2, .. for the examples of the row; 0 at padding
    images: np.ndarray  # uint8[N, H, W, 3], or float where the prompts' images are


class Batch(NamedTuple):
    """B rows. A pytree: numpy arrays on the host, jax arrays on the devices, or their ShapeDtypeStructs.

    The two counts are optional. Where they are given, the train step returns their sums over all processes.
    """

    tokens: np.ndarray  # int32[B, T]
    target_mask: np.ndarray  # bool[B, T]
    positions: np.ndarray  # int32[B, T]
    segment_ids: np.ndarray  # int32[B, T]
    images: np.ndarray  # uint8[B, N, H, W, 3], or float for prompts
    replaced: np.ndarray | None = None  # int32[B], samples of each row that were replaced because they were unreadable
    stop: np.ndarray | None = None  # int32[B], the signal that the process of this row got, or 0


def token_row(
    examples: Sequence[EncodedExample],
    *,
    length: int,
    image_slots: int,
    image_size: int,
    pad_id: int = 0,
    image_dtype: np.dtype | type = np.uint8,
) -> TokenRow:
    """Lays out examples one after the other in a row of `length` tokens (T) and `image_slots` images (N).

        ids [5 6 7] and [8 9], T = 6:    tokens 5 6 7 8 9 .   positions 0 1 2 0 1 0   segment_ids 1 1 1 2 2 0

    Without examples, the row is padding. Raises DataError where the examples do not fit.
    """
    tokens, images = sum(len(e.ids) for e in examples), sum(len(e.images) for e in examples)
    if tokens > length or images > image_slots:
        raise DataError(
            f"{len(examples)} sample(s) of {tokens} tokens and {images} images do not fit into a row of {length} and "
            f"{image_slots}. Did the data change after its lengths were measured? Start the run again."
        )
    row = TokenRow(
        tokens=np.full(length, pad_id, np.int32),
        target_mask=np.zeros(length, bool),
        positions=np.zeros(length, np.int32),
        segment_ids=np.zeros(length, np.int32),
        images=np.zeros((image_slots, image_size, image_size, 3), image_dtype),
    )
    start = slot = 0
    for number, (ids, mask, pixels) in enumerate(examples, 1):
        span = slice(start, start + len(ids))
        row.tokens[span], row.target_mask[span] = ids, mask
        row.positions[span], row.segment_ids[span] = np.arange(len(ids)), number
        if len(pixels):
            row.images[slot : slot + len(pixels)] = pixels
        start, slot = span.stop, slot + len(pixels)
    return row


def stack_rows(rows: Sequence[TokenRow]) -> Batch:
    """Makes a batch of rows of the same shape."""
    return Batch(*map(np.stack, zip(*rows, strict=True)))
