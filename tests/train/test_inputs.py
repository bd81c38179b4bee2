"""inputs.py: what is measured before a run, by one process and by several."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from llava_jax.architectures import VISION
from llava_jax.config import Data, Stage
from llava_jax.data.example import Example
from llava_jax.data.rows import RowFormat, Rows
from llava_jax.errors import DataError
from llava_jax.train import inputs


def rows(count=700) -> Rows:
    """Examples of unequal length, each with an image nobody may open; 7 and 600 have no answer that fits."""
    answers = [" ".join(["red"] * (1 + i % 13)) for i in range(count)]
    examples = [
        Example(str(i), (("human", "<image>" * (i not in (7, 600))), ("gpt", text)), (Path("/nowhere"),))
        for i, text in enumerate(answers)
    ]
    tokenizer = inputs.open_tokenizer("tiny")
    return Rows(examples, RowFormat(tokenizer, "plain", 64, 1, 9, 48, "crop", "error"), replace=True)


def test_sizes_are_those_of_the_rows_and_open_no_image():
    source = [dataclasses.replace(e, images=(Image.new("RGB", (9, 9)),)) for e in rows(40).source]
    made = dataclasses.replace(rows(40), source=source)
    sizes = inputs.measure(rows(40), threads=2, workers=0)
    assert sizes.shape == (40, 2) and sizes[7].tolist() == [0, 0]
    for i in set(range(40)) - {7}:
        assert sizes[i].tolist() == [(made.row(i)["segment_ids"] > 0).sum(), 1]


def test_two_processes_measure_a_half_each_and_know_everything(monkeypatch):
    whole, shares = inputs.measure(rows(), 2, 0), {}
    assert (whole[:, 0] == 0).sum() == 2

    def gather(mine):
        shares[jax.process_index()] = mine
        return np.stack([shares.get(p, mine) for p in range(2)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(inputs.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    inputs.measure(rows(), 2, 0)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    np.testing.assert_array_equal(inputs.measure(rows(), 2, 0), whole)
    assert shares[0].size + shares[1].size < 2 * 1024 * 2, "a share each, not everything twice"


def test_a_sample_that_cannot_be_measured_and_stays_is_an_error():
    with pytest.raises(DataError, match="sample '7'"):
        inputs.measure(dataclasses.replace(rows(), replace=False), 2, 0)


def test_the_steps_of_packed_epochs_are_counted_exactly(tmp_path, capsys):
    (tmp_path / "chat.json").write_text(
        "["
        + ",".join(
            f'{{"id": "{i}", "conversations": [{{"from": "human", "value": ""}}, '
            f'{{"from": "gpt", "value": "{"red " * (1 + i % 5)}"}}]}}'
            for i in range(100)
        )
        + "]"
    )
    data = Data(
        path=str(tmp_path / "chat.json"), image_folder=str(tmp_path), template="plain", length=32, max_images=0,
        packing="pack", threads=0,
    )  # fmt: skip
    stage = Stage(data=data, batch=4, epochs=3)
    opened = inputs.open_stage("one", stage, 0, inputs.open_tokenizer("tiny"), VISION["tiny"])
    assert "one: measured 100 samples in" in capsys.readouterr().out
    batches = list(inputs.training_batches(stage, opened, 0))
    assert len(batches) == opened.steps < 3 * 100 / 4 / 2
    assert opened.samples == 300 == sum(int(b["segment_ids"].max(axis=1).sum()) for b in batches)
    by_steps = dataclasses.replace(stage, steps=10)
    opened = inputs.open_stage("one", by_steps, 0, inputs.open_tokenizer("tiny"), VISION["tiny"])
    assert opened.samples == round(40 * 100 / len(opened.train))
