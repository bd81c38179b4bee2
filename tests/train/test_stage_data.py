"""dataset.py: which source a stage opens, what it holds out, and its number of steps."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_jax.__main__ import main
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Data, Stage
from llava_jax.data.mixture import Mixture
from llava_jax.data.sources.array_record import ArrayRecordSource
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import ConfigError, DataError
from llava_jax.train.dataset import data_state_of, open_stage, training_batches
from tests.fixtures.tiny_models import VISION


def write_json(path: Path, rows: int) -> Path:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    (path.parent / "a.png").write_bytes(out.getvalue())
    turns = [{"from": "human", "value": "<image>\nwhat is in the image ?"}, {"from": "gpt", "value": "a red thing"}]
    path.write_text(
        json.dumps([{"id": f"{path.stem}{i}", "image": "a.png", "conversations": turns} for i in range(rows)])
    )
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


def stage(**data) -> Stage:
    return Stage(data=Data(template="plain", length=32, threads=1, **data), batch=8)


@pytest.fixture
def opened(tokenizer):
    return lambda stage: open_stage("one", stage, 5, tokenizer, VISION)


def test_source_type_follows_from_the_files(tmp_path, opened):
    path = write_json(tmp_path / "a.json", 30)
    from_json = opened(stage(path=str(path), image_folder=str(tmp_path)))
    main(["data", "build", str(path), str(tmp_path / "built"), "--images", str(tmp_path), "--shard-rows", "8"])
    from_shards = opened(stage(path=str(tmp_path / "built")))
    assert isinstance(from_json.train.source, LlavaJson)
    assert isinstance(from_shards.train.source, ArrayRecordSource)
    assert from_json.steps == from_shards.steps == 4 and from_json.held_out is None
    rows = json.loads(path.read_text())
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, rows)))
    from_lines = opened(stage(path=str(tmp_path / "lines"), image_folder=str(tmp_path)))
    batches = [training_batches(stage(), data, 5) for data in (from_json, from_shards, from_lines)]
    for (batch, info), *others in zip(*batches, strict=True):
        for other, other_info in others:
            assert all(map(np.array_equal, batch, other)) and np.array_equal(info.index, other_info.index)
    with pytest.raises(ConfigError, match="row 0 names the image .*, so the data needs image_folder"):
        opened(stage(path=str(path)))
    with pytest.raises(ConfigError, match="data: gs:.* is a URL"):
        opened(stage(path="gs://bucket/a.json", image_folder=str(tmp_path)))
    with pytest.raises(ConfigError, match="image folder: https:.* is a URL"):
        opened(stage(path=str(path), image_folder="https://host/images"))
    with pytest.raises(DataError, match="a folder without .array_record or .parquet"):
        opened(stage(path=str(tmp_path)))


def test_mixture_holds_out_of_every_source_and_never_ends(tmp_path, opened):
    parts = tuple((str(write_json(tmp_path / f"{n}.json", rows)), str(tmp_path), w) for n, rows, w in
                  (("a", 300, 1.0), ("b", 500, 3.0)))  # fmt: skip
    mixed = stage(mixture=parts, held_out=0.1)
    data = opened(mixed)
    source, train, out = data.train.source, data.train.groups, data.held_out.source
    assert isinstance(train, Mixture)
    sizes = [len(part.source) for part in train.parts]
    assert sum(sizes) + len(data.held_out) == 800 and data.steps == -(-sum(sizes) // 8)
    assert data.samples == sum(sizes)
    held_out = {out[i].id for i in range(len(out))}
    first = [out[i].id[0] for i in range(32)]
    assert len(held_out) == len(data.held_out) and 5 < first.count("a") < 27
    trained = [source[train[i]].id for i in range(900)]
    assert not held_out & set(trained)
    assert 0.65 < sum(name.startswith("b") for name in trained) / 900 < 0.85

    batches = training_batches(mixed, data, 5)
    for _ in range(data.steps + 2):
        assert next(batches)[0].target_mask.any(1).all(), "no filler, because it never ends"
    batches.close()
    assert data_state_of(data, batches)["mixture"]["lengths"] == {part.name: len(part.source) for part in train.parts}
    short = opened(dataclasses.replace(mixed, steps=7))
    assert (short.steps, short.samples) == (7, 56)


def test_mixture_without_held_out_trains_on_every_example(tmp_path, opened):
    data = opened(stage(mixture=((str(write_json(tmp_path / "a.json", 9)), str(tmp_path), 1.0),)))
    assert data.held_out is None and data.steps == 2
    assert sorted(data.train.source[i].id for i in range(9)) == sorted(f"a{i}" for i in range(9))
