"""runner.py and fingerprint.py: order, batches, sampling and fingerprints."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from llava_jax.api.model import LlavaModel
from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.errors import DataError, TooLong
from llava_jax.evaluation.fingerprint import prompts_fingerprint, weights_fingerprint
from llava_jax.evaluation.questions import PredictOptions, TaskQuestion, build_questions
from llava_jax.evaluation.runner import answer_batches, longest_first
from llava_jax.evaluation.scienceqa.task import ScienceQATask
from llava_jax.images.preprocess import preprocess
from tests.fixtures.images import encoded, noise
from tests.fixtures.odd_images import exif
from tests.fixtures.scienceqa import write_folder


def questions_of(source: ScienceQA, missing_images: str = "text") -> list[TaskQuestion]:
    return build_questions(ScienceQATask(source), PredictOptions(missing_images=missing_images))[0]


def test_longest_prompts_first_and_partial_batches_recomputed(model, folder, monkeypatch):
    source = ScienceQA(folder, "test")
    rows = longest_first(model, questions_of(source))
    assert [len(ids) for _, ids in rows] == sorted((len(ids) for _, ids in rows), reverse=True)
    same = [question.number for question, ids in rows if len(ids) == len(rows[6][1])]
    assert len(same) > 1 and same == sorted(same)
    sizes, answer = [], LlavaModel.answers
    monkeypatch.setattr(LlavaModel, "answers", lambda *args: sizes.append(len(args[1])) or answer(*args))
    settings = model.settings(max_new_tokens=2)
    every = [pair for part in answer_batches(model, rows, source.images, settings, 4) for pair in part]
    assert sizes == [4, 4, 4, 1]
    for done, batches in ((5, [4, 4, 1]), (8, [4, 1]), (12, [1]), (13, [])):
        sizes.clear()
        rest = [pair for part in answer_batches(model, rows, source.images, settings, 4, done) for pair in part]
        assert rest == every[done:] and sizes == batches


def test_sampling_depends_on_seed_and_problem_not_batch(model, folder):
    source = ScienceQA(folder, "test")
    rows = longest_first(model, questions_of(source, "skip"))
    draws = {}
    for seed, batch in ((1, 3), (1, 8), (2, 8)):
        settings = model.settings(max_new_tokens=6, temperature=1.0, seed=seed)
        parts = answer_batches(model, rows, source.images, settings, batch)
        draws[seed, batch] = [text for part in parts for _, text in part]
    assert draws[1, 3] == draws[1, 8] and sum(a != b for a, b in zip(draws[1, 8], draws[2, 8], strict=True)) > 6


def test_prompts_without_room_for_an_answer_are_rejected(model):
    long = TaskQuestion(0, "7", "what " * 800, None)
    message = "1 prompts leave no room for an answer: the model takes 640 tokens, but that of problem 7 has"
    with pytest.raises(TooLong, match=message):
        longest_first(model, [TaskQuestion(0, "1", "what?", None), long])


def test_damaged_image_is_named(model, tmp_path):
    write_folder(tmp_path, {"1": {"image": "image.png"}})
    (tmp_path / "images" / "test" / "1").mkdir(parents=True)
    (tmp_path / "images" / "test" / "1" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    source = ScienceQA(tmp_path, "test")
    rows = longest_first(model, questions_of(source))
    with pytest.raises(DataError, match="problem 1: image test/1/image.png"):
        list(answer_batches(model, rows, source.images, model.settings(), 1))


def test_phone_photo_is_turned_as_people_see_it(model, tmp_path):
    write_folder(tmp_path, {"1": {"image": "image.png"}})
    (tmp_path / "images" / "test" / "1").mkdir(parents=True)
    photo = encoded(noise(50, 30), "PNG", exif=b"Exif\0\0" + exif(6))
    (tmp_path / "images" / "test" / "1" / "image.png").write_bytes(photo)
    prompts = []
    source = ScienceQA(tmp_path, "test")
    rows = longest_first(model, questions_of(source))
    generate = lambda model, questions, batch, settings: prompts.extend(batch) or ["A"] * len(batch)  # noqa: E731
    list(answer_batches(model, rows, source.images, model.settings(), 1, 0, generate))
    upright = noise(50, 30).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(prompts[0].images[0], preprocess(upright, model.config.image_size, model.aspect))


def test_fingerprints_change_with_weights_and_prompts(model, folder):
    """One bit of one weight counts; the mesh and the order of the weights do not."""
    params = dict(model.params)
    expected = weights_fingerprint(params)
    device = jax.devices()[0]
    assert weights_fingerprint({path: jax.device_put(x, device) for path, x in reversed(params.items())}) == expected
    path = max(params, key=lambda path: params[path].size)
    changed = np.asarray(params[path]).copy()
    changed.flat[5] = np.nextafter(changed.flat[5], np.float32(9))
    assert weights_fingerprint(params | {path: jax.numpy.asarray(changed)}) != expected
    assert weights_fingerprint({path: x.astype("bfloat16") for path, x in params.items()}) != expected
    rows = longest_first(model, questions_of(ScienceQA(folder, "test")))
    moved = [(dataclasses.replace(rows[0][0], image="test/2/image.png"), rows[0][1]), *rows[1:]]
    assert len({prompts_fingerprint(rows), prompts_fingerprint(rows[1:]), prompts_fingerprint(moved)}) == 3
