"""Runs on data with unreadable samples. test_resume.py has one with worker processes."""

import json
import shutil
from pathlib import Path

import pytest

from llava_jax import config
from llava_jax.data.bad_samples import BadSampleLog
from llava_jax.data.sources.combine import train_eval_split
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import DataError
from llava_jax.train import loop
from tests.fixtures.bench_scripts import load_script

CONFIG = Path(__file__).parent / "packed_config.py"
packed_config = load_script(CONFIG)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKED_DATA", str(folder / "scenes"))
        yield folder


def train(folder: Path, **changes) -> list[str]:
    """The lines that a run without worker processes and without a mixture logs."""
    c = packed_config.get_config()
    packed, buckets = c.stages.packed.data, c.stages.buckets.data
    packed.workers = buckets.workers = 0
    packed.mixture, packed.path, packed.image_folder = (), buckets.path, buckets.image_folder
    with c.unlocked():
        c.update_from_flattened_dict({path.replace("__", "."): value for path, value in changes.items()})
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "log", lines.append)
        loop.train(config.from_config_dict(c), folder, ["test"])
    return lines


def listed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


PLANTED = sorted(f"instruct {i}" for i in packed_config.BAD)


def test_exceeding_bad_ceiling_fails_and_names_the_list(data, tmp_path):
    with pytest.raises(DataError, match=rf"2 of the 192 samples .* allows 1.9.* {tmp_path}/bad_samples.jsonl"):
        train(tmp_path, run=("packed",), stages__packed__data__bad_ceiling=0.01)
    assert len(listed(tmp_path)) >= 2

    # The same command resumes, also with skipped steps, which count their replaced samples and list their substitutes.
    lines = train(tmp_path, run=("packed",), guard__spike=1.0001, guard__window=1)
    files = sorted((tmp_path / "skipped").iterdir())
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(files) == records[-1].get("train/skipped", len(files)) >= 1, lines
    assert sum(r["train/replaced"] for r in records) == len(listed(tmp_path)) == 6
    for file in files:
        dump = json.loads(file.read_text())
        substitutes = {record["substitute"] for record in listed(tmp_path) if record["step"] == dump["step"]}
        assert substitutes <= set(dump["samples"]) and set(PLANTED).isdisjoint(dump["samples"])
        assert len(dump["samples"]) > 8, "several samples per row"


def test_mixture_counts_replaced_samples_and_resumes_byte_equal(data, tmp_path):
    scenes = data / "scenes"
    mixed = dict(
        run=("buckets",), stages__buckets__data__lengths=(), stages__buckets__data__path="", checkpoint__every=9,
        stages__buckets__data__mixture=((str(scenes / "chat.json"), str(scenes / "images"), 1.0),),
    )  # fmt: skip
    train(tmp_path, **mixed)
    assert sorted(r["sample"] for r in listed(tmp_path)) == PLANTED
    data_state = json.loads((tmp_path / "checkpoints" / "12" / "data" / "metadata").read_text())
    assert data_state["replaced"] == 3 and data_state["mixture"]["start"] == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "bad_samples.jsonl")}
    shutil.rmtree(tmp_path / "checkpoints" / "12")  # as if killed after step 9
    lines = train(tmp_path, **mixed)
    assert f"resuming {tmp_path} after step 9 of buckets" in lines
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    data_state_again = json.loads((tmp_path / "checkpoints" / "12" / "data" / "metadata").read_text())
    assert data_state_again == data_state
    with pytest.raises(DataError, match="of the 96 samples that stage buckets shows had to be replaced"):
        train(tmp_path / "few", **mixed, stages__buckets__data__bad_ceiling=0.001)


def test_policy_error_fails_at_the_first_bad_sample(data, tmp_path):
    with pytest.raises(DataError, match=r"sample 'instruct \d+': .*png: "):
        train(tmp_path, run=("packed",), stages__packed__data__bad="error")
    assert not (tmp_path / "bad_samples.jsonl").exists()


def test_unreadable_held_out_sample_is_counted_and_not_fatal(data, tmp_path):
    held_out = dict(
        stages__buckets__data__held_out=0.7, stages__buckets__eval__answers=2, stages__buckets__eval__max_new_tokens=2
    )
    lines = train(tmp_path, run=("buckets",), **held_out)
    source = LlavaJson(data / "scenes" / "chat.json", data / "scenes" / "images")
    ids = {source.example_id(i) for i in packed_config.BAD} & {e.id for e in train_eval_split(source, 0.7, 64)[1]}
    assert 0 < len(ids) < len(packed_config.BAD)
    (line,) = [line for line in lines if line.startswith("held out, step")]
    assert f"val/replaced {len(ids):.4f}" in line
    assert {record["sample"] for record in listed(tmp_path)}.isdisjoint(ids), "the list has training samples only"


def test_lists_of_all_processes_are_truncated_to_the_restored_step(tmp_path):
    line = '{"step": %d, "stage": "s", "sample": "1"}\n'
    for name in ("bad_samples.jsonl", "bad_samples-1.jsonl", "bad_samples-x.jsonl"):
        (tmp_path / name).write_text(line % 3 + line % 4 + line % 5 + '{"step": 6, "sta')
    lines = []
    bad = BadSampleLog(tmp_path, "s", 4, count=2, samples=1000, ceiling=0.003, log=lines.append)
    for name in ("bad_samples.jsonl", "bad_samples-1.jsonl"):
        assert (tmp_path / name).read_text() == line % 3 + line % 4, name
    assert len((tmp_path / "bad_samples-x.jsonl").read_text().splitlines()) == 4, "not a list of this project"
    entry = {"index": 7, "sample": "7", "reason": "sample '7': broken", "substitute": "8"}
    bad.record(5, [entry] * 30)
    assert len(lines) == 10 and "sample '7': broken" in lines[0]
    assert len((tmp_path / "bad_samples.jsonl").read_text().splitlines()) == 32
    bad.add(1)
    with pytest.raises(DataError, match="4 of the 1,000 samples that stage s shows"):
        bad.add(1)
    assert (
        BadSampleLog(tmp_path, "s", 4, 0, 1, 1, print, process=2, processes=3).path == tmp_path / "bad_samples-2.jsonl"
    )
