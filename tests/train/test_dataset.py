"""dataset.py: sizes measured before a run, by one process and by several."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Data, Stage
from llava_jax.config.architectures import VISION
from llava_jax.data.example import Example
from llava_jax.data.rows import RowFormat, Rows
from llava_jax.errors import ConfigError, DataError
from llava_jax.train import dataset
from tests.fixtures.scienceqa import write_folder


def rows(count=700) -> Rows:
    """Examples of different lengths with images that do not exist; 7 and 600 lack the image marker."""
    answers = [" ".join(["red"] * (1 + i % 13)) for i in range(count)]
    examples = [
        Example(str(i), (("human", "<image>" * (i not in (7, 600))), ("gpt", text)), (Path("/nowhere"),))
        for i, text in enumerate(answers)
    ]
    tokenizer = open_tokenizer("tiny")
    return Rows(examples, RowFormat(tokenizer, "plain", 64, 1, 9, 48, "crop", "error"), replace=True)


def test_measured_sizes_equal_the_rows_without_opening_images():
    source = [dataclasses.replace(e, images=(Image.new("RGB", (9, 9)),)) for e in rows(40).source]
    made = dataclasses.replace(rows(40), source=source)
    sizes = dataset.measure(rows(40), threads=2, workers=0)
    assert sizes.shape == (40, 2) and sizes[7].tolist() == [0, 0]
    for i in set(range(40)) - {7}:
        assert sizes[i].tolist() == [(made.row(i).arrays.segment_ids > 0).sum(), 1]


def test_two_processes_measure_half_each_and_share_all_sizes(monkeypatch):
    whole, shares = dataset.measure(rows(), 2, 0), {}
    assert (whole[:, 0] == 0).sum() == 2

    def gather(mine, tiled):
        shares[jax.process_index()] = mine
        return np.concatenate([shares.get(p, mine) for p in range(2)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(dataset.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    dataset.measure(rows(), 2, 0)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    np.testing.assert_array_equal(dataset.measure(rows(), 2, 0), whole)
    assert shares[0].shape == shares[1].shape == (350, 2), "half each, not everything twice"


def test_unreadable_sample_without_replacement_fails():
    with pytest.raises(DataError, match="sample '7'"):
        dataset.measure(dataclasses.replace(rows(), replace=False), 2, 0)


def write_json(path: Path, name: str, counts: list[int]) -> None:
    """Writes text-only samples `name`0, `name`1, ... whose answers have `counts` words."""
    talks = [[{"from": "human", "value": ""}, {"from": "gpt", "value": "red " * count}] for count in counts]
    rows = [{"id": f"{name}{i}", "conversations": talk} for i, talk in enumerate(talks)]
    path.write_text(json.dumps(rows))


PACKED = dict(template="plain", length=32, max_images=0, packing="pack", threads=0)


def opened(stage: Stage) -> dataset.StageData:
    return dataset.open_stage("one", stage, 0, open_tokenizer("tiny"), VISION["tiny"])


def test_steps_of_packed_epochs_are_exact(tmp_path, capsys):
    write_json(tmp_path / "chat.json", "", [1 + i % 5 for i in range(100)])
    data = Data(path=str(tmp_path / "chat.json"), image_folder=str(tmp_path), **PACKED)
    stage = Stage(data=data, batch=4, epochs=3)
    stage_data = opened(stage)
    assert "one: measured 100 samples in" in capsys.readouterr().out
    batches = list(dataset.training_batches(stage, stage_data, 0))
    assert len(batches) == stage_data.steps < 3 * 100 / 4 / 2
    assert stage_data.samples == 300 == sum(int(b.segment_ids.max(axis=1).sum()) for b, _ in batches)
    by_steps = dataclasses.replace(stage, steps=10)
    stage_data = opened(by_steps)
    assert stage_data.samples == round(40 * 100 / len(stage_data.train))


def packed_mixture(folder: Path, names: str) -> tuple[Stage, dataset.StageData]:
    """A mixture of equally weighted sources of 300 samples: short in `a`, medium in `c`, long in `b`."""
    mixture = tuple((str(folder / f"{name}.json"), str(folder), 1.0) for name in names)
    for name in names:
        count = {"a": 2, "b": 9, "c": 5}[name]
        write_json(folder / f"{name}.json", name, [count + i % 3 for i in range(300)])
    stage = Stage(data=Data(mixture=mixture, **PACKED), batch=4, epochs=1)
    return stage, opened(stage)


def names_of(
    stage: Stage, data: dataset.StageData, data_state: dict | None, steps: int
) -> tuple[list[list[str]], dict]:
    """(the samples of each row of the next `steps` batches, the iterator state after them)."""
    if data_state is not None:
        data = dataset.resume_data(data, data_state)
    batches = dataset.training_batches(stage, data, 0)
    if data_state is not None:
        batches.set_state({name: value for name, value in data_state.items() if name != "mixture"})
    indices = [next(batches)[1].index for _ in range(steps)]
    batches.close()
    return [data.train.names(int(i)) for index in indices for i in index], dataset.data_state_of(data, batches)


def test_packed_mixture_packs_each_source_alone_and_weighs_samples(tmp_path):
    stage, data = packed_mixture(tmp_path, "bc")
    rows, _ = names_of(stage, data, None, data.steps)
    assert all(len({name[0] for name in row}) == 1 for row in rows)
    of_b, of_c = (sum(len(row) for row in rows if row[0][0] == name) for name in "bc")
    assert abs(of_b - of_c) < 0.15 * (of_b + of_c), "weights count samples"
    assert sum(row[0][0] == "c" for row in rows) < 0.45 * len(rows), "short samples need fewer rows"


def test_packed_mixture_resumes_exactly_also_with_an_added_source(tmp_path):
    stage, data = packed_mixture(tmp_path, "bc")
    whole, _ = names_of(stage, data, None, 30)
    first, data_state = names_of(stage, data, None, 10)
    assert first + names_of(stage, data, json.loads(json.dumps(data_state)), 20)[0] == whole
    changed = packed_mixture(tmp_path, "abc")  # a source that comes first in the order
    more, data_state = names_of(*changed, data_state, 20)
    assert {row[0][0] for row in more} == set("abc")
    for name in "bc":
        # The order within a source stays the same; its samples only come later.
        kept = [row for row in first + more if row[0][0] == name]
        assert kept == [row for row in whole if row[0][0] == name][: len(kept)]
    write_json(tmp_path / "b.json", "b", [9] * 150 + [3] * 150)
    with pytest.raises(ConfigError, match="b.json (had .* examples, now it has|is packed differently than before)"):
        names_of(stage, opened(stage), data_state, 1)


def test_held_out_rows_are_shorter_than_packed_rows(tmp_path):
    write_json(tmp_path / "chat.json", "", [1 + i % 5 for i in range(300)])
    data = Data(path=str(tmp_path / "chat.json"), image_folder=str(tmp_path), held_out=0.3, **(PACKED | {"length": 64}))
    stage_data = opened(Stage(data=data, batch=4, epochs=1, loss_chunks=4))
    rows = [stage_data.held_out.row(i).arrays for i in range(len(stage_data.held_out))]
    longest = max((row.segment_ids > 0).sum() for row in rows)
    assert {row.tokens.shape for row in rows} == {(16,)} and 8 < longest <= 16
    assert all(row.arrays.tokens.shape == (64,) for row in (stage_data.train.row(0), stage_data.train.row(1)))


def test_scienceqa_split_and_prompt_format_apply_in_mixtures_too(tmp_path):
    write_folder(tmp_path / "sqa", {str(i): {"lecture": "a lecture"} for i in range(3)})
    (tmp_path / "sqa" / "pid_splits.json").write_text('{"train": [], "test": ["0", "1", "2"], "minitest": ["2", "0"]}')
    write_json(tmp_path / "chat.json", "c", [3] * 5)
    options = dict(template="vicuna_v1", length=200, max_images=0, threads=0)
    options |= dict(split="minitest", prompt_format="QCM-ALE")
    alone = opened(Stage(data=Data(path=str(tmp_path / "sqa"), **options), batch=1, epochs=1))
    assert [example.id for example in alone.train.source] == ["2", "0"]
    assert alone.train.source[0].turns[1][1] == "The answer is A. BECAUSE: a lecture"
    sources = ((str(tmp_path / "sqa"), "", 1.0), (str(tmp_path / "chat.json"), str(tmp_path), 1.0))
    mixed = opened(Stage(data=Data(mixture=sources, **options), batch=1, steps=4))
    ids = {mixed.train.source[i].id for i in range(len(mixed.train.source))}
    assert ids == {"2", "0", "c0", "c1", "c2", "c3", "c4"}
    with pytest.raises(ConfigError, match="no ScienceQA folder; correct its path"):
        opened(Stage(data=Data(mixture=sources[1:], **options), batch=1, steps=4))
    with pytest.raises(ConfigError, match="Set data.split"):
        opened(Stage(data=Data(path=str(tmp_path / "sqa"), **(options | {"split": ""})), batch=1, epochs=1))
