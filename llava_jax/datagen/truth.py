"""Claims about an image against the boxes of its objects: which are right, and how truthful a teacher is.

Existence is scored much as by CHAIR (arXiv 1809.02156, section 2.1), once for each category that a text names; counts
against the number of boxes, and left, right, above and below against the centres of boxes.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable

from llava_jax.datagen.categories import Vocabulary, coco_vocabulary
from llava_jax.datagen.claims import KINDS, Claim, claims_in
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.output.intervals import wilson

# COCO's annotators boxed 10 to 15 objects of a category, the rest as one crowd region (arXiv 1405.0312, section 4.3).
UNCOUNTABLE = 10
MARGIN = 0.02  # centres closer than this share of the image decide no side
ALL = "all"  # the row of all kinds of text
TITLES = {
    "precision": "precision", "with_captions": "  or captioned", "recall": "recall", "absence": "absence",
    "count": "count", "at_least": "at least", "relation": "relation",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Share:
    """`right` of `count`. The interval treats claims as independent; claims about one image are not quite."""

    right: int = 0
    count: int = 0

    def __add__(self, other: "Share") -> "Share":
        return Share(self.right + other.right, self.count + other.count)

    @property
    def percent(self) -> float | None:
        return 100 * self.right / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% Wilson interval in percent; None for an empty share."""
        return wilson(self.right, self.count)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the boxes say of a kind of text.

    precision: claims that an object exists, which have a box; with_captions: which have a box or are named by a caption
    of the image (boxes miss objects). recall: categories with a box that the text names, of all with a box. absence:
    claims that no object of a category exists. count: numbers; at_least: lower bounds. relation: sides. uncertain:
    claims that are not checked, by kind of claim.
    """

    precision: Share = Share()
    with_captions: Share = Share()
    recall: Share = Share()
    absence: Share = Share()
    count: Share = Share()
    at_least: Share = Share()
    relation: Share = Share()
    uncertain: Counter[str] = dataclasses.field(default_factory=Counter)

    def __add__(self, other: "Truth") -> "Truth":
        return Truth(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Truth)))


@dataclasses.dataclass(frozen=True)
class CheckedText:
    """A text of one kind ("conversation", "detail" ...) about one image, with its claims and their verdicts."""

    kind: str
    claims: list[Claim]
    verdicts: list[bool | None]
    context: ImageContext
    vocabulary: Vocabulary = dataclasses.field(default_factory=coco_vocabulary)


def verdict(claim: Claim, boxes: tuple[Box, ...] | None, vocabulary: Vocabulary | None = None) -> bool | None:
    """Returns whether boxes confirm a claim; None: they cannot decide, because

    - the claim is uncertain, its number is vague, or the image has no boxes (None);
    - 10 or more objects have a box, where annotators did not box each one;
    - an object of a relation has no box, the centres are closer than 2% of the image, or pairs of boxes disagree.
    """
    vocabulary = vocabulary or coco_vocabulary()
    if boxes is None or not claim.certain:
        return None
    subjects = _of(claim.subject, boxes, vocabulary)
    if claim.kind == "exists":
        return bool(subjects)
    if claim.kind == "absent":
        return not subjects
    if claim.kind == "count":
        return _count_verdict(claim, len(subjects))
    sides = {
        _is_side(claim.relation, subject, other)
        for subject in subjects
        for other in _of(claim.object, boxes, vocabulary)
        if subject is not other
    }
    return sides.pop() if len(sides) == 1 else None


def _of(category: str, boxes: tuple[Box, ...], vocabulary: Vocabulary) -> list[Box]:
    covered = vocabulary.covered(category)
    return [box for box in boxes if box.category in covered]


def _count_verdict(claim: Claim, boxed: int) -> bool | None:
    if claim.count is None:
        return None
    if claim.at_least and boxed >= claim.count:
        return True
    if boxed >= UNCOUNTABLE:
        return None
    return False if claim.at_least else boxed == claim.count


def _is_side(relation: str, subject: Box, other: Box) -> bool | None:
    """Whether the centre of `subject` lies on a side of the centre of `other`."""
    if relation in ("left", "right"):
        distance = (other.left + other.right - subject.left - subject.right) / 2
    else:
        distance = (other.top + other.bottom - subject.top - subject.bottom) / 2
    if abs(distance) < MARGIN:
        return None
    return (distance > 0) == (relation in ("left", "above"))


def check_text(
    kind: str, pairs: Iterable[tuple[str, str]], context: ImageContext, vocabulary: Vocabulary | None = None
) -> CheckedText:
    """Returns the claims of a text, (question, answer) pairs, with their verdicts; what several answers claim, once."""
    vocabulary = vocabulary or coco_vocabulary()
    claims: dict[tuple, Claim] = {}
    for i, (question, answer) in enumerate(pairs):
        for claim in claims_in(question, answer, vocabulary):
            claim = dataclasses.replace(claim, pair=i)
            known = claims.setdefault(claim.meaning, claim)
            if (claim.certain, not claim.at_least) > (known.certain, not known.at_least):
                claims[claim.meaning] = claim
    verdicts = [verdict(claim, context.boxes, vocabulary) for claim in claims.values()]
    return CheckedText(kind, list(claims.values()), verdicts, context, vocabulary)


def measure_truth(texts: Iterable[CheckedText]) -> dict[str, Truth]:
    """Returns the truth of each kind of text, and of ALL together; images without boxes count only as uncertain."""
    result: dict[str, Truth] = defaultdict(Truth)
    for text in texts:
        truth = _truth_of(text)
        result[text.kind] += truth
        result[ALL] += truth
    return dict(sorted(result.items(), key=lambda item: (item[0] == ALL, item[0])))


def _truth_of(text: CheckedText) -> Truth:
    shares: dict[str, Share] = defaultdict(Share)
    uncertain: Counter[str] = Counter()
    captioned = _captioned(text)
    for claim, right in zip(text.claims, text.verdicts, strict=True):
        if right is None:
            uncertain[claim.kind] += 1
            continue
        name = {"exists": "precision", "absent": "absence"}.get(claim.kind, claim.kind)
        if claim.kind == "count" and claim.at_least:
            name = "at_least"
        shares[name] += Share(int(right), 1)
        if claim.kind == "exists":
            shares["with_captions"] += Share(int(right or claim.subject in captioned), 1)
    if text.context.boxes is not None:
        named = set()
        for claim in text.claims:
            if claim.kind == "exists" and claim.certain:
                named |= text.vocabulary.covered(claim.subject)
        boxed = {box.category for box in text.context.boxes}
        shares["recall"] = Share(len(boxed & named), len(boxed))
    return Truth(**shares, uncertain=uncertain)


def _captioned(text: CheckedText) -> set[str]:
    """The categories that the captions of the image name."""
    claims = [claim for caption in text.context.captions for claim in claims_in("", caption, text.vocabulary)]
    return {claim.subject for claim in claims if claim.kind == "exists"}


def truth_lines(truths: dict[str, Truth]) -> list[str]:
    """Returns the lines of a table, a column a kind of text: percent, 95% interval and number of claims."""
    lines = [" " * 16 + "".join(kind.rjust(28) for kind in truths)]
    for name in (f.name for f in dataclasses.fields(Truth) if f.name != "uncertain"):
        lines.append(
            TITLES[name].ljust(16) + "".join(_cell(getattr(truth, name)).rjust(28) for truth in truths.values())
        )
    for kind in KINDS:
        numbers = [truth.uncertain[kind] for truth in truths.values()]
        lines.append(f"open, {kind:10}" + "".join(str(number).rjust(28) for number in numbers))
    return lines


def _cell(share: Share) -> str:
    if not share.count:
        return "-"
    low, high = share.interval
    return f"{share.percent:.1f} [{low:.1f}, {high:.1f}] of {share.count}"
