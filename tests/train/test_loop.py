import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import weakref
from pathlib import Path

import jax
import pytest

from llava_jax import config
from llava_jax.checkpoint.native import integrity
from llava_jax.config import architectures
from llava_jax.errors import ConfigError, DataError
from llava_jax.train import loop, stage_run, stages
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
    for name, scenes, template, length in (("one", "caption", "plain", 40), ("two", "instruct", "", 88)):
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
    assert run_config["stages"]["two"]["data"]["template"] == "vicuna_v1"  # not given, so what was used
    metadata = json.loads((reference / "metadata.json").read_text())
    assert metadata["argv"] == ["test"] and metadata["versions"]["jax"] == jax.__version__
    assert metadata["devices"]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert json.loads((reference / "accuracy-two.json").read_text()).keys() == {"before", "after"}
    assert sorted(p.name for p in (reference / "checkpoints").iterdir() if p.name.isdigit()) == ["6", "8"]
    assert (reference / "samples" / "two-000004" / "answers.html").exists()


@pytest.fixture
def usual_signals():
    """In the background of a script SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "moment, signum",
    [
        ("one 1/4", signal.SIGINT),
        ("held out, step 2", signal.SIGHUP),
        ("stage two", signal.SIGINT),
        ("two 4/4", signal.SIGHUP),
    ],
)
def test_resume_is_byte_equal_after_a_stop_signal(reference, usual_signals, tmp_path, monkeypatch, moment, signum):
    """The signal arrives when the run logs `moment`: in a step, in an evaluation, between the stages."""

    def log(text):
        if text.strip().startswith(moment):
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "log", log)
        with pytest.raises(loop.Stopped, match=f"the same command resumes {tmp_path}") as stopped:
            train(tmp_path)
    step, stage = re.search(r"after step (\d) of (\w+)", str(stopped.value)).groups()
    newest = int(step) + 4 * (stage == "two")
    assert (tmp_path / "checkpoints" / str(newest)).is_dir(), "no finished step is lost"
    assert signal.getsignal(signum) is before
    assert stopped.value.exit_code == 128 + signum
    assert str(stopped.value).startswith(f"stopped by {signum.name} after step")
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
        (dict(model__projector="mlp2x_gelu"), "model.projector was 'linear', is 'mlp2x_gelu'"),
        (dict(model__select_layer=-1), "model.select_layer was -2, is -1"),
        (dict(run=("two",)), r"stages \('one', 'two'\), run is \('two',\)"),
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
        (dict(stages__two__batch=16), "stages.two.batch was 8, is 16"),
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


# ------------------------------------------------------------------------------------------ damage and a full disk


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_checkpoint_falls_back_and_resumes_byte_equal(reference, run_copy, damage, monkeypatch):
    file = next(p for p in sorted((run_copy / "checkpoints" / "8" / "state").rglob("d/*")))
    damage(file)
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    train(run_copy)
    lines = lines[next(i for i, line in enumerate(lines) if "DAMAGED" in line) :]
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
