"""Questions about objects that are not in the image, with answers that say so.

A teacher that sees only captions and boxes writes about what is there, and a model that has only seen such rows says
yes too often. These pairs need no teacher: with known boxes it is certain what of the annotated categories is absent.
"""

import random
from collections import Counter
from collections.abc import Sequence

from llava_jax.datagen.categories import Vocabulary
from llava_jax.datagen.claims import claims_in
from llava_jax.datagen.contexts import ImageContext

PAIRS = (  # {a}: the object with its article, {name}: without, {is}: is or are
    ("Is there {a} in the image?", "No, there is no {name} in the image."),
    ("Can you see {a} anywhere in this picture?", "No, I do not see {a} in this picture."),
    ("Does the photo show {a}?", "No, the photo does not show {a}."),
    ("Where {is} the {name} in this image?", "There {is} no {name} in this image."),
    ("What color {is} the {name}?", "I do not see {a} in the image, so I cannot say anything about its color."),
    ("What is next to the {name}?", "The image does not contain {a}, so nothing is next to it."),
)
PLURAL = ("scissors", "skis")
MASS = ("broccoli",)


class AbsentObjects:
    """Draws an absent object for an image, from the categories of all images: half of the time any, else one that is
    often together with the image's own objects, which a model expects. vocabulary: what captions call them."""

    def __init__(self, contexts: Sequence[ImageContext], vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.together: Counter[tuple[str, str]] = Counter()
        self.categories: set[str] = set()
        for context in contexts:
            present = {box.category for box in context.boxes or ()}
            self.categories |= present
            self.together.update((a, b) for a in present for b in present if a != b)

    def draw(self, context: ImageContext, rng: random.Random) -> str | None:
        """A category that has no box and that no caption mentions; None if the boxes are not known or none is left."""
        if context.boxes is None:
            return None
        present = {box.category for box in context.boxes}
        text = " ".join(context.captions).lower()
        present |= {claim.subject for caption in context.captions for claim in claims_in("", caption, self.vocabulary)}
        absent = [c for c in sorted(self.categories - present) if c not in text]
        if not absent:
            return None
        if rng.random() < 0.5:
            return rng.choice(absent)
        weights = [1 + sum(self.together[p, c] for p in present) for c in absent]
        return rng.choices(absent, weights)[0]


def absent_pair(context: ImageContext, objects: AbsentObjects, share: float, seed: int) -> tuple[str, str] | None:
    """A question about an absent object and its answer, for this share of the images; else None. Only the seed, the id
    and the categories of all images decide."""
    rng = random.Random(f"avoidance/{seed}/{context.id}")
    if rng.random() >= share or (category := objects.draw(context, rng)) is None:
        return None
    a = f"any {category}" if category in PLURAL + MASS else f"{'an' if category[0] in 'aeiou' else 'a'} {category}"
    forms = {"a": a, "name": category, "is": "are" if category in PLURAL else "is"}
    question, answer = rng.choice(PAIRS)
    if category in PLURAL:
        for singular, plural in (("there is", "there are"), ("its color", "their color"), ("to it.", "to them.")):
            answer = answer.replace(singular, plural)
    return question.format(**forms), answer.format(**forms)
