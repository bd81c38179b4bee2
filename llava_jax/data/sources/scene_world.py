"""Synthetic scenes: coloured shapes drawn from a seed, with exact captions, questions and boxes.

A scene is one to four objects in different cells of a 3x3 grid, rendered with Pillow. Its captions, boxes,
conversations, descriptions and reasoning questions follow from the scene, without a model or a download:

    >>> scene = draw_scene(seed=0, index=7, held_out=False)
    >>> caption(scene, random.Random(0))
    'a small purple cross at the bottom right'

Train and held-out scenes are disjoint by content (the set of objects and their cells), not only by index.
The kinds of text mirror LLaVA's data (arXiv 2304.08485, section 3): brief captions for stage 1; conversation, detailed
description and complex reasoning for stage 2.
"""

import dataclasses
import hashlib
import random

from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 180),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.60, "large": 0.90}  # relative to the side of a grid cell
GRID = 3
POSITIONS = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
NUMBERS = ("no", "one", "two", "three", "four")
HELD_OUT_SHARE = 8  # one in 8 scene contents is held out


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape. `dx`, `dy` in [-0.5, 0.5] shift it, relative to the free margin of its cell."""

    size: str
    color: str
    shape: str
    cell: int  # 0..8 in reading order
    dx: float
    dy: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order, with distinct (color, shape) and cells, on a light grey background."""

    objects: tuple[Object, ...]
    background: int

    @property
    def held_out(self) -> bool:
        content = sorted((o.size, o.color, o.shape, o.cell) for o in self.objects)
        return hashlib.sha256(repr(content).encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclasses.dataclass(frozen=True)
class SceneQuestion:
    """A question with its correct answer."""

    kind: str
    text: str
    answer: str


def draw_scene(seed: int, index: int, held_out: bool) -> Scene:
    """Returns scene `index` of the endless train or held-out stream of `seed`."""
    rng = _rng("scene", seed, index, held_out)
    while True:  # about 8/7 tries for train, 8 for held-out scenes
        scene = _random_scene(rng)
        if scene.held_out == held_out:
            return scene


def _rng(*key) -> random.Random:
    return random.Random("/".join(map(str, key)))  # string seeds are stable across Python versions


def _random_scene(rng: random.Random) -> Scene:
    count = rng.randint(1, 4)
    cells = sorted(rng.sample(range(GRID * GRID), count))
    appearances = rng.sample([(c, s) for c in COLORS for s in SHAPES], count)
    objects = tuple(
        Object(rng.choice(tuple(SIZES)), color, shape, cell, rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5))
        for cell, (color, shape) in zip(cells, appearances, strict=True)
    )
    return Scene(objects, background=rng.randint(200, 250))


# ------------------------------------------------------------------------------------------------- pixels


def boxes(scene: Scene, image_size: int) -> list[tuple[float, float, float, float]]:
    """Returns (x, y, width, height) of each object in pixels, as in COCO."""
    cell = image_size / GRID
    result = []
    for o in scene.objects:
        side = SIZES[o.size] * cell
        margin = (cell - side) / 2
        x = o.column * cell + margin * (1 + o.dx)
        y = o.row * cell + margin * (1 + o.dy)
        result.append((x, y, side, side))
    return result


def render_scene(scene: Scene, image_size: int) -> Image.Image:
    """Renders an RGB image of `image_size` pixels a side, drawn at four times the size and reduced."""
    oversample = 4
    canvas = Image.new("RGB", (image_size * oversample,) * 2, (scene.background,) * 3)
    draw = ImageDraw.Draw(canvas)
    for o, box in zip(scene.objects, boxes(scene, image_size * oversample), strict=True):
        x, y, w, h = box
        color = COLORS[o.color]
        if o.shape == "circle":
            draw.ellipse((x, y, x + w, y + h), fill=color)
        elif o.shape == "square":
            draw.rectangle((x, y, x + w, y + h), fill=color)
        elif o.shape == "triangle":
            draw.polygon(((x + w / 2, y), (x + w, y + h), (x, y + h)), fill=color)
        else:
            draw.rectangle((x + w / 3, y, x + 2 * w / 3, y + h), fill=color)
            draw.rectangle((x, y + h / 3, x + w, y + 2 * h / 3), fill=color)
    return canvas.resize((image_size, image_size), Image.Resampling.BOX)


# -------------------------------------------------------------------------------------------------- text


def caption(scene: Scene, rng: random.Random) -> str:
    """Returns a brief caption of all objects, for stage 1: two times in three in reading order, else in random order,
    so that a position does not follow from an object's rank."""
    objects = scene.objects if rng.random() < 2 / 3 else rng.sample(scene.objects, len(scene.objects))
    parts = [f"a {o.size} {o.name} at the {POSITIONS[o.cell]}" for o in objects]
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def description(scene: Scene) -> str:
    """Returns a detailed description: the number of objects, then a sentence about each."""
    n = len(scene.objects)
    text = ["there is one object ." if n == 1 else f"there are {NUMBERS[n]} objects ."]
    text += [f"the {o.name} is {o.size} and {POSITIONS[o.cell]} ." for o in scene.objects]
    return " ".join(text)


def questions(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """Returns one question of each kind that the scene allows, drawn so that its text does not reveal the answer: yes
    and no, small and large, and the values of an attribute are equally likely."""
    objects = scene.objects
    result = []
    o = rng.choice(objects)
    result.append(SceneQuestion("position", f"where is the {o.name} ?", POSITIONS[o.cell]))
    o = rng.choice(objects)
    result.append(SceneQuestion("size", f"what size is the {o.name} ?", o.size))
    unambiguous = [o for o in objects if sum(p.shape == o.shape for p in objects) == 1]
    if unambiguous:
        o = rng.choice(unambiguous)
        result.append(SceneQuestion("color", f"what color is the {o.shape} ?", o.color))
    unambiguous = [o for o in objects if sum(p.color == o.color for p in objects) == 1]
    if unambiguous:
        o = rng.choice(unambiguous)
        result.append(SceneQuestion("shape", f"what shape is the {o.color} object ?", o.shape))
    result.append(SceneQuestion("count", "how many objects are there ?", NUMBERS[len(objects)]))
    result.append(_existence(objects, rng))
    if len(objects) > 1:
        result.append(_relation(objects, rng))
    result.append(_reasoning(rng.choice(objects), rng))
    rng.shuffle(result)
    return result


def _relation(objects: tuple[Object, ...], rng: random.Random) -> SceneQuestion:
    """Asks for the relative position of two objects; the answer states the reason before the conclusion."""
    a, b = rng.sample(objects, 2)
    # Never empty, because the cells differ.
    axis = rng.choice([axis for axis in ("row", "column") if getattr(a, axis) != getattr(b, axis)])
    names, before, after, of = (ROWS, "above", "below", "") if axis == "row" else (COLUMNS, "left", "right", "of ")
    at_a, at_b = getattr(a, axis), getattr(b, axis)
    return SceneQuestion(
        "relation",
        f"is the {a.name} {before} or {after} {of}the {b.name} ?",
        f"the {a.name} is {names[at_a]} and the {b.name} is {names[at_b]} , so {before if at_a < at_b else after}",
    )


def _reasoning(o: Object, rng: random.Random) -> SceneQuestion:
    """Asks for an object's position in the flipped image; the answer states the reason before the conclusion."""
    row, column = o.row, o.column
    if rng.random() < 0.5:
        view, column = "in a mirror", GRID - 1 - column
    else:
        view, row = "upside down", GRID - 1 - row
    question, flipped = f"{view} , where is the {o.name} ?", POSITIONS[row * GRID + column]
    return SceneQuestion("reasoning", question, f"the {o.name} is {POSITIONS[o.cell]} , so {flipped}")


def _existence(objects: tuple[Object, ...], rng: random.Random) -> SceneQuestion:
    present = {(o.color, o.shape) for o in objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(present))
        answer = "yes"
    else:  # half of the absent objects share a color or a shape with a present one
        absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        similar = [(c, s) for c, s in absent if any(c == o.color or s == o.shape for o in objects)]
        color, shape = rng.choice(similar if rng.random() < 0.5 else absent)
        answer = "no"
    return SceneQuestion("existence", f"is there a {color} {shape} ?", answer)


def conclusion(answer: str) -> str:
    """Returns the graded part of an answer: the text after the last `so`, or all of it."""
    return answer.rsplit(" so ", 1)[-1].strip()
