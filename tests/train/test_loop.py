import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_run import LLM, VISION

from llava_jax import architectures, config
from llava_jax.errors import ConfigError, DataError, UserError
from llava_jax.train import loop

SCRIPT = Path(__file__).parents[2] / "launch" / "local" / "check_resume.py"
spec = importlib.util.spec_from_file_location("check_resume", SCRIPT)
check_resume = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_resume)


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
    """A run that is made again finds its programs on disk."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
    """Runs `settings()` with some values changed, named by their path with `__` for the dots."""
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


def test_the_same_config_gives_the_same_files(reference, tmp_path):
    train(tmp_path)
    assert check_resume.contents(tmp_path) == check_resume.contents(reference)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    for file in sorted(p for p in (reference / "samples").rglob("*") if p.is_file()):
        assert (tmp_path / file.relative_to(reference)).read_bytes() == file.read_bytes()


def test_metrics_hold_every_step_and_every_evaluation_in_order(reference):
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


def test_the_folder_of_a_run_tells_what_was_run(reference):
    said = json.loads((reference / "config.json").read_text())
    assert said["stages"]["two"]["steps"] == 4 and said["run"] == ["one", "two"]
    about = json.loads((reference / "metadata.json").read_text())
    assert about["argv"] == ["test"] and about["versions"]["jax"] == jax.__version__
    assert about["devices"]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert json.loads((reference / "accuracy-two.json").read_text()).keys() == {"before", "after"}
    assert sorted(p.name for p in (reference / "checkpoints").iterdir() if p.name.isdigit()) == ["6", "8"]
    assert (reference / "samples" / "two-000004" / "answers.html").exists()


@pytest.mark.parametrize(
    "moment",
    ["one 1/4", "held out, step 2", "one 4/4", "stage two", "held out, step 0", "two 4/4"],
)
def test_sigterm_at_any_moment_saves_and_the_next_run_ends_equal(reference, tmp_path, monkeypatch, moment):
    """The signal comes when the run prints `moment`: in a step, in an evaluation, between the stages."""

    def say(text):
        if text.strip().startswith(moment):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_say", say)
        with pytest.raises(loop.Stopped, match=f"the same command continues {tmp_path}") as stopped:
            train(tmp_path)
    step, stage = re.search(r"behind step (\d) of (\w+)", str(stopped.value)).groups()
    newest = int(step) + 4 * (stage == "two")
    assert (tmp_path / "checkpoints" / str(newest)).is_dir(), "nothing that was done is lost"
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(records(tmp_path)) < len(records(reference))

    train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert check_resume.contents(tmp_path) == check_resume.contents(reference)
    assert (tmp_path / "accuracy-two.json").read_bytes() == (reference / "accuracy-two.json").read_bytes()


def test_a_finished_run_is_not_run_again(reference):
    before = check_resume.contents(reference)
    train(reference)
    assert check_resume.contents(reference) == before


@pytest.fixture
def other(reference, tmp_path):
    """The folder of the finished run, to do with as one likes."""
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
def test_a_folder_of_another_model_is_refused_and_left_alone(other, changes, message):
    files = {p: p.read_bytes() for p in other.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=message):
        train(other, **changes)
    assert {p: p.read_bytes() for p in other.rglob("*") if p.is_file()} == files


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
def test_steps_taken_and_the_order_of_the_data_cannot_change_any_more(other, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(other, **changes)


def test_rates_may_change_when_a_run_goes_on(reference, other):
    shutil.rmtree(other / "checkpoints" / "8")  # as if killed behind step 6, step 2 of stage two
    train(other, stages__two__learning_rates=(("llm/.*", 1e-2), (".*", None)), stages__two__eval__questions=0)
    old, new = ({r["step"]: r["train/loss"] for r in records(f) if "train/loss" in r} for f in (reference, other))
    assert old.keys() == new.keys()
    assert [step for step in old if old[step] != new[step]] == [8]  # step 7 is the first at the new rate, 8 sees it


def test_a_checkpoint_that_is_damaged_is_named(other):
    shutil.rmtree(other / "checkpoints" / "8" / "state")
    with pytest.raises(DataError, match=f"checkpoint 8 in {other}/checkpoints cannot be restored"):
        train(other)


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"of stage one is not finite.*lower the learning rate.*newest checkpoint in"):
        train(tmp_path, run=("one",), stages__one__learning_rates=(("projector/.*", 1e38), (".*", None)))
    assert "NaN" in (tmp_path / "metrics.jsonl").read_text()
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert all(step < records(tmp_path)[-1]["step"] for step in saved)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
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
def test_faults_of_the_last_stage_are_found_before_the_first_begins(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place, reason", [("file/llm.safetensors", "is not a folder"), ("", "it is a folder")])
def test_weights_that_could_not_be_written_are_refused_before_the_first_step(tmp_path, place, reason):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"weights file {tmp_path / place} .for `llm`. cannot be written: .*{reason}"):
        train(tmp_path / "run", stages__two__save__llm=str(tmp_path / place))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(architectures.LLM, "tiny", dataclasses.replace(LLM, vocab_size=100))
    with pytest.raises(ConfigError, match="tokens, model.llm=tiny embeds only 100"):
        train(tmp_path)
