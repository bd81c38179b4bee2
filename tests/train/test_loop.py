import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import struct
import weakref
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from llava_jax import config
from llava_jax.checkpoint.native import integrity
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.config import architectures
from llava_jax.data.pipeline import Batches
from llava_jax.data.rows import Rows, SourceRow
from llava_jax.data.sources.scenes import SceneSource
from llava_jax.errors import ConfigError, DataError, Diverged
from llava_jax.text.token_row import Batch, TokenRow
from llava_jax.train import loop, loss, stage_run, stages
from llava_jax.train import step as train_step
from llava_jax.train.dataset import StageData, training_batches
from llava_jax.train.evaluations import Evaluation
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.file_damage import DAMAGES, files_of_at_most
from tests.fixtures.tiny_models import LLM, VISION

check_resume = bench_script("check_resume")
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(autouse=True, scope="module")
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.VISION, "tiny", VISION)
        patch.setitem(architectures.LLM, "tiny", LLM)
        yield


def settings():
    """Two stages of 4 steps, evaluated every 2, saved every 3 and at their ends."""
    c = config.defaults()
    c.model.vision = c.model.llm = "tiny"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.run = ("one", "two")
    c.log_every, c.checkpoint.every, c.hash_frozen = 1, 3, True
    for name, scenes, template, length in (("one", "caption", "plain", 40), ("two", "instruct", "vicuna_v1", 88)):
        s = config.stage(batch=8, steps=4)
        s.learning_rates = (("projector/.*", 1e-2), (".*", None)) if name == "one" else (("llm/.*", 1e-3), (".*", None))
        s.data.source, s.data.threads = "scenes", 2
        s.data.scenes, s.data.template, s.data.length = scenes, template, length
        s.eval.every, s.eval.samples, s.eval.answers, s.eval.max_new_tokens = 2, 8, 1, 2
        c.stages[name] = s
    c.stages.two.eval.before, c.stages.two.eval.questions = True, 1
    return c


def train(folder: Path, **changes) -> None:
    """Runs `settings()` with changed values, named by their path with `__` for dots."""
    c = settings()
    with c.unlocked():
        c.update_from_flattened_dict({path.replace("__", "."): value for path, value in changes.items()})
    loop.train(config.from_config_dict(c), folder, ["test"])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    train(folder)
    return folder


def test_equal_configs_write_byte_equal_files(reference, tmp_path):
    train(tmp_path)
    assert check_resume.contents(tmp_path) == check_resume.contents(reference)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    for file in sorted(p for p in (reference / "samples").rglob("*") if p.is_file()):
        assert (tmp_path / file.relative_to(reference)).read_bytes() == file.read_bytes()


def test_custom_evaluations_run_in_order_and_are_summarized(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    first = Evaluation(lambda context: {"val/mine": context.step}, lambda folder, stage: [f"{folder.name} {stage}"])
    second = Evaluation(lambda context: {"val/other": 0})
    c = settings()
    c.run = ("one",)
    loop.train(config.from_config_dict(c), tmp_path, ["test"], evaluations=(first, second))
    evaluated = [r for r in records(tmp_path) if "train/loss" not in r]
    assert evaluated == [{"step": step, "stage": "one", "val/mine": step, "val/other": 0} for step in (2, 4)]
    assert lines[-2] == f"{tmp_path.name} one" and not (tmp_path / "samples").exists()


def test_state_of_a_finished_stage_is_freed(tmp_path, monkeypatch):
    states, alive = [], []

    def next_state(model_config, setup, state):
        states.append(weakref.ref(state))
        return stages.next_state(model_config, setup, state)

    def log(text):
        if text.startswith("two 1/4"):
            alive.extend(state() for state in states)

    monkeypatch.setattr(stage_run, "next_state", next_state)
    monkeypatch.setattr(loop, "log", log)
    train(tmp_path)
    assert alive == [None]


def test_metrics_hold_every_step_and_evaluation_in_order(reference):
    def kind(record):
        return record["stage"], record["step"], "val" if "val/loss" in record else "train"

    expected = []
    for name, start in (("one", 0), ("two", 4)):
        expected += [(name, start, "val")] if name == "two" else []
        for step in range(1, 5):
            expected += [(name, start + step, "train")] + [(name, start + step, "val")] * (step % 2 == 0)
    assert [kind(r) for r in records(reference)] == expected
    assert {"train/loss", "train/grad_norm", "train/targets"} < records(reference)[0].keys()
    last = records(reference)[-1]
    assert {"val/loss", "val/loss_blank", "val/accuracy/color", "val/accuracy_blank/overall"} < last.keys()


def test_workdir_records_config_versions_devices_and_results(reference):
    run_config = json.loads((reference / "config.json").read_text())
    assert run_config["stages"]["two"]["steps"] == 4 and run_config["run"] == ["one", "two"]
    metadata = json.loads((reference / "metadata.json").read_text())
    assert metadata["argv"] == ["test"] and metadata["versions"]["jax"] == jax.__version__
    assert metadata["devices"]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert json.loads((reference / "accuracy-two.json").read_text()).keys() == {"before", "after"}
    assert sorted(p.name for p in (reference / "checkpoints").iterdir() if p.name.isdigit()) == ["6", "8"]
    assert (reference / "samples" / "two-000004" / "answers.html").exists()


@pytest.mark.parametrize(
    "moment",
    ["one 1/4", "held out, step 2", "one 4/4", "stage two", "held out, step 0", "two 4/4"],
)
def test_resume_is_byte_equal_after_sigterm(reference, tmp_path, monkeypatch, moment):
    """SIGTERM arrives when the run logs `moment`: in a step, in an evaluation, between the stages."""

    def log(text):
        if text.strip().startswith(moment):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "log", log)
        with pytest.raises(loop.Stopped, match=f"the same command resumes {tmp_path}") as stopped:
            train(tmp_path)
    step, stage = re.search(r"after step (\d) of (\w+)", str(stopped.value)).groups()
    newest = int(step) + 4 * (stage == "two")
    assert (tmp_path / "checkpoints" / str(newest)).is_dir(), "no finished step is lost"
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(records(tmp_path)) < len(records(reference))

    train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert check_resume.contents(tmp_path) == check_resume.contents(reference)
    assert (tmp_path / "accuracy-two.json").read_bytes() == (reference / "accuracy-two.json").read_bytes()


def test_finished_run_is_unchanged_when_started_again(reference):
    before = check_resume.contents(reference)
    train(reference)
    assert check_resume.contents(reference) == before


@pytest.fixture
def run_copy(reference, tmp_path):
    """A copy of the finished run that the test may change."""
    return shutil.copytree(reference, tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model__projector="mlp2x_gelu"), "model.projector='linear', the config says 'mlp2x_gelu'"),
        (dict(model__select_layer=-1), "model.select_layer=-2, the config says -1"),
        (dict(run=("two",)), r"stages \['one', 'two'\], the config runs \['two'\]"),
    ],
    ids=str,
)
def test_workdir_of_another_model_is_refused_and_unchanged(run_copy, changes, message):
    files = {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=message):
        train(run_copy, **changes)
    assert {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stages__one__steps=5), "checkpoint 8 is step 4 of stage two, which now has 4 steps from 5 on"),
        (dict(stages__two__steps=3), "checkpoint 8 is step 4 of stage two, which now has 3 steps from 4 on"),
        (dict(stages__two__batch=16), "batch_size was 8, is 16"),
        (dict(seed=1), "seed was 0, is 1"),
    ],
    ids=str,
)
def test_resume_refuses_changed_stage_lengths_and_data_order(run_copy, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(run_copy, **changes)


def test_workdir_with_attention_xla_resumes_with_auto(reference, tmp_path):
    """`xla` was the default before `auto`. Like the mesh, the kernel may change on resume; on a CPU it is the same."""
    train(tmp_path, run=("one",), model__attention="xla")
    train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_learning_rates_may_change_on_resume(reference, run_copy):
    shutil.rmtree(run_copy / "checkpoints" / "8")  # as if killed after step 6, step 2 of stage two
    train(run_copy, stages__two__learning_rates=(("llm/.*", 1e-2), (".*", None)), stages__two__eval__questions=0)
    old, new = ({r["step"]: r["train/loss"] for r in records(f) if "train/loss" in r} for f in (reference, run_copy))
    assert old.keys() == new.keys()
    assert [step for step in old if old[step] != new[step]] == [
        8
    ]  # step 7 is the first update at the new rate; 8 has its loss


# ------------------------------------------------------------------------------------- steps that are not finite


def one_stage(**changes) -> dict:
    """Changes of `settings()`: 52 steps of stage one alone, evaluated at its end, always the same program."""
    return dict(run=("one",), stages__one__steps=52, stages__one__eval__every=0, checkpoint__every=5, **changes)


FaultyBatch = namedtuple("FaultyBatch", (*Batch._fields, "fault"))


class Nothing(Rows):
    def row(self, index, length=None) -> SourceRow:
        return SourceRow(TokenRow(*[np.zeros(1)] * 5))


@pytest.fixture
def bad_steps(monkeypatch):
    """(step of stage one, from 0, -> value added to its loss, to be filled in; sample indices of each step, which
    identify its batch, also in a resumed run)."""
    faults, token_losses = {}, loss.token_losses
    stage = config.from_config_dict(settings()).stages["one"]
    order = training_batches(stage, StageData(Nothing(SceneSource("caption", 0, False, 24), None), None, [], 99, 99), 0)
    index = [next(order)[1].index.tolist() for _ in range(60)]
    order.close()
    assert len({tuple(rows) for rows in index}) == 60

    def with_fault(self):
        batch, info = next_batch(self)
        fault = [faults[step] for step in faults if index[step] == info.index.tolist()]
        return FaultyBatch(*batch, np.full(8, sum(fault), np.float32)), info

    def with_bad_loss(model, params, batch, chunks):
        return token_losses(model, params, batch, chunks) + jnp.sum(batch.fault)

    next_batch = Batches.__next__
    monkeypatch.setattr(Batches, "__next__", with_fault)
    monkeypatch.setattr(train_step, "token_losses", with_bad_loss)
    return faults, index


def board(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all TensorBoard scalars."""
    values = []
    for file in sorted((folder / "tb").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length uint64, its CRC, an event, its CRC
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return values


def test_nonfinite_steps_are_skipped_counted_and_absent_from_metrics(tmp_path, bad_steps, monkeypatch):
    faults, index = bad_steps
    faults |= dict.fromkeys((0, 3, 50), math.nan)
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(tmp_path / "run", **one_stage())
    steps = [record for record in records(tmp_path / "run") if "val/loss" not in record]
    skipped = {r["step"]: r["train/skipped"] for r in steps if "train/skipped" in r}
    assert skipped == {1: 1, 4: 2, 51: 3} and [r["step"] for r in steps] == list(range(1, 53))
    for r in steps:
        assert ("train/loss" in r) != (r["step"] in skipped) and all(math.isfinite(r[k]) for k in r if "/" in k)
    series = board(tmp_path / "run")
    assert [step for step, name, _ in series if name == "train/loss"] == [s for s in range(1, 53) if s not in skipped]
    assert all(math.isfinite(value) for _, _, value in series) and (51, "train/skipped", 3.0) in series
    progress = [line for line in lines if re.match(r"one \d+/52", line)]
    assert len(progress) == 49 and not any("nan" in line for line in progress)
    assert sum("is skipped: the loss is nan" in line for line in lines) == 3
    assert any(line.startswith("3 of 52 steps were skipped") for line in lines)
    files = sorted((tmp_path / "run" / "skipped").iterdir())
    assert [file.name for file in files] == ["one-000001.json", "one-000004.json", "one-000051.json"]
    source = SceneSource("caption", 0, False, 24)
    assert json.loads(files[1].read_text())["samples"] == [source[i].id for i in index[3]]

    def stop(text):  # the same run again, interrupted by SIGTERM
        if text.startswith("one 20/"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "log", stop)
    with pytest.raises(loop.Stopped):
        train(tmp_path / "again", **one_stage())
    train(tmp_path / "again", **one_stage())
    for name in ("metrics.jsonl", "skipped/one-000051.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert check_resume.contents(tmp_path / "again") == check_resume.contents(tmp_path / "run")


def test_eleven_skipped_steps_in_a_row_raise_diverged(tmp_path, bad_steps):
    faults, index = bad_steps
    faults |= dict.fromkeys((1, 2, *range(5, 40)), math.nan)
    message = (
        r"11 steps in a row were skipped, the last one step 16 of stage one: the loss is nan.*after step 5.*skipped"
    )
    with pytest.raises(Diverged, match=message) as raised:
        train(tmp_path, **one_stage())
    assert raised.value.exit_code == 3
    assert records(tmp_path)[-1] == {"step": 16, "stage": "one", "train/skipped": 13, "train/replaced": 0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert len(list((tmp_path / "skipped").iterdir())) == 13
    dump = json.loads((tmp_path / "skipped" / "one-000016.json").read_text())
    assert dump["skipped_in_a_row"] == 11 and dump["loss"] == "nan"
    assert dump["samples"] == [SceneSource("caption", 0, False, 24)[i].id for i in index[15]]
    assert dump["modules"]["gradient"].keys() == {"projector"}
    weights = dump["modules"]["parameter"]
    assert weights.keys() == {"vision", "projector", "llm"} and all(0 < w < math.inf for w in weights.values())
    with contextlib.closing(CheckpointStore(tmp_path / "checkpoints", 2)) as store:
        assert store.latest_intact().step == 15, "saved between skipped steps, with unchanged weights"


@pytest.mark.parametrize("on_spike", ["skip", "warn"])
def test_spike_is_skipped_or_warned_of(tmp_path, bad_steps, monkeypatch, on_spike):
    faults, _ = bad_steps
    faults[10] = 1e6  # divided by some hundred targets
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(tmp_path, **one_stage(guard__spike=3.0, guard__window=8, guard__on_spike=on_spike))
    (line,) = [line for line in lines if "x the median" in line]
    assert "step 11 of one" in line and ("it was applied" in line) == (on_spike == "warn")
    (record,) = [r for r in records(tmp_path) if r["step"] == 11]
    assert record.get("train/skipped") == (1 if on_spike == "skip" else None)
    assert on_spike == "skip" or record["train/loss"] > 1000


# ------------------------------------------------------------------------------------------ damage and a full disk


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_checkpoint_falls_back_and_resumes_byte_equal(reference, run_copy, damage, monkeypatch):
    file = next(p for p in sorted((run_copy / "checkpoints" / "8" / "state").rglob("d/*")))
    damage(file)
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(run_copy)
    assert (
        f"WARNING: checkpoint {run_copy}/checkpoints/8 is DAMAGED: {file.relative_to(run_copy / 'checkpoints' / '8')}"
        in lines[0]
    )
    assert lines[1] == "WARNING: falling back to checkpoint 6" and any("after step 2 of two" in line for line in lines)
    assert (run_copy / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert check_resume.contents(run_copy) == check_resume.contents(reference)
    assert sorted(p.name for p in (run_copy / "checkpoints").iterdir()) == ["6", "8", "8.damaged"]


def test_only_damaged_checkpoints_fails_and_changes_no_file(run_copy):
    for step in ("6", "8"):
        (run_copy / "checkpoints" / step / "data" / "metadata").unlink()
    files = {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="8 is DAMAGED: data/metadata is missing; .* no checkpoint in .* is intact"):
        train(run_copy)
    assert {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("size, message", [(30_000, "checkpoint 7 cannot be written"), (200, "cannot be written")])
def test_full_disk_fails_and_resume_is_byte_equal(reference, tmp_path, monkeypatch, size, message):
    """No file may grow beyond `size` bytes, too few for a checkpoint, or also for metrics.jsonl."""
    limit = contextlib.ExitStack()

    def log(text):
        if text.startswith("two 2/4"):
            limit.enter_context(files_of_at_most(size))

    monkeypatch.setattr(loop, "log", log)
    with limit, pytest.raises(DataError, match=message) as raised:
        train(tmp_path, checkpoint__every=7)
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)
    assert integrity.steps_in(tmp_path / "checkpoints") == [4] and not integrity.faults(tmp_path / "checkpoints" / "4")
    monkeypatch.setattr(loop, "log", lambda text: None)
    train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert check_resume.contents(tmp_path) == check_resume.contents(reference)


def test_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", Path("/proc/none/run")):
        with pytest.raises(DataError, match=f"{folder}.*choose another --workdir"):
            train(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stages__two__batch=12), "stages.two: 12 rows .* 8 devices; make batch / accumulation a multiple of 8"),
        (dict(mesh__tensor=3, mesh__fsdp=1), "does not cover 8 devices"),
        (dict(mesh__tensor=8, mesh__fsdp=1), "mesh tensor = 8 does not divide llm/layers/k/kernel"),
        (dict(stages__two__data__length=4), "stages.two.data.length=4 leaves no room"),
        (dict(stages__two__learning_rates=(("llm/.*", 1e-3),)), "no row of learning_rates covers"),
    ],
    ids=str,
)
def test_last_stage_is_validated_before_the_first_starts(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file, reason", [("file/llm.safetensors", "is not a writable folder"), ("", "it is a folder")])
def test_unwritable_weights_file_fails_before_the_first_step(tmp_path, file, reason):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"weights file {tmp_path / file} .for `llm`. cannot be written: .*{reason}"):
        train(tmp_path / "run", stages__two__save__llm=str(tmp_path / file))
    assert not (tmp_path / "run").exists()


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(architectures.LLM, "tiny", dataclasses.replace(LLM, vocab_size=100))
    with pytest.raises(ConfigError, match="tokens, model.llm=tiny embeds only 100"):
        train(tmp_path)
