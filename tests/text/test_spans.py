import numpy as np
import pytest
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.rows import build_row
from llava_jax.text.spans import split_row
from tests.fixtures.tokenizers import TINY

TURNS = (("human", "<image> and <image> ?"), ("gpt", "a red circle"), ("human", "where ?"), ("gpt", "left"))


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0", "llama_2"])
def test_spans_cover_the_row_and_split_at_mask_changes(template):
    example = Example("7", TURNS, (Image.new("RGB", (24, 24)),) * 2)
    row = build_row(
        example, tokenizer=TINY, template=template, length=400, max_images=2, features=4, image_size=24,
        aspect="crop", overlong="error",
    )  # fmt: skip
    spans = split_row(row, TINY)
    real = row.segment_ids > 0
    assert [id for span in spans for id in span.ids] == row.tokens[real].tolist()
    mask = np.concatenate([[span.is_target] * len(span.ids) for span in spans])
    assert mask.tolist() == row.target_mask[real].tolist()
    assert [span.text for span in spans if span.is_image] == ["<image x 4>"] * 2
    kinds = [(span.is_target, span.is_image) for span in spans]
    assert all(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    assert "".join(span.text for span in spans if span.is_target).count("a red circle") == 1
