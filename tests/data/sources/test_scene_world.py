"""scenes.py: what the words say is what the picture shows, nothing can be guessed, and held out means unseen.

The checker below shares no code with the generator: it reads a scene back from the pixels (or from boxes and inks) and
judges every caption, description and answer by that.
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
PLACE = re.compile(r"\b(?:top|bottom)(?: left| right)?\b|\b(?:left|middle|right)\b")
LIMIT = 80 * sum(scene_world.SIZES.values()) / 2  # pixels between small and large where a cell has 80


class Fact(NamedTuple):
    """One object as seen; x and y are the centre in cells, 0..3."""

    size: str
    color: str
    shape: str
    x: float
    y: float

    @property
    def cell(self) -> int:
        return int(self.y) * 3 + int(self.x)

    @property
    def place(self) -> str:
        return scene_world.PLACES[self.cell]


def read(image) -> list[Fact]:
    """The objects that a picture (240 px a side) shows, in reading order, from its pixels alone."""
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == (240, 240, 3)
    greys = pixels[pixels.min(axis=2) == pixels.max(axis=2)][:, 0]
    background = np.bincount(greys, minlength=256)[200:].argmax() + 200
    ink = np.abs(pixels - background).max(axis=2) > 60
    found = []
    for top in (0, 80, 160):
        for left in (0, 80, 160):
            rows, columns = np.nonzero(ink[top : top + 80, left : left + 80])
            if len(rows):
                found.append(_read_one(pixels, ink, top + rows, left + columns))
    return found


def _read_one(pixels, ink, rows, columns) -> Fact:
    (y0, y1), (x0, x1) = (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)

    def inked(x: float, y: float) -> bool:
        return bool(ink[int(y0 + y * (y1 - y0)), int(x0 + x * (x1 - x0))])

    if inked(0.06, 0.06):
        shape = "square"
    elif inked(0.08, 0.95):
        shape = "triangle"
    else:
        shape = "circle" if inked(0.2, 0.2) else "cross"
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    seen = pixels[int(y), int(x)]
    color = min(scene_world.COLORS, key=lambda name: np.abs(seen - scene_world.COLORS[name]).sum())
    return Fact("small" if max(x1 - x0, y1 - y0) < LIMIT else "large", color, shape, x / 80, y / 80)


def from_boxes(scene) -> list[Fact]:
    """The same without drawing, for thousands of scenes."""
    found = []
    for o, (x, y, w, h) in zip(scene.objects, scene_world.boxes(scene, 240), strict=True):
        found.append(Fact("small" if w < LIMIT else "large", o.color, o.shape, (x + w / 2) / 80, (y + h / 2) / 80))
    return found


def kind_of(text: str) -> str | None:
    signs = {
        "position": r"^where ", "size": r"^what size", "color": r"^what color", "shape": r"^what shape",
        "count": r"^how many", "existence": r"^is there", "reasoning": r"^(in a mirror|upside down) , where ",
        "relation": r"^is .* or (below|right of) ",
    }  # fmt: skip
    return next((kind for kind, sign in signs.items() if re.search(sign, text)), None)


def is_true(kind: str, text: str, answer: str, facts: list[Fact]) -> bool:
    """Whether `answer` is the one right answer to `text` about a picture that shows `facts`."""
    named = NAME.findall(text)
    seen = {(f.color, f.shape): f for f in facts}
    if kind == "count":
        return answer == ("no", "one", "two", "three", "four")[len(facts)]
    if kind in ("color", "shape"):
        word = re.search(SHAPE if kind == "color" else COLOR, text).group()
        match = [f for f in facts if word in (f.color, f.shape)]
        return len(match) == 1 and answer == getattr(match[0], kind)
    if kind == "existence":
        return len(named) == 1 and answer == ("yes" if named[0] in seen else "no")
    if any(name not in seen for name in named) or len(set(named)) != (2 if kind == "relation" else 1):
        return False
    first = seen[named[0]]
    if kind == "position":
        return answer == first.place
    if kind == "size":
        return answer == first.size
    if kind == "relation":
        second = seen[named[1]]
        words, (high, low), by = (
            (("top", "middle", "bottom"), ("above", "below"), lambda f: f.cell // 3)
            if "above or below" in text
            else (("left", "middle", "right"), ("left", "right"), lambda f: f.cell % 3)
        )
        reason = " and ".join(f"the {f.color} {f.shape} is {words[by(f)]}" for f in (first, second))
        return by(first) != by(second) and answer == f"{reason} , so {high if by(first) < by(second) else low}"
    assert kind == "reasoning", kind
    swapped = ("left", "right") if text.startswith("in a mirror") else ("top", "bottom")
    turned = " ".join(swapped[1 - swapped.index(w)] if w in swapped else w for w in first.place.split())
    return answer == f"the {first.color} {first.shape} is {first.place} , so {turned}"


def tells(text: str, facts: list[Fact]) -> bool:
    """Whether `text` names exactly these objects in this order, each with its place and its size if it says one."""
    clauses = [c for c in re.split(r" ,| and (?=a |the )| \.", text) if NAME.search(c)]
    if [NAME.findall(c) for c in clauses] != [[(f.color, f.shape)] for f in facts]:
        return False
    for clause, fact in zip(clauses, facts, strict=True):
        sizes = re.findall("small|large", clause)
        if PLACE.findall(clause) != [fact.place] or sizes not in ([], [fact.size]):
            return False
    return True


def as_told(text: str, facts: list[Fact]) -> list[Fact]:
    """`facts` in the order in which `text` names them; what it does not name comes first."""
    return sorted(facts, key=lambda f: text.find(f"{f.color} {f.shape}"))


def asked(scene, key) -> list[scene_world.SceneQuestion]:
    return scene_world.questions(scene, random.Random(f"test/{key}"))


def content(scene) -> frozenset:
    return frozenset((o.size, o.color, o.shape, o.cell) for o in scene.objects)


# ------------------------------------------------------------------------------------------------ the stream


def test_a_scene_is_named_by_seed_index_and_half():
    one = [scene_world.draw_scene(3, i, False) for i in range(200)]
    assert one == [scene_world.draw_scene(3, i, False) for i in range(200)]
    assert len(set(one)) == 200
    for other in (
        scene_world.draw_scene(4, 0, False),
        scene_world.draw_scene(3, 0, True),
        scene_world.draw_scene(30, 0, False),
    ):
        assert other != one[0]
    first = scene_world.render_scene(one[0], 48)
    assert (
        first.tobytes() == scene_world.render_scene(one[0], 48).tobytes()
        and first.size == (48, 48)
        and first.mode == "RGB"
    )
    assert asked(one[0], 0) == asked(one[0], 0)


def test_the_docstring_tells_the_truth():
    assert doctest.testmod(scene_world).failed == 0


def test_no_held_out_scene_is_ever_trained_on_whatever_the_seed():
    train = {content(scene_world.draw_scene(seed, i, False)) for seed in (0, 1) for i in range(3000)}
    held_out = {content(scene_world.draw_scene(seed, i, True)) for seed in (0, 2) for i in range(1500)}
    assert len(train) > 4000 and len(held_out) > 1500
    assert not train & held_out


def test_both_halves_have_the_same_kind_of_scenes():
    for half in (False, True):
        drawn = [scene_world.draw_scene(0, i, half) for i in range(3000)]
        counts = Counter(len(s.objects) for s in drawn)
        assert set(counts) == {1, 2, 3, 4} and all(0.2 < n / 3000 < 0.3 for n in counts.values()), counts
        cells = Counter(o.cell for s in drawn for o in s.objects)
        assert len(cells) == 9 and max(cells.values()) < 1.25 * min(cells.values()), cells
        looks = Counter((o.color, o.shape) for s in drawn for o in s.objects)
        assert len(looks) == 24 and max(looks.values()) < 1.6 * min(looks.values()), looks


# ------------------------------------------------------------------------------------------------ the picture


@pytest.mark.parametrize("size", [48, 224])
def test_boxes_lie_inside_the_image_and_apart(size):
    for i in range(1000):
        found = scene_world.boxes(scene_world.draw_scene(0, i, False), size)
        for k, (x, y, w, h) in enumerate(found):
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= size + 1e-6 and y + h <= size + 1e-6
            for x2, y2, w2, h2 in found[:k]:
                assert x + w <= x2 + 1e-6 or x2 + w2 <= x + 1e-6 or y + h <= y2 + 1e-6 or y2 + h2 <= y + 1e-6


@pytest.mark.parametrize("size", [48, 240])
def test_the_ink_is_in_the_boxes_and_has_the_colour_it_is_called(size):
    for i in range(60):
        scene = scene_world.draw_scene(0, i, False)
        pixels = np.asarray(scene_world.render_scene(scene, size)).astype(int)
        rest = np.ones((size, size), bool)
        for o, (x, y, w, h) in zip(scene.objects, scene_world.boxes(scene, size), strict=True):
            assert np.abs(pixels[int(y + h / 2), int(x + w / 2)] - scene_world.COLORS[o.color]).max() <= 2
            rest[int(y) : int(y + h) + 2, int(x) : int(x + w) + 2] = False
        assert (pixels[rest] == scene.background).all()


def test_a_picture_shows_its_scene_and_nothing_else():
    for i in range(120):
        scene = scene_world.draw_scene(0, i, i % 2 == 0)
        facts = read(scene_world.render_scene(scene, 240))
        assert [(f.size, f.color, f.shape, f.cell) for f in facts] == [
            (o.size, o.color, o.shape, o.cell) for o in scene.objects
        ]
        for fact, box in zip(facts, from_boxes(scene), strict=True):
            assert abs(fact.x - box.x) < 0.02 and abs(fact.y - box.y) < 0.02


# ------------------------------------------------------------------------------------------------ the words


def test_captions_and_descriptions_say_what_the_picture_shows():
    for i in range(1500):
        scene = scene_world.draw_scene(0, i, False)
        facts = read(scene_world.render_scene(scene, 240)) if i < 60 else from_boxes(scene)
        caption, description = scene_world.caption(scene, random.Random(i)), scene_world.description(scene)
        assert tells(caption, as_told(caption, facts)), caption
        assert tells(description, facts), description
        assert caption.count("small") + caption.count("large") == len(facts)
        number = ("no", "one", "two", "three", "four")[len(facts)]
        assert re.search(rf"\b{number} objects?\b", description), description


def test_a_caption_names_the_objects_in_reading_order_or_in_any():
    scene = next(s for i in range(100) if len((s := scene_world.draw_scene(0, i, False)).objects) == 3)
    facts = from_boxes(scene)
    orders = Counter()
    for i in range(600):
        orders[tuple(as_told(scene_world.caption(scene, random.Random(i)), facts))] += 1
    share = orders.pop(tuple(facts)) / 600
    assert abs(share - (2 / 3 + 1 / 18)) < 0.06, "two in three, and one in six of the others by chance"
    assert len(orders) == 5 and min(orders.values()) > 15, "the others equally often: 33 each"


def test_every_answer_is_true():
    kinds = Counter()
    for i in range(3000):
        scene = scene_world.draw_scene(1, i, i % 2 == 0)
        facts = read(scene_world.render_scene(scene, 240)) if i < 100 else from_boxes(scene)
        for q in asked(scene, i):
            assert kind_of(q.text) == q.kind
            assert is_true(q.kind, q.text, q.answer, facts), (q, facts)
            kinds[q.kind] += 1
    assert set(kinds) == set(QUESTION_KINDS) and min(kinds.values()) > 1000


def test_the_checker_knows_a_lie():
    """Every other answer that occurs for the kind is judged wrong, so the test above can fail."""
    answers = defaultdict(set)
    for i in range(60):
        for q in asked(scene_world.draw_scene(1, i, False), i):
            answers[q.kind].add(q.answer)
    for i in range(60):
        scene = scene_world.draw_scene(1, i, False)
        for q in asked(scene, i):
            right = [a for a in answers[q.kind] if is_true(q.kind, q.text, a, from_boxes(scene))]
            assert right == [q.answer]


def test_only_the_conclusion_is_graded():
    assert scene_world.conclusion("the red circle is left , so right") == "right"
    assert scene_world.conclusion("at the top") == "at the top"


# ------------------------------------------------------------------------------------------------ no guessing


def forms(text: str) -> list[str]:
    """What a guesser may go by: the question, its form, its form and the first name in it."""
    form = NAME.sub("NAME", text)
    return [text, form, f"{form} {NAME.findall(text)[:1]}"]


def sheet(half: bool, scenes_of: range) -> list[tuple[str, str, str]]:
    found = []
    for i in scenes_of:
        for q in asked(scene_world.draw_scene(0, i, half), i):
            found.append((q.kind, q.text, scene_world.conclusion(q.answer)))
    return found


def test_answers_are_balanced():
    answers = defaultdict(Counter)
    for kind, _, answer in sheet(False, range(5000)):
        answers[kind][answer] += 1
    for kind in ("existence", "size", "position", "reasoning"):
        shares = [n / answers[kind].total() * len(answers[kind]) for n in answers[kind].values()]
        assert max(abs(share - 1) for share in shares) < 0.15, (kind, answers[kind])
    pairs = answers.pop("relation")  # two questions of two answers each
    assert abs(pairs["above"] / (pairs["above"] + pairs["below"]) - 0.5) < 0.03, pairs
    assert abs(pairs["left"] / (pairs["left"] + pairs["right"]) - 0.5) < 0.03 and len(pairs) == 4, pairs
    for kind in answers:
        assert len(answers[kind]) == QUESTION_KINDS[kind], (kind, answers[kind])


@pytest.mark.parametrize("half", [False, True], ids=["train", "held-out"])
def test_who_has_not_seen_the_picture_gets_what_is_called_chance(half):
    """The best guesser from text: the commonest answer in training to the same question, or to the same form of it."""
    study, exam = sheet(False, range(6000)), sheet(half, range(6000, 12_000))
    best = defaultdict(float)
    for form in range(3):
        seen, marks = defaultdict(Counter), defaultdict(list)
        for kind, text, answer in study:
            seen[kind, forms(text)[form]][answer] += 1
        guess = {key: answers.most_common(1)[0][0] for key, answers in seen.items()}
        for kind, text, answer in exam:
            marks[kind].append(guess.get((kind, forms(text)[form])) == answer)
        for kind, right in marks.items():
            best[kind] = max(best[kind], 100 * sum(right) / len(right))
    for kind, equal in QUESTION_KINDS.items():
        assert abs(best[kind] - 100 / equal) < 6, (kind, best[kind], 100 / equal)
