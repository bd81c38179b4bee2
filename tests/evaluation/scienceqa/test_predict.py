"""scienceqa_predict.py: what is asked, in which words and ids, and what becomes of the answers."""

import dataclasses
import json
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import llava_jax
from llava_jax.api.model import Loaded
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.errors import DataError, TooLong
from llava_jax.evaluation.scienceqa.predict import (  # fmt: skip
    Asked,
    Manner,
    ask,
    digest,
    fingerprint,
    longest_first,
    predict,
    tokens,
)
from llava_jax.inference.engine import Answer
from tests.fixtures.scienceqa import CONFIG, write_folder, write_model, write_problems

SYSTEM = "A chat between a curious human and an artificial intelligence assistant. "
SYSTEM += "The assistant gives helpful, detailed, and polite answers to the human's questions."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Loaded:
    return llava_jax.load(write_model(tmp_path_factory.mktemp("model") / "tiny"), dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("sqa"))


def words(model: Loaded, ids: np.ndarray) -> str:
    """A prompt as text, the run of places for an image as <image>."""
    places = np.flatnonzero(ids == IMAGE_TOKEN_ID)
    if not len(places):
        return model.tokenizer.decode(ids.tolist())
    assert len(places) == CONFIG.features and places[-1] - places[0] == CONFIG.features - 1
    text = [model.tokenizer.decode(part.tolist()) for part in (ids[: places[0]], ids[places[-1] + 1 :])]
    return "<image>".join(text)


def test_what_is_asked_has_the_image_where_it_is_wanted(folder):
    source = ScienceQA(folder, "test")
    asked = {one.pid: one for one in ask(source, missing="text")[0]}
    text = "Which is 1 , or so?\nContext: Look.\nOptions: (A) one (B) two (C) three"
    assert asked["1"] == Asked(1, "1", f"<image>\n{text}", "test/1/image.png")
    assert asked["0"] == Asked(0, "0", "Which is 0?\nContext: N/A\nOptions: (A) one (B) two (C) three", None)
    single = {one.pid: one.prompt for one in ask(source, image_place="back", single=True, missing="text")[0]}
    assert single["1"] == f"{text}\nAnswer with the option's letter from the given choices directly.\n<image>"
    shown = {one.pid: one.prompt for one in ask(ScienceQA(folder, "test", None, "CQM-A_v1.5"), missing="text")[0]}
    assert shown["1"] == "<image>\nContext: Look. \nWhich is 1 , or so?\nA. one\nB. two\nC. three"
    assert shown["0"] == "Which is 0?\nA. one\nB. two\nC. three"


def test_a_marker_in_a_question_is_no_image(tmp_path):
    source = ScienceQA(write_folder(tmp_path, {"1": {"question": "Is <image> a tag?"}}), "test")
    assert ask(source)[0][0].prompt.startswith("Is  a tag?\n")


def test_problems_without_their_image_are_named_skipped_or_asked_in_words(folder):
    source = ScienceQA(folder, "test")
    with pytest.raises(DataError, match=r"the images of 1 problems are missing \(of 3\). Bring them, or choose"):
        ask(source)
    asked, missing = ask(source, missing="skip")
    assert missing == ["3"] and [one.pid for one in asked] == [str(i) for i in range(13) if i != 3]
    asked, missing = ask(source, missing="text")
    assert missing == ["3"] and len(asked) == 13 and asked[3].image is None and "<image>" not in asked[3].prompt
    asked, missing = ask(source, without_images=True)
    assert missing == [] and {one.image for one in asked} == {None} and not any("<image>" in a.prompt for a in asked)
    assert [one.number for one in ask(source, limit=3)[0]] == [0, 1, 2]
    with pytest.raises(DataError, match="does not stay below"):
        ask(ScienceQA(write_folder(folder / "out", {"1": {"image": "../../../../a.png"}}), "test"), missing="text")


def test_images_may_lie_in_an_archive_and_a_problem_twice_in_a_split(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(folder / "images" / "test" / "1" / "image.png", "test/1/image.png")
    problems = {"1": {"image": "image.png"}, "2": {"image": "image.png"}}
    write_folder(tmp_path, problems)
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": [], "val": [], "test": ["1", "2", "1"]}))
    asked, missing = ask(ScienceQA(tmp_path, "test", tmp_path / "images.zip"), missing="text")
    assert [(one.pid, one.image) for one in asked] == [("1", "test/1/image.png"), ("2", None)] and missing == ["2"]


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0", "llava_llama_2"])
def test_a_prompt_is_the_one_that_chat_makes(model, template):
    model = dataclasses.replace(model, template=template)
    for images in (0, 1):
        asked = Asked(0, "1", "<image>\n" * images + "what is it ?", "x.png" if images else None)
        messages = [{"role": "user", "content": "what is it ?"}]
        wanted = model._prompt(messages, [Image.new("RGB", (9, 9))] * images).tokens
        assert tokens(model, asked, two_steps=template != "llava_v0").tolist() == wanted.tolist()


def test_an_image_behind_the_text_stays_there_and_v0_ends_with_its_separator(model):
    v0 = dataclasses.replace(model, template="llava_v0")
    asked = Asked(0, "1", "what is it ?\n<image>", "x.png")
    assert words(v0, tokens(v0, asked, False)) == f"{SYSTEM}###Human: what is it ?\n<image>###Assistant:"
    assert words(v0, tokens(v0, asked, True)) == f"{SYSTEM}###Human: what is it ?\n<image>###"
    second = words(v0, tokens(v0, asked, True, " Assistant: LECTURE: north .\n"))
    assert second == f"{SYSTEM}###Human: what is it ?\n<image>### Assistant: LECTURE: north . ###\nANSWER:"
    v1 = dataclasses.replace(model, template="llava_v1")
    assert words(v1, tokens(v1, asked, True)).endswith("what is it ?\n<image> ASSISTANT:")
    assert words(v1, tokens(v1, asked, True, " LECTURE: x")).endswith(" ASSISTANT: LECTURE: x ###\nANSWER:")
    plain = dataclasses.replace(model, template="plain")  # it ends with the image, not with text
    assert words(plain, tokens(plain, asked, True, "x")) == "<image>x ###\nANSWER:"


def test_the_second_step_goes_on_behind_the_reasoning(model, folder, monkeypatch):
    """Said by the model in the first batch: reasoning; of the last row so much that no room is left for more."""
    rows = longest_first(model, ask(ScienceQA(folder, "test"), without_images=True)[0][:3], True)
    seen = []

    def answers(self, prompts, settings):
        seen.append(([words(model, np.asarray(p.tokens)) for p in prompts], settings))
        said = [" north is up \n", "", " up" * 900] if len(seen) == 1 else [" B.", " A. "]
        return [Answer(text=text) for text in said]

    monkeypatch.setattr(Loaded, "answers", answers)
    manner = Manner(two_steps=True, max_new_tokens=99, temperature=0.5, seed=7)
    (texts,) = predict(model, rows, None, manner, batch=8)
    assert [text for _, text in texts] == [
        "north is up\n The answer is B.",
        "\n The answer is A.",
        ("up " * 900).strip() + "\n The answer is ",
    ]
    (first, one), (second, two) = seen
    assert second == [f"{first[0]} north is up ###\nANSWER:", f"{first[1]} ###\nANSWER:"]
    assert (
        one.stop_strings == two.stop_strings == ("###",) and one.stop_ids == two.stop_ids == model.settings().stop_ids
    )
    assert (one.max_new_tokens, two.max_new_tokens) == (99, 64)
    assert (one.temperature, two.temperature, one.seed, two.seed) == (0.5, 0.5, 7, 7)


def test_two_steps_are_what_two_questions_say(model, folder):
    """No row of the batch gets another's reasoning or image."""
    source = ScienceQA(folder, "test")
    rows = longest_first(model, ask(source, missing="skip")[0], True)[:5]
    manner = Manner(two_steps=True, max_new_tokens=5)
    (together,) = predict(model, rows, source.images, manner, batch=8)
    alone = [text for row in rows for ((_, text),) in predict(model, [row], source.images, manner, batch=1)]
    assert [text for _, text in together] == alone and len(set(alone)) == 5


def test_the_longest_come_first_and_a_batch_that_was_begun_is_computed_whole(model, folder, monkeypatch):
    source = ScienceQA(folder, "test")
    asked = ask(source, missing="text")[0]
    rows = longest_first(model, asked, False)
    assert [len(ids) for _, ids in rows] == sorted((len(ids) for _, ids in rows), reverse=True)
    same = [one.number for one, ids in rows if len(ids) == len(rows[6][1])]
    assert len(same) > 1 and same == sorted(same)
    sizes, answer = [], Loaded.answers
    monkeypatch.setattr(Loaded, "answers", lambda *args: sizes.append(len(args[1])) or answer(*args))
    manner = Manner(max_new_tokens=2)
    every = [pair for part in predict(model, rows, source.images, manner, 4) for pair in part]
    assert sizes == [4, 4, 4, 1]
    for done, batches in ((5, [4, 4, 1]), (8, [4, 1]), (12, [1]), (13, [])):
        sizes.clear()
        rest = [pair for part in predict(model, rows, source.images, manner, 4, done) for pair in part]
        assert rest == every[done:] and sizes == batches


def test_a_draw_depends_on_seed_and_problem_not_on_the_batch(model, folder):
    source = ScienceQA(folder, "test")
    rows = longest_first(model, ask(source, missing="skip")[0], False)
    draws = {}
    for seed, batch in ((1, 3), (1, 8), (2, 8)):
        parts = predict(model, rows, source.images, Manner(max_new_tokens=6, temperature=1.0, seed=seed), batch)
        draws[seed, batch] = [text for part in parts for _, text in part]
    assert draws[1, 3] == draws[1, 8] and sum(a != b for a, b in zip(draws[1, 8], draws[2, 8], strict=True)) > 6


def test_prompts_without_room_for_an_answer_are_refused(model):
    long = Asked(0, "7", "what " * 800, None)
    with pytest.raises(TooLong, match="1 prompts leave the model no room: it takes 640 tokens, that of problem 7 has"):
        longest_first(model, [Asked(0, "1", "what?", None), long], False)


def test_a_damaged_image_is_named(model, folder, tmp_path):
    write_folder(tmp_path, {"1": {"image": "image.png"}})
    (tmp_path / "images" / "test" / "1").mkdir(parents=True)
    (tmp_path / "images" / "test" / "1" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    source = ScienceQA(tmp_path, "test")
    rows = longest_first(model, ask(source)[0], False)
    with pytest.raises(DataError, match="problem 1: image test/1/image.png"):
        list(predict(model, rows, source.images, Manner(), 1))


def test_fingerprints_tell_what_differs(model, folder):
    """One bit of one weight; not the mesh, nor the order of the weights."""
    params = dict(model.params)
    found = fingerprint(params)
    one = jax.devices()[0]
    assert fingerprint({path: jax.device_put(x, one) for path, x in reversed(params.items())}) == found
    path = max(params, key=lambda path: params[path].size)
    changed = np.asarray(params[path]).copy()
    changed.flat[5] = np.nextafter(changed.flat[5], np.float32(9))
    assert fingerprint(params | {path: jax.numpy.asarray(changed)}) != found
    assert fingerprint({path: x.astype("bfloat16") for path, x in params.items()}) != found
    source = ScienceQA(folder, "test")
    asked = ask(source, missing="text")[0]
    rows = longest_first(model, asked, False)
    moved = [(dataclasses.replace(rows[0][0], image="test/2/image.png"), rows[0][1]), *rows[1:]]
    assert len({digest(rows), digest(rows[1:]), digest(moved)}) == 3
