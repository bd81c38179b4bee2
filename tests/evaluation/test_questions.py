"""questions.py: the problems that are asked, their images, and missing images."""

import json
import zipfile

import pytest

from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.questions import PredictOptions, build_questions
from llava_jax.evaluation.scienceqa.task import ScienceQATask
from tests.fixtures.scienceqa import write_folder


def build(source: ScienceQA, **options):
    return build_questions(ScienceQATask(source), PredictOptions(**options))


def test_missing_images_are_named_skipped_or_asked_as_text(folder):
    source = ScienceQA(folder, "test")
    with pytest.raises(DataError, match=r"the images of 1 problems are missing \(of 3\). Add them, or pass"):
        build(source)
    questions, missing = build(source, missing_images="skip")
    assert missing == ["3"] and [question.pid for question in questions] == [str(i) for i in range(13) if i != 3]
    questions, missing = build(source, missing_images="text")
    assert missing == ["3"] and len(questions) == 13
    assert questions[3].image is None and "<image>" not in questions[3].prompt
    questions, missing = build(source, without_images=True)
    assert missing == [] and {question.image for question in questions} == {None}
    assert not any("<image>" in question.prompt for question in questions)
    assert [question.number for question in build(source, limit=3)[0]] == [0, 1, 2]


def test_image_outside_the_folder_is_rejected(folder):
    source = ScienceQA(write_folder(folder / "out", {"1": {"image": "../../../../a.png"}}), "test")
    with pytest.raises(DataError, match="problem 1: image .* is outside of"):
        build(source, missing_images="text")


def test_images_from_zip_and_repeated_problems(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(folder / "images" / "test" / "1" / "image.png", "test/1/image.png")
    problems = {"1": {"image": "image.png"}, "2": {"image": "image.png"}}
    write_folder(tmp_path, problems)
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": [], "val": [], "test": ["1", "2", "1"]}))
    questions, missing = build(ScienceQA(tmp_path, "test", tmp_path / "images.zip"), missing_images="text")
    assert [(q.number, q.pid, q.image) for q in questions] == [(0, "1", "test/1/image.png"), (1, "2", None)]
    assert missing == ["2"]


@pytest.mark.parametrize("options", [{"limit": -1}, {"batch": 0}])
def test_options_out_of_range_are_rejected(options):
    with pytest.raises(ConfigError, match="must be at least 0, --batch .* at least 1"):
        PredictOptions(**options)
