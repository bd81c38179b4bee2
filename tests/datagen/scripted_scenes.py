"""A scripted teacher: scenes with their boxes, and sentences about them in given phrasings, some of them false."""

import dataclasses
import random
from types import ModuleType

from llava_jax.data.sources import scene_world
from llava_jax.datagen.categories import plurals
from llava_jax.datagen.contexts import ImageContext
from llava_jax.datagen.scene_contexts import scene_context

CLEAR = 0.1  # of the image, between the centres of a relation's objects
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
DIGITS = 0.3  # share of the numbers written as digits


@dataclasses.dataclass(frozen=True)
class Planted:
    """What a sentence claims, and whether that is true of the scene. A relation is written as left or above."""

    kind: str
    meaning: tuple
    true: bool
    template: str


def scripted_context(index: int) -> ImageContext:
    return scene_context(scene_world.draw_scene(11, index, held_out=False), 11, index, held_out=False)


def relation_templates(phrasings: ModuleType, direction: str) -> list[str]:
    """The sentences of a direction: written out, or a phrase put into the templates with {relation}."""
    framed = [t for t in phrasings.PHRASINGS.get("relation", []) if "{relation}" in t]
    phrases = phrasings.RELATIONS[direction]
    return [t.replace("{relation}", phrase) for t in framed for phrase in phrases] if framed else phrases


def fill(template: str, subject: str, object: str = "", count: str = "") -> str:
    """A sentence of a template, with a capital at its start."""
    text = template.format(
        subject=subject, subjects=next(iter(plurals(subject)), subject), a_subject=with_article(subject), object=object,
        a_object=with_article(object), count=count,
    )  # fmt: skip
    return text[0].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def sentence(phrasings: ModuleType, kind: str, context: ImageContext, rng: random.Random) -> tuple[str, Planted] | None:
    """A sentence of a kind about the scene, true or false at even odds where both can be; None: not of this scene."""
    present = [box.category for box in context.boxes]
    absent = [f"{c} {s}" for c in scene_world.COLORS for s in scene_world.SHAPES if f"{c} {s}" not in present]
    if kind == "relation":
        return _relation_sentence(phrasings, context, rng)
    template = rng.choice(phrasings.PHRASINGS[kind])
    if kind == "count":
        numbers = {shape: sum(name.endswith(shape) for name in present) for shape in scene_world.SHAPES}
        several = [shape for shape, number in numbers.items() if number > 1]
        true = bool(several) and rng.random() < 0.6
        subject = rng.choice(several if true else scene_world.SHAPES)
        count = numbers[subject] if true else rng.choice([n for n in (2, 3, 4, 5) if n != numbers[subject]])
        text = str(count) if rng.random() < DIGITS else ("two", "three", "four", "five")[count - 2]
        return fill(template, subject, count=text), Planted(kind, (kind, subject, count, None, None), true, template)
    true = rng.random() < 0.5
    subject = rng.choice(present if true == (kind == "exists") else absent)
    return fill(template, subject), Planted(kind, (kind, subject, None, None, None), true, template)


def _relation_sentence(phrasings: ModuleType, context: ImageContext, rng: random.Random) -> tuple[str, Planted] | None:
    pairs = []
    for a in context.boxes:
        for b in context.boxes:
            if a.left + CLEAR < b.left and a.right + CLEAR < b.right:
                pairs.append((a.category, "left", b.category))
            if a.top + CLEAR < b.top and a.bottom + CLEAR < b.bottom:
                pairs.append((a.category, "above", b.category))
    if not pairs:
        return None
    a, relation, b = rng.choice(pairs)
    true = rng.random() < 0.5
    meaning = ("relation", a, None, relation, b) if true else ("relation", b, None, relation, a)
    _, subject, _, direction, other = meaning
    if rng.random() < 0.5:
        subject, direction, other = other, OPPOSITE[direction], subject
    template = rng.choice(relation_templates(phrasings, direction))
    return fill(template, subject, other), Planted("relation", meaning, true, template)


def implied(meanings: set[tuple]) -> set[tuple]:
    """The meanings, and the existence of the objects that a count or a relation speaks of."""
    kinds = ("count", "relation")
    subjects = {name for kind, subject, _, _, other in meanings if kind in kinds for name in (subject, other) if name}
    return meanings | {("exists", subject, None, None, None) for subject in subjects}
