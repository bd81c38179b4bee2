"""Turns a row back into text, split where supervision begins and ends, for people to check before they train."""

from typing import NamedTuple

import numpy as np

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.text.token_row import TokenRow
from llava_jax.text.tokenizer import Tokenizer


class TokenSpan(NamedTuple):
    """Neighbouring tokens that are all targets, all images, or neither. `text` of N image tokens is `<image x N>`."""

    text: str
    is_target: bool
    is_image: bool
    ids: tuple[int, ...]


def split_row(row: TokenRow, tokenizer: Tokenizer) -> list[TokenSpan]:
    """The spans of a row without its padding; special tokens are written by name."""
    real = row.segment_ids > 0
    tokens = row.tokens[real]
    kinds = np.where(tokens == IMAGE_TOKEN_ID, 2, row.target_mask[real].astype(int))
    edges = np.flatnonzero(np.diff(kinds, prepend=-1, append=-1))
    spans = []
    for start, end in zip(edges, edges[1:], strict=False):
        ids = tuple(tokens[start:end].tolist())
        is_image = bool(kinds[start] == 2)
        text = f"<image x {len(ids)}>" if is_image else tokenizer.decode(ids, skip_special=False)
        spans.append(TokenSpan(text, bool(kinds[start] == 1), is_image, ids))
    return spans
