"""Texts match the images, answers cannot be guessed, and held-out scenes never occur in training.

The checker below shares no code with the generator: it recovers a scene from the pixels (or from boxes and colours),
and checks every caption, description and answer against it.
"""

import doctest
import random
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import pytest

from llava_jax.data.sources import scene_world
from llava_jax.data.sources.scenes import QUESTION_KINDS

COLOR = "|".join(scene_world.COLORS)
SHAPE = "|".join(scene_world.SHAPES)
NAME = re.compile(rf"\b({COLOR}) ({SHAPE})\b")
POSITION = re.compile(r"\b(?:top|bottom)(?: left| right)?\b|\b(?:left|middle|right)\b")
LIMIT = 80 * sum(scene_world.SIZES.values()) / 2  # pixels: between small and large, for cells of 80 pixels


class Fact(NamedTuple):
    """An object in an image; x and y are its centre in cells, 0..3."""

    size: str
    color: str
    shape: str
    x: float
    y: float

    @property
    def cell(self) -> int:
        return int(self.y) * 3 + int(self.x)

    @property
    def position(self) -> str:
        return scene_world.POSITIONS[self.cell]


def read(image) -> list[Fact]:
    """Recovers the objects of an image (240 px a side), in reading order, from its pixels."""
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == (240, 240, 3)
    greys = pixels[pixels.min(axis=2) == pixels.max(axis=2)][:, 0]
    background = np.bincount(greys, minlength=256)[200:].argmax() + 200
    is_ink = np.abs(pixels - background).max(axis=2) > 60
    facts = []
    for top in (0, 80, 160):
        for left in (0, 80, 160):
            rows, columns = np.nonzero(is_ink[top : top + 80, left : left + 80])
            if len(rows):
                facts.append(_read_object(pixels, is_ink, top + rows, left + columns))
    return facts


def _read_object(pixels, is_ink, rows, columns) -> Fact:
    (y0, y1), (x0, x1) = (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)

    def is_ink_at(x: float, y: float) -> bool:
        return bool(is_ink[int(y0 + y * (y1 - y0)), int(x0 + x * (x1 - x0))])

    if is_ink_at(0.06, 0.06):
        shape = "square"
    elif is_ink_at(0.08, 0.95):
        shape = "triangle"
    else:
        shape = "circle" if is_ink_at(0.2, 0.2) else "cross"
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    center = pixels[int(y), int(x)]
    color = min(scene_world.COLORS, key=lambda name: np.abs(center - scene_world.COLORS[name]).sum())
    return Fact("small" if max(x1 - x0, y1 - y0) < LIMIT else "large", color, shape, x / 80, y / 80)


def from_boxes(scene) -> list[Fact]:
    """The same without rendering, for thousands of scenes."""
    facts = []
    for o, (x, y, w, h) in zip(scene.objects, scene_world.boxes(scene, 240), strict=True):
        facts.append(Fact("small" if w < LIMIT else "large", o.color, o.shape, (x + w / 2) / 80, (y + h / 2) / 80))
    return facts


def kind_of(text: str) -> str | None:
    signs = {
        "position": r"^where ", "size": r"^what size", "color": r"^what color", "shape": r"^what shape",
        "count": r"^how many", "existence": r"^is there", "reasoning": r"^(in a mirror|upside down) , where ",
        "relation": r"^is .* or (below|right of) ",
    }  # fmt: skip
    return next((kind for kind, sign in signs.items() if re.search(sign, text)), None)


def is_true(kind: str, text: str, answer: str, facts: list[Fact]) -> bool:
    """Whether `answer` is the only correct answer to `text` about an image that shows `facts`."""
    named = NAME.findall(text)
    by_name = {(f.color, f.shape): f for f in facts}
    if kind == "count":
        return answer == ("no", "one", "two", "three", "four")[len(facts)]
    if kind in ("color", "shape"):
        word = re.search(SHAPE if kind == "color" else COLOR, text).group()
        match = [f for f in facts if word in (f.color, f.shape)]
        return len(match) == 1 and answer == getattr(match[0], kind)
    if kind == "existence":
        return len(named) == 1 and answer == ("yes" if named[0] in by_name else "no")
    if any(name not in by_name for name in named) or len(set(named)) != (2 if kind == "relation" else 1):
        return False
    first = by_name[named[0]]
    if kind == "position":
        return answer == first.position
    if kind == "size":
        return answer == first.size
    if kind == "relation":
        second = by_name[named[1]]
        names, (high, low), by = (
            (("top", "middle", "bottom"), ("above", "below"), lambda f: f.cell // 3)
            if "above or below" in text
            else (("left", "middle", "right"), ("left", "right"), lambda f: f.cell % 3)
        )
        reason = " and ".join(f"the {f.color} {f.shape} is {names[by(f)]}" for f in (first, second))
        return by(first) != by(second) and answer == f"{reason} , so {high if by(first) < by(second) else low}"
    assert kind == "reasoning", kind
    swapped = ("left", "right") if text.startswith("in a mirror") else ("top", "bottom")
    turned = " ".join(swapped[1 - swapped.index(w)] if w in swapped else w for w in first.position.split())
    return answer == f"the {first.color} {first.shape} is {first.position} , so {turned}"


def describes(text: str, facts: list[Fact]) -> bool:
    """Whether `text` names exactly these objects in this order, with their positions and, if any, sizes."""
    clauses = [clause for clause in re.split(r" ,| and (?=a |the )| \.", text) if NAME.search(clause)]
    if [NAME.findall(clause) for clause in clauses] != [[(f.color, f.shape)] for f in facts]:
        return False
    for clause, fact in zip(clauses, facts, strict=True):
        sizes = re.findall("small|large", clause)
        if POSITION.findall(clause) != [fact.position] or sizes not in ([], [fact.size]):
            return False
    return True


def in_text_order(text: str, facts: list[Fact]) -> list[Fact]:
    """Sorts `facts` in the order of `text`; those that it does not name come first."""
    return sorted(facts, key=lambda f: text.find(f"{f.color} {f.shape}"))


def questions_of(scene, key) -> list[scene_world.SceneQuestion]:
    return scene_world.questions(scene, random.Random(f"test/{key}"))


def content(scene) -> frozenset:
    return frozenset((o.size, o.color, o.shape, o.cell) for o in scene.objects)


# ------------------------------------------------------------------------------------------------ the stream


def test_scene_depends_on_seed_index_and_split_alone():
    scenes = [scene_world.draw_scene(3, i, False) for i in range(200)]
    assert scenes == [scene_world.draw_scene(3, i, False) for i in range(200)]
    assert len(set(scenes)) == 200
    for other in (
        scene_world.draw_scene(4, 0, False),
        scene_world.draw_scene(3, 0, True),
        scene_world.draw_scene(30, 0, False),
    ):
        assert other != scenes[0]
    first = scene_world.render_scene(scenes[0], 48)
    assert (
        first.tobytes() == scene_world.render_scene(scenes[0], 48).tobytes()
        and first.size == (48, 48)
        and first.mode == "RGB"
    )
    assert questions_of(scenes[0], 0) == questions_of(scenes[0], 0)


def test_docstring_examples_are_correct():
    assert doctest.testmod(scene_world).failed == 0


def test_held_out_scenes_never_occur_in_training_for_any_seed():
    train = {content(scene_world.draw_scene(seed, i, False)) for seed in (0, 1) for i in range(3000)}
    held_out = {content(scene_world.draw_scene(seed, i, True)) for seed in (0, 2) for i in range(1500)}
    assert len(train) > 4000 and len(held_out) > 1500
    assert not train & held_out


def test_both_splits_have_the_same_distribution_of_scenes():
    for held_out in (False, True):
        scenes = [scene_world.draw_scene(0, i, held_out) for i in range(3000)]
        counts = Counter(len(s.objects) for s in scenes)
        assert set(counts) == {1, 2, 3, 4} and all(0.2 < n / 3000 < 0.3 for n in counts.values()), counts
        cells = Counter(o.cell for s in scenes for o in s.objects)
        assert len(cells) == 9 and max(cells.values()) < 1.25 * min(cells.values()), cells
        looks = Counter((o.color, o.shape) for s in scenes for o in s.objects)
        assert len(looks) == 24 and max(looks.values()) < 1.6 * min(looks.values()), looks


# ------------------------------------------------------------------------------------------------ the image


@pytest.mark.parametrize("size", [48, 224])
def test_boxes_lie_inside_the_image_and_apart(size):
    for i in range(1000):
        boxes = scene_world.boxes(scene_world.draw_scene(0, i, False), size)
        for k, (x, y, w, h) in enumerate(boxes):
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= size + 1e-6 and y + h <= size + 1e-6
            for x2, y2, w2, h2 in boxes[:k]:
                assert x + w <= x2 + 1e-6 or x2 + w2 <= x + 1e-6 or y + h <= y2 + 1e-6 or y2 + h2 <= y + 1e-6


@pytest.mark.parametrize("size", [48, 240])
def test_shapes_lie_in_their_boxes_and_have_their_colours(size):
    for i in range(60):
        scene = scene_world.draw_scene(0, i, False)
        pixels = np.asarray(scene_world.render_scene(scene, size)).astype(int)
        rest = np.ones((size, size), bool)
        for o, (x, y, w, h) in zip(scene.objects, scene_world.boxes(scene, size), strict=True):
            assert np.abs(pixels[int(y + h / 2), int(x + w / 2)] - scene_world.COLORS[o.color]).max() <= 2
            rest[int(y) : int(y + h) + 2, int(x) : int(x + w) + 2] = False
        assert (pixels[rest] == scene.background).all()


def test_image_shows_exactly_its_scene():
    for i in range(120):
        scene = scene_world.draw_scene(0, i, i % 2 == 0)
        facts = read(scene_world.render_scene(scene, 240))
        assert [(f.size, f.color, f.shape, f.cell) for f in facts] == [
            (o.size, o.color, o.shape, o.cell) for o in scene.objects
        ]
        for fact, box in zip(facts, from_boxes(scene), strict=True):
            assert abs(fact.x - box.x) < 0.02 and abs(fact.y - box.y) < 0.02


# ------------------------------------------------------------------------------------------------ the texts


def test_captions_and_descriptions_match_the_image():
    for i in range(1500):
        scene = scene_world.draw_scene(0, i, False)
        facts = read(scene_world.render_scene(scene, 240)) if i < 60 else from_boxes(scene)
        caption, description = scene_world.caption(scene, random.Random(i)), scene_world.description(scene)
        assert describes(caption, in_text_order(caption, facts)), caption
        assert describes(description, facts), description
        assert caption.count("small") + caption.count("large") == len(facts)
        number = ("no", "one", "two", "three", "four")[len(facts)]
        assert re.search(rf"\b{number} objects?\b", description), description


def test_caption_uses_reading_order_two_times_in_three():
    scene = next(s for i in range(100) if len((s := scene_world.draw_scene(0, i, False)).objects) == 3)
    facts = from_boxes(scene)
    orders = Counter()
    for i in range(600):
        orders[tuple(in_text_order(scene_world.caption(scene, random.Random(i)), facts))] += 1
    share = orders.pop(tuple(facts)) / 600
    assert abs(share - (2 / 3 + 1 / 18)) < 0.06, "two in three, and one in six of the rest by chance"
    assert len(orders) == 5 and min(orders.values()) > 15, "the other orders equally often: 33 each"


def test_every_answer_is_true():
    kinds = Counter()
    for i in range(3000):
        scene = scene_world.draw_scene(1, i, i % 2 == 0)
        facts = read(scene_world.render_scene(scene, 240)) if i < 100 else from_boxes(scene)
        for q in questions_of(scene, i):
            assert kind_of(q.text) == q.kind
            assert is_true(q.kind, q.text, q.answer, facts), (q, facts)
            kinds[q.kind] += 1
    assert set(kinds) == set(QUESTION_KINDS) and min(kinds.values()) > 1000


def test_checker_rejects_every_wrong_answer():
    """Every other answer of the same kind is rejected, so the test above can fail."""
    answers = defaultdict(set)
    for i in range(60):
        for q in questions_of(scene_world.draw_scene(1, i, False), i):
            answers[q.kind].add(q.answer)
    for i in range(60):
        scene = scene_world.draw_scene(1, i, False)
        for q in questions_of(scene, i):
            right = [a for a in answers[q.kind] if is_true(q.kind, q.text, a, from_boxes(scene))]
            assert right == [q.answer]


def test_only_the_conclusion_is_graded():
    assert scene_world.conclusion("the red circle is left , so right") == "right"
    assert scene_world.conclusion("at the top") == "at the top"


# ------------------------------------------------------------------------------------------------ no guessing


def forms(text: str) -> list[str]:
    """What a guess may use: the question, its form, and its form with the first name in it."""
    form = NAME.sub("NAME", text)
    return [text, form, f"{form} {NAME.findall(text)[:1]}"]


def answer_list(held_out: bool, scenes_of: range) -> list[tuple[str, str, str]]:
    answers = []
    for i in scenes_of:
        for q in questions_of(scene_world.draw_scene(0, i, held_out), i):
            answers.append((q.kind, q.text, scene_world.conclusion(q.answer)))
    return answers


def test_answers_are_balanced():
    answers = defaultdict(Counter)
    for kind, _, answer in answer_list(False, range(5000)):
        answers[kind][answer] += 1
    for kind in ("existence", "size", "position", "reasoning"):
        shares = [n / answers[kind].total() * len(answers[kind]) for n in answers[kind].values()]
        assert max(abs(share - 1) for share in shares) < 0.15, (kind, answers[kind])
    pairs = answers.pop("relation")  # two questions of two answers each
    assert abs(pairs["above"] / (pairs["above"] + pairs["below"]) - 0.5) < 0.03, pairs
    assert abs(pairs["left"] / (pairs["left"] + pairs["right"]) - 0.5) < 0.03 and len(pairs) == 4, pairs
    for kind in answers:
        assert len(answers[kind]) == QUESTION_KINDS[kind], (kind, answers[kind])


@pytest.mark.parametrize("held_out", [False, True], ids=["train", "held-out"])
def test_best_guess_from_text_alone_reaches_only_chance(held_out):
    """The best guess from text: the most frequent training answer to the same question, or to its form."""
    train_answers, exam_answers = answer_list(False, range(6000)), answer_list(held_out, range(6000, 12_000))
    best = defaultdict(float)
    for form in range(3):
        answer_counts, is_right = defaultdict(Counter), defaultdict(list)
        for kind, text, answer in train_answers:
            answer_counts[kind, forms(text)[form]][answer] += 1
        best_guess = {key: answers.most_common(1)[0][0] for key, answers in answer_counts.items()}
        for kind, text, answer in exam_answers:
            is_right[kind].append(best_guess.get((kind, forms(text)[form])) == answer)
        for kind, values in is_right.items():
            best[kind] = max(best[kind], 100 * sum(values) / len(values))
    for kind, choices in QUESTION_KINDS.items():
        assert abs(best[kind] - 100 / choices) < 6, (kind, best[kind], 100 / choices)
