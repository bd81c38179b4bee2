"""The tiny LLaVA that ships with the package: its size, its model card, and that it knows the scenes."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.data.sources.scenes import QUESTION_KINDS
from llava_jax.serve.examples import SCENES
from tests.fixtures.bench_scripts import ROOT, load_script

SCRIPT = ROOT / "launch" / "local" / "make_tiny_llava.py"
MODEL_BYTES, EXAMPLE_BYTES = 8_000_000, 10_000


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def models(script):
    return script.load_both(built_in_model())


def test_model_and_examples_are_small():
    assert sum(file.stat().st_size for file in built_in_model().iterdir()) <= MODEL_BYTES
    assert max(file.stat().st_size for file in SCENES.iterdir()) <= EXAMPLE_BYTES


def test_model_card_names_commands_and_checkpoint(script):
    card = (built_in_model() / "README.md").read_text(encoding="utf-8")
    assert f"`python {SCRIPT.relative_to(ROOT)}`" in card and "convert --to hf" in card
    assert f"`python -m llava_jax {' '.join(script.training_command(script.WORKDIR))}`" in card
    stage_1 = 400
    assert f"step {stage_1 + script.STEPS} of the run" in card


def test_accuracy_in_the_model_card_is_high_enough(script):
    card = (built_in_model() / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^(\w+) +- +([\d.]+)%", card, re.M))
    assert rows.keys() == {*QUESTION_KINDS, "overall"}
    assert float(rows["overall"]) >= script.LOWEST_OVERALL and min(map(float, rows.values())) >= script.LOWEST


def test_model_answers_held_out_scenes_by_their_images(script, models):
    overall = script.measure(models[0], per_kind=4)["overall"]
    assert overall["image"] >= 85 and overall["blank"] < 60


def test_script_draws_the_examples_that_ship(script, tmp_path):
    truth = {e["question"]: e["answer"] for e in json.loads((SCENES / "examples.json").read_text())}
    script.write_examples([SimpleNamespace(chat=lambda question, images: truth.get(question, ""))], tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in SCENES.iterdir()}
    examples = [json.loads((folder / "examples.json").read_text()) for folder in (tmp_path, SCENES)]
    assert examples[0] == examples[1] and len(examples[0]) == 4
    for example in examples[0]:
        drawn, shipped = (np.asarray(Image.open(folder / example["image"])) for folder in (tmp_path, SCENES))
        assert (drawn == shipped).all()


def test_model_answers_every_shipped_example(models):
    model = models[1]  # in float32; the tests of the server ask in bfloat16
    for example in json.loads((SCENES / "examples.json").read_text()):
        assert example["answer"] in model.chat(example["question"], images=[SCENES / example["image"]])
