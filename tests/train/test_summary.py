import re

import numpy as np
import pytest
from PIL import Image

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.data.example import Example
from llava_jax.data.rows import build_row
from llava_jax.models.params import abstract_model
from llava_jax.train.optimizer import learning_rates_per_parameter
from llava_jax.train.summary import parameter_table, render_sample
from tests.fixtures.tiny_models import EVEN
from tests.fixtures.train_setup import STAGE_1, setup

TOKENIZER = open_tokenizer("tiny")


def row(turns, images, template="vicuna_v1", length=120):
    pictures = tuple(Image.new("RGB", (24, 24)) for _ in range(images))
    return build_row(
        Example("7", turns, pictures), tokenizer=TOKENIZER, template=template, length=length, max_images=2, features=4,
        image_size=24, aspect="crop", overlong="error",
    )  # fmt: skip


CONVERSATIONS = {
    "vicuna_v1": (("human", "<image>\nwhat is it ?"), ("gpt", "a red circle"), ("human", "where ?"), ("gpt", "left")),
    "plain": (("human", "<image>"), ("gpt", "a small red circle")),
    "text": (("human", "what is two ?"), ("gpt", "a number")),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_double_brackets_enclose_exactly_the_targets(name):
    turns = CONVERSATIONS[name]
    images = sum("<image>" in text for _, text in turns)
    sample = row(turns, images, "plain" if name == "plain" else "vicuna_v1")
    text, last_line = render_sample(sample, TOKENIZER).rsplit("\n", 1)

    marked = re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL)
    real = sample.segment_ids > 0
    spans = np.split(np.arange(len(real)), np.flatnonzero(np.diff(sample.target_mask.astype(int))) + 1)
    expected = [
        TOKENIZER.decode(sample.tokens[span], skip_special=False) for span in spans if sample.target_mask[span[0]]
    ]
    assert marked == expected
    for (_, answer), shown in zip(turns[1::2], marked, strict=True):
        assert shown.strip().removesuffix("</s>").strip() == answer

    shown = text.replace("[[", "").replace("]]", "")
    assert shown.count("<image x 4>") == images and shown.count("<image") == images
    for _, value in turns:
        assert value.replace("<image>", "").strip() in shown
    assert last_line == f"({real.sum()} tokens, {sample.target_mask.sum()} of them supervised, in a row of 120)"


def test_special_tokens_are_shown_and_padding_is_not():
    text = render_sample(row(CONVERSATIONS["text"], 0), TOKENIZER)
    assert text.count("</s>") == 1 and "<s>" in text and not re.search(r"<pad>|<unk>", text)


def test_table_lists_shape_dtype_rate_and_sharding():
    run = setup(STAGE_1, (2, 2, 2))
    shapes, specs = abstract_model(EVEN)
    *lines, last_line = parameter_table(run.abstract, learning_rates_per_parameter(shapes, STAGE_1))
    assert re.split(r"  +", lines[0]) == ["parameter", "shape", "dtype", "trained at", "sharding"]
    table = {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in lines[1:])}
    assert table.keys() == shapes.keys()
    assert table["llm/layers/q/kernel"] == ["2x32x4x8", "float32", "frozen", "-, fsdp, tensor, -"]
    assert table["projector/linear_1/kernel"] == ["32x32", "float32", "0.01", "fsdp, tensor"]
    assert table["vision/post_norm/bias"] == ["32", "float32", "frozen", "fsdp"]
    assert all(len(cells[3].split(", ")) == len(specs[path]) for path, cells in table.items())

    sizes = {path: int(np.prod(x.shape)) for path, x in shapes.items()}
    trained = sum(n for path, n in sizes.items() if path.startswith("projector/"))
    total = sum(sizes.values())
    assert last_line == f"{total:,} parameters, {trained:,} trained ({100 * trained / total:.2f}%)"
    assert parameter_table(run.state, learning_rates_per_parameter(shapes, STAGE_1)) == [*lines, last_line]
