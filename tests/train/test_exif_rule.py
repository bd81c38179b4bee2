"""data.exif decides for everything that a stage reads: rows, held-out answers, and the pictures on their page."""

import json

import numpy as np
import pytest
from PIL import Image

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Config, Data, Stage
from llava_jax.config.architectures import VISION
from llava_jax.config.validate import check_config
from llava_jax.errors import ConfigError
from llava_jax.images.metadata import TURNS
from llava_jax.images.preprocess import preprocess
from llava_jax.train import evaluate
from llava_jax.train.dataset import open_stage
from llava_jax.train.sample_answers import save_answers
from tests.fixtures.images import encoded, noise
from tests.fixtures.odd_images import exif

STORED = noise(30, 20)
RULES = {"ignore": STORED, "apply": STORED.transpose(TURNS[6])}


@pytest.fixture
def stages(tmp_path) -> dict[str, Stage]:
    """A stage for each rule, on phone photos that lie on their side."""
    photo = encoded(STORED, "PNG", exif=b"Exif\0\0" + exif(6))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": f"{i}", "image": "photo.png", "conversations": turns} for i in range(130)]
    (tmp_path / "photo.png").write_bytes(photo)
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    source = dict(path=str(tmp_path / "chat.json"), image_folder=str(tmp_path), held_out=0.5, template="plain")
    return {rule: Stage(data=Data(exif=rule, length=64, **source)) for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds_for_rows_answers_and_their_page(stages, rule, tmp_path):
    stage, vision = stages[rule], VISION["tiny"]
    data = open_stage("stage1", stage, 0, open_tokenizer("tiny"), vision)
    expected = preprocess(RULES[rule], vision.image_size, "crop")
    for rows in (data.train, data.held_out):
        np.testing.assert_array_equal(rows.row(0).arrays.images[0], expected)
    examples = data.held_out.readable(1)
    evaluator = evaluate.Evaluator(Model(), {}, stage, None, None, None)
    for shown in (examples, [data.held_out.source[0]]):
        np.testing.assert_array_equal(evaluate._pixels(shown[0], evaluator, blank=False)[0], expected)
    save_answers(tmp_path / "samples", examples, ["red"])
    np.testing.assert_array_equal(Image.open(tmp_path / "samples" / "0-0.png"), RULES[rule])


class Model:
    class config:
        image_size = VISION["tiny"].image_size


def test_default_is_the_originals_and_other_values_are_refused(stages):
    assert Data().exif == "ignore"
    for rule, valid in (("ignore", True), ("apply", True), ("turn", False)):
        stage = Stage(data=Data(path="a.json", exif=rule), learning_rates=((".*", 1.0),))
        config = Config(run=("one",), stages={"one": stage})
        if valid:
            check_config(config)
        else:
            with pytest.raises(ConfigError, match=r"config.stages.one.data.exif.*'turn'"):
                check_config(config)
