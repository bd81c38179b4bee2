"""serve/examples.py: the held-out samples of a run become examples; data that cannot be read give none."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.config import Config, Data, Eval, Stage
from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.scenes import SceneSource
from llava_jax.errors import DataError
from llava_jax.serve import examples as examples_module
from llava_jax.serve.examples import SIDE, held_out_examples

ROWS, FRACTION = 400, 0.25
WIDE = (2 * SIDE, SIDE)


def workdir_of(folder: Path, *stages: Stage) -> Path:
    """A workdir as far as the examples need it: a config, and a folder for checkpoints."""
    (folder / "checkpoints").mkdir(parents=True)
    names = [f"stage{i}" for i in range(len(stages))]
    config = Config(seed=3, run=tuple(names), stages=dict(zip(names, stages, strict=True)))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder


@pytest.fixture
def files(tmp_path) -> Data:
    """A JSON whose questions name their ids; every second image is broken."""
    Image.new("RGB", WIDE, "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows = [
        {
            "id": str(i),
            "image": "broken.png" if i % 2 else "red.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nis this {i} ?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
        for i in range(ROWS)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    return Data(path=str(tmp_path / "chat.json"), image_folder=str(tmp_path), held_out=FRACTION)


def held_out_ids(parity: int) -> list[str]:
    return [str(i) for i in range(ROWS) if id_hash(str(i)) < FRACTION * 2**48 and i % 2 == parity]


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=("PNG",))


def test_scenes_are_the_first_held_out_ones_of_the_last_stage(tmp_path):
    stages = [Stage(data=Data(source="scenes", scenes=kind), eval=Eval(samples=16)) for kind in ("caption", "instruct")]
    examples = held_out_examples(workdir_of(tmp_path / "run", *stages), 5)
    source = SceneSource("instruct", 3, True, SIDE)
    assert [question for _, question in examples] == [source[i].turns[0][1].split("\n")[1] for i in range(5)]
    for i, (png, _) in enumerate(examples):
        assert opened(png).tobytes() == source[i].images[0].tobytes()


def test_files_give_readable_held_out_samples_only(tmp_path, files):
    examples = held_out_examples(workdir_of(tmp_path / "run", Stage(data=files)), 6)
    assert [question for _, question in examples] == [f"is this {i} ?" for i in held_out_ids(0)[:6]]
    assert {opened(png).size for png, _ in examples} == {(SIDE, SIDE // 2)}


def test_number_of_samples_read_is_bounded(tmp_path, files):
    (tmp_path / "red.png").unlink()
    assert held_out_examples(workdir_of(tmp_path / "run", Stage(data=files)), 3) == []


def test_sample_that_raises_is_skipped(tmp_path, monkeypatch):
    class Source(list):
        def __getitem__(self, index):
            if index == 0:
                raise DataError("row 0 is broken")
            return super().__getitem__(index)

    turns = (("system", "be brief"), ("human", "what is <image> ?"), ("gpt", "red"))
    red = Image.new("RGB", (8, 8), "red")
    samples = [Example(str(i), turns, (red,) * count) for i, count in enumerate((1, 0, 2, 1))]
    monkeypatch.setattr(examples_module, "open_held_out", lambda *arguments: Source(samples))
    examples = held_out_examples(workdir_of(tmp_path / "run", Stage()), 4)
    assert [question for _, question in examples] == ["what is  ?"]


def test_mixture_gives_samples_of_its_held_out_split(tmp_path, files):
    mixed = Data(mixture=((files.path, files.image_folder, 1.0),), held_out=FRACTION)
    examples = held_out_examples(workdir_of(tmp_path / "run", Stage(data=mixed)), 4)
    questions = {f"is this {i} ?" for i in held_out_ids(0)}
    assert len(examples) == 4 and {question for _, question in examples} <= questions


@pytest.mark.parametrize("change, note", [
    (dict(held_out=0.0), "held no samples out"),
    (dict(path="gone.json"), "gone.json"),
    (dict(path="https://host/chat.json"), "is a URL"),
])  # fmt: skip
def test_data_that_cannot_be_opened_give_none_and_a_note(tmp_path, files, capsys, change, note):
    data = dataclasses.replace(files, **change)
    assert held_out_examples(workdir_of(tmp_path / "run", Stage(data=data)), 4) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no examples on the page: ") and note in line


@pytest.mark.parametrize("content", ["{", '{"stages": 3}', '{"stages": {}, "run": []}', "[]"])
def test_damaged_config_gives_none_and_a_note(tmp_path, capsys, content):
    (workdir_of(tmp_path / "run") / "config.json").write_text(content)
    assert held_out_examples(tmp_path / "run", 4) == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_models_have_no_held_out_samples(tmp_path, capsys):
    (workdir_of(tmp_path / "saved") / "config.json").write_text('{"model": {"vision": {}}}')
    for folder in (tmp_path / "saved", built_in_model(), tmp_path / "gone.gguf"):
        assert held_out_examples(folder, 4) == []
    assert capsys.readouterr().err == ""
