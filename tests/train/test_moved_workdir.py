"""A run whose workdir was moved, and whose tokenizer, weights and first folder are gone."""

import json
import shutil
from pathlib import Path

import pytest

import llava_jax
from llava_jax import config
from llava_jax.__main__ import main
from llava_jax.checkpoint.native.workdir_model import save_workdir_model
from llava_jax.checkpoint.open_checkpoint import open_checkpoint
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.config import architectures
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import ConfigError
from llava_jax.train import loop
from tests.fixtures import micro_towers  # noqa: F401
from tests.fixtures.images import encoded, noise
from tests.fixtures.tiny_models import random_params

pytestmark = pytest.mark.usefixtures("compile_once")
MICRO = ModelConfig(
    architectures.VISION["micro"], architectures.LLM["micro"], projector="linear", dtype="float32",
    feature_dtype="float32", remat="none", unroll=False, attention="xla",
)  # fmt: skip


def write_data(folder: Path, prefix: str = "a") -> None:
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red thing"}]
    rows = [{"id": f"{prefix}{i}", "image": "a.png", "conversations": turns} for i in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "a.png").write_bytes(encoded(noise(30, 20), "PNG"))


def train(**changes) -> None:
    """Trains one step more in `run` than the last time, all paths relative to the current folder."""
    c = config.defaults()
    c.model.vision = c.model.llm = "folder"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.load.vision = c.load.llm = c.load.projector = "start"
    c.tokenizer = "tok"
    c.run = ("ft",)
    c.stages.ft = s = config.stage(batch=8, steps=1)
    s.learning_rates = (("projector/.*", 1e-2), (".*", None))
    s.data.path, s.data.image_folder, s.data.length, s.data.threads = "rows.json", ".", 64, 1
    s.data.template, s.data.aspect = "llava_v1", "pad"
    with c.unlocked():
        c.update_from_flattened_dict({path.replace("__", "."): value for path, value in changes.items()})
    loop.train(config.from_config_dict(c), Path("run"), ["test"])


def stamps(folder: Path) -> dict[Path, tuple]:
    """Size and time of each file and folder."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The current folder, to which `run` was moved after its only step. The data are here too, nothing else is."""
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(before)
        shutil.copytree(TINY_TOKENIZER, "tok")
        tokenizer = open_tokenizer("tiny")
        save_workdir_model(
            before / "start",
            random_params(MICRO),
            MICRO,
            tokenizer,
            None,
            "llava_v1",
            "pad",
            tokenizer.vocab_size,
            False,
        )
        write_data(before)
        train()
        patch.chdir(after)
        (before / "run").rename("run")
        shutil.rmtree(before)
        write_data(after)
        yield after


def test_moved_workdir_loads_with_all_it_was_trained_with(moved):
    before = stamps(moved / "run")
    model = llava_jax.load("run", dtype=None)
    assert (model.template, model.aspect) == ("llava_v1", "pad")
    assert (model.config.vision, model.config.llm) == (MICRO.vision, MICRO.llm)
    assert model.tokenizer.encode("what is it ?") == open_tokenizer("tiny").encode("what is it ?")
    assert stamps(moved / "run") == before, "loading writes nothing"


def test_template_is_that_of_the_checkpoint(moved):
    """A run that resumed with other settings has written config.json, but no checkpoint with them yet."""
    file = Path("run/config.json")
    text = file.read_text()
    file.write_text(text.replace("llava_v1", "plain"))
    try:
        assert open_checkpoint("run").template == "llava_v1"
    finally:
        file.write_text(text)


def test_moved_workdir_converts_with_its_tokenizer(moved):
    assert main(["convert", "run", "hf", "--to", "hf"]) == 0
    assert json.loads(Path("hf/preprocessor_config.json").read_text())["do_pad"]
    assert open_tokenizer("hf").encode("what is it ?") == open_tokenizer("tiny").encode("what is it ?")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "the data of stage ft, rows.json, has other samples than before"),
        (dict(stages__ft__data__template="vicuna_v1"), "data.template was 'llava_v1', is 'vicuna_v1'"),
        (dict(stages__ft__optimizer__weight_decay=0.1), "optimizer.weight_decay was 0.0, is 0.1"),
        (dict(stages__ft__learning_rates=((".*", 1e-2),)), "learning_rates now trains llm/embed/embedding"),
        (dict(tokenizer="other"), "another tokenizer than other"),
    ],
    ids=str,
)
def test_refused_resume_changes_nothing(moved, tmp_path, changes, message):
    write_data(moved, "a" if changes else "b")
    spec = json.loads((TINY_TOKENIZER / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    shutil.copytree(TINY_TOKENIZER, "other", dirs_exist_ok=True)
    Path("other/tokenizer.json").write_text(json.dumps(spec))
    before = stamps(moved / "run")
    with pytest.raises(ConfigError, match=message):
        train(**changes)
    assert stamps(moved / "run") == before
    write_data(moved)


def test_moved_workdir_resumes_and_reports_what_changed(moved, monkeypatch):
    lines = []
    monkeypatch.setattr(loop, "log", lines.append)
    Path("rows.json").rename("renamed.json")
    train(
        stages__ft__steps=2, stages__ft__data__path="renamed.json", stages__ft__eval__answers=4, load__llm="elsewhere"
    )
    assert Path("run/checkpoints/2").is_dir()
    reported = [line.split(": ")[1] for line in lines if line.startswith("changed since")]
    assert reported == [
        "load.llm was 'start', is 'elsewhere'",
        "stages.ft.data.path was 'rows.json', is 'renamed.json'",
        "stages.ft.steps was 1, is 2",
    ]
    assert not [line for line in lines if line.startswith("WARNING")]
