import numpy as np
import pytest
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.rows import build_row
from llava_jax.text.spans import split_row
from tests.fixtures.tokenizers import TINY

TURNS = (("human", "<image> and <image> ?"), ("gpt", "a red circle"), ("human", "where ?"), ("gpt", "left"))


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0", "llama_2"])
def test_pieces_are_the_row_and_split_where_its_mask_does(template):
    example = Example("7", TURNS, (Image.new("RGB", (24, 24)),) * 2)
    row = build_row(
        example, tokenizer=TINY, template=template, length=400, max_images=2, features=4, image_size=24,
        aspect="crop", overlong="error",
    )  # fmt: skip
    pieces = split_row(row, TINY)
    real = row.segment_ids > 0
    assert [id for piece in pieces for id in piece.ids] == row.tokens[real].tolist()
    mask = np.concatenate([[piece.is_target] * len(piece.ids) for piece in pieces])
    assert mask.tolist() == row.target_mask[real].tolist()
    assert [piece.text for piece in pieces if piece.is_image] == ["<image x 4>"] * 2
    standing = [(piece.is_target, piece.is_image) for piece in pieces]
    assert all(a != b for a, b in zip(standing, standing[1:], strict=False))
    assert "".join(piece.text for piece in pieces if piece.is_target).count("a red circle") == 1
