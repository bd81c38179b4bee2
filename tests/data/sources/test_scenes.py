"""The examples of scene sources, their fit to the configs that use them, and the exam."""

import dataclasses
import random
import re
from collections import Counter

import numpy as np
import pytest

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.cli.train import read_config
from llava_jax.config import model_config
from llava_jax.config.architectures import VISION
from llava_jax.data.sources import scene_world, scenes
from llava_jax.data.sources.scenes import KINDS, QUESTION_KINDS, STUDY, SceneSource, exam
from llava_jax.errors import ConfigError
from llava_jax.text.encode import stop_ids, tokenize
from llava_jax.train.dataset import open_stage
from tests.data.sources.test_scene_world import (
    Fact,
    content,
    describes,
    from_boxes,
    in_text_order,
    is_true,
    kind_of,
    read,
)


def source(kind: str, held_out: bool = False, seed: int = 0) -> SceneSource:
    return SceneSource(kind, seed, held_out, image_size=48)


def is_answer_true(question: str, answer: str, facts: list[Fact]) -> bool:
    """Checks an answer of any kind, including captions and descriptions."""
    question = question.removeprefix("<image>\n").strip()
    kind = kind_of(question)
    return describes(answer, in_text_order(answer, facts)) if kind is None else is_true(kind, question, answer, facts)


@pytest.mark.parametrize("kind", KINDS)
def test_index_and_seed_decide_everything(kind):
    first, again = source(kind), source(kind)
    for i in (0, 1, 999_999_999):
        a, b = first[i], again[i]
        assert (a.id, a.turns, a.kind) == (b.id, b.turns, b.kind)
        assert [x.tobytes() for x in a.images] == [x.tobytes() for x in b.images]
    assert first[0].turns != first[1].turns
    ids = {x[i].id for x in (first, source(kind, seed=1), source(kind, held_out=True)) for i in range(50)}
    assert len(ids) == 150
    assert len(SceneSource(kind, 0, True, 48, length=7)) == 7 and len(first) > 10**9


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_a_conversation_about_one_picture(kind):
    for i in range(300):
        e = source(kind)[i]
        assert [role for role, _ in e.turns] == ["human", "gpt"] * (len(e.turns) // 2) and e.turns
        markers = [text.count("<image>") for _, text in e.turns]
        assert markers == [len(e.images)] + [0] * (len(markers) - 1)
        assert [(image.size, image.mode) for image in e.images] == [((48, 48), "RGB")]
        assert kind == "instruct" or len(e.turns) == 2  # as the template `plain` needs


@pytest.mark.parametrize("kind", ["caption", "instruct"])
def test_every_answer_about_an_image_is_true(kind):
    large = SceneSource(kind, 0, False, image_size=240)
    for i in range(300):
        example = large[i]
        facts = read(example.images[0])
        for (_, question), (_, answer) in zip(example.turns[::2], example.turns[1::2], strict=True):
            assert is_answer_true(question, answer, facts), (question, answer, facts)


def test_study_rows_are_true_short_questions_weighted_by_difficulty():
    kinds = Counter()
    for i in range(600):
        facts = from_boxes(scene_world.draw_scene(0, i, False))
        question, answer = re.fullmatch(r"(.+ \?) (.+) \.", source("study")[i].turns[1][1]).groups()
        kind = kind_of(question)
        assert is_true(kind, question, answer, facts), (question, answer, facts)
        kinds[kind] += 1
    assert set(kinds) == set(STUDY) and min(kinds.values()) > 30, kinds
    assert kinds["position"] > 1.5 * kinds["size"], kinds


def test_tell_mixes_captions_short_questions_and_reasoned_ones():
    kinds = Counter()
    for i in range(600):
        text, facts = source("tell")[i].turns[1][1], from_boxes(scene_world.draw_scene(0, i, False))
        if " ? " in text:
            question, answer = re.fullmatch(r"(.+ \?) (.+) \.", text).groups()
            kind = kind_of(question)
            assert is_true(kind, question, answer, facts), (question, answer, facts)
        else:
            kind = "caption"
            assert describes(text, in_text_order(text, facts)), text
        kinds["short" if kind in STUDY else kind] += 1
    # A quarter of the scenes have one object, and therefore no relation.
    shares = {"caption": 0.4, "short": 0.24, "relation": 0.36 * 0.75 / 2, "reasoning": 0.36 * (0.25 + 0.75 / 2)}
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert abs(kinds[kind] / 600 - share) < 0.06, kinds


def test_instructions_are_mixed_as_in_llava_158k():
    n = 3000
    kinds = Counter(source("instruct")[i].kind for i in range(n))
    assert scenes.MIXTURE == (("conversation", 58), ("detail", 23), ("reasoning", 77))
    expected = {kind: share / 158 for kind, share in scenes.MIXTURE}
    assert set(kinds) == set(expected)
    for kind, share in expected.items():
        assert abs(kinds[kind] / n - share) < 0.03, (kind, kinds[kind] / n, share)


def test_an_unknown_kind_of_text_is_refused():
    with pytest.raises(ConfigError, match="describe.*caption, study, tell, instruct"):
        source("describe")


# ------------------------------------------------------------------------------------------------ the exam


def test_exam_is_balanced_over_kinds_and_its_answers_are_true():
    questions = exam(seed=0, image_size=240, per_kind=12)
    assert Counter(e.kind for e in questions) == dict.fromkeys(QUESTION_KINDS, 12)
    assert len({e.id for e in questions}) == len(questions)
    for e in questions:
        (_, question), (_, answer) = e.turns
        assert question.startswith("<image>\n") and len(e.images) == 1
        question = question.removeprefix("<image>\n")
        assert kind_of(question) == e.kind
        assert is_true(e.kind, question, answer, read(e.images[0])), (question, answer)


def test_exam_uses_held_out_scenes_only():
    train = {content(scene_world.draw_scene(0, i, False)) for i in range(5000)}
    for e in exam(seed=0, image_size=240, per_kind=12):
        objects = [scene_world.Object(f.size, f.color, f.shape, f.cell, 0.0, 0.0) for f in read(e.images[0])]
        scene = scene_world.Scene(tuple(objects), background=0)
        assert scene.held_out and content(scene) not in train


def test_exam_is_deterministic():
    first, second = exam(5, 48, 3), exam(5, 48, 3)
    assert [(e.id, e.turns, e.images[0].tobytes()) for e in first] == [
        (e.id, e.turns, e.images[0].tobytes()) for e in second
    ]
    assert [e.turns for e in exam(6, 48, 3)] != [e.turns for e in first]
    assert exam(5, 48, 0) == []


# ------------------------------------------------------------------------------------------------ the configs


def stages():
    for name in ("quickstart", "tiny_towers"):
        config = read_config(["main", f"--config=configs/{name}.py"])[0]
        yield from (pytest.param(config, stage, id=f"{name}-{stage}") for stage in config.stages)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


@pytest.mark.parametrize("config, name", stages())
def test_every_row_fits_its_length(config, name, tokenizer):
    stage, vision = config.stages[name], model_config(config.model).vision
    strict = dataclasses.replace(stage, data=dataclasses.replace(stage.data, overlong="error"))
    data = open_stage(name, strict, config.seed, tokenizer, vision)
    longest = 0
    for i in range(400):
        example = data.train.source[i]
        ids, mask = tokenize(tokenizer, stage.data.template, example.turns, len(example.images))
        longest = max(longest, len(ids) + len(example.images) * (vision.features - 1))
        assert mask.any()
    assert longest <= stage.data.length
    assert longest > stage.data.length / 2  # otherwise half of every row would be padding
    for rows in (data.train, data.held_out):  # the rows that training uses
        for i in range(30):
            row = rows.row(i).arrays
            assert row.tokens.shape == (stage.data.length,) and row.target_mask.any()
            assert row.images.shape == (stage.data.max_images, vision.image_size, vision.image_size, 3)
            assert (row.tokens == -200).sum() == stage.data.max_images * vision.features


@pytest.mark.parametrize("config, name", stages())
def test_exam_answers_fit_max_new_tokens(config, name, tokenizer):
    stage = config.stages[name]
    longest = 0
    for i in range(300):
        for q in scene_world.questions(scene_world.draw_scene(0, i, True), random.Random(i)):
            longest = max(longest, len(tokenizer.encode(" " + q.answer)))
    assert longest + len(stop_ids(tokenizer, stage.data.template)) <= stage.eval.max_new_tokens


def test_the_tiny_tokenizer_knows_every_word(tokenizer):
    """Each word has few tokens, none unknown, and decodes to itself."""
    texts = (text for kind in KINDS for i in range(300) for _, text in source(kind)[i].turns)
    vocabulary = {word for text in texts for word in text.removeprefix("<image>\n").split()}
    for word in vocabulary:
        ids = tokenizer.encode(" " + word)
        assert tokenizer.decode(ids).strip() == word and len(ids) <= 3, (word, ids)
        assert tokenizer.unk_id not in ids


def test_images_of_a_row_equal_the_rendered_scene(tokenizer):
    config = read_config(["main", "--config=configs/quickstart.py"])[0]
    vision = VISION["tiny"]
    data = open_stage("stage1", config.stages["stage1"], config.seed, tokenizer, vision)
    example = data.train.source[3]
    assert np.array_equal(data.train.row(3).arrays.images[0], np.asarray(example.images[0]))
