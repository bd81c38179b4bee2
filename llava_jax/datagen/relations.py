"""Relative positions that a sentence states: one object left or right of another, above or below it."""

import dataclasses
import re

from llava_jax.datagen.clauses import JOINERS, PREPOSITIONS, Sentence, list_start
from llava_jax.datagen.existence import asserted
from llava_jax.datagen.mentions import Mention
from llava_jax.datagen.scopes import IMAGE, PLAIN

SIDE = r"(?:(?:very|far|immediate|direct|lower|upper|bottom|top|extreme|own) )*"
DIRECTIONS = {  # direction: regular expression of the words before the object it is measured from
    "left": [
        rf"(?:(?:to|on|at|off to|toward|towards|in|into|along) )?(?:the )?{SIDE}left(?:-?hand)?(?: (?:side|edge))? of",
        r"leftwards? (?:of|from)", r"left (?:from|relative to)",
        r"left(?:ward|most)?(?: \w+){0,4} than",
    ],
    "above": [
        r"(?<!and )above", r"(?:higher|further up|farther up)(?: \w+){0,5} (?:than|from)",
        r"(?:is|are|was|located|positioned|situated|placed|set|drawn|directly|hangs|hovers|floats|sits|appears|lies|seen|"
        r"found|hovering|floating|hanging|just|right|straight|stands|rests|visible|towers) over", r"over",
        r"(?:closer|nearer) to the (?:top|upper)(?: \w+){0,4} than", r"on the upper side of", r"upwards? (?:of|from)",
        r"up from", r"(?:is|are|appears|sits|located|positioned|placed) on top of",
    ],
    "below": [
        r"below", r"beneath", r"underneath", r"under",
        r"(?:lower|further down|farther down)(?: \w+){0,5} (?:than|from)",
        r"(?:closer|nearer) to the (?:bottom|lower)(?: \w+){0,4} than", r"on the lower side of",
        r"downwards? (?:of|from)", r"down from",
    ],
}  # fmt: skip
DIRECTIONS["right"] = [pattern.replace("left", "right") for pattern in DIRECTIONS["left"]]
# An object owns the side: "on the dog's left", "to its left", "above it".
OWNED = {
    "left": [
        rf"(?:to|on|at|off to) 's? ?{SIDE}left",
        rf"(?:to|on|at|off to) (?:its|their|his|her) {SIDE}left",
        r"(?:to|on|at) the left(?: side)? of (?:it|them|him|her)",
    ],
    "above": [r"(?:above|over) (?:it|them|him|her)"],
    "below": [r"(?:below|beneath|under|underneath) (?:it|them|him|her)"],
}
OWNED["right"] = [pattern.replace("left", "right") for pattern in OWNED["left"]]
BARE = {
    "left": "left", "right": "right", "above": "above", "below": "below", "higher": "above", "lower": "below",
    "leftmost": "left", "rightmost": "right", "top": "above", "bottom": "below", "beneath": "below",
    "underneath": "below", "up": "above", "down": "below",
}  # fmt: skip
REFERENCE = re.compile(
    r"(?:relative to|with respect to|compared (?:to|with)|in relation to|in comparison (?:to|with)|with reference to|"
    r"seen from|viewed from|starting (?:from|at)|as seen from|from|measured from|in respect to|than)$"
)
# "The left side of the table" is a part of it.
SURFACES = frozenset(
    {"dining table", "bed", "couch", "bench", "pizza", "bowl", "sink", "oven", "cake", "boat", "train"}
)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
COPULAS = frozenset("is are was were lies sits stands appears rests hangs be remains floats comes".split())
DEGREES = frozenset("just right slightly far further off a bit little up down straight".split())
OPENINGS = frozenset({",", "and", ":", "while", "but", "that", "with"})
INVERSION = frozenset(
    "there is are sits stands lies you we i one appears can rests hangs a an the , comes floats".split()
)
COMPILED = {
    direction: re.compile("|".join(rf"(?:(?<=\s)|^)(?:{pattern})(?=\s|$)" for pattern in patterns))
    for direction, patterns in DIRECTIONS.items()
}
COMPILED_OWNED = {
    direction: re.compile("|".join(rf"(?:(?<=\s)|^)(?:{pattern})(?=\s|$)" for pattern in patterns))
    for direction, patterns in OWNED.items()
}


@dataclasses.dataclass(frozen=True)
class Relation:
    """`subject` is `direction` of `object`. first, last: tokens."""

    subject: Mention
    direction: str
    object: Mention
    first: int
    last: int


def relations(sentence: Sentence, earlier: Sentence | None) -> list[Relation]:
    """Returns the relations that a sentence states plainly; earlier: the sentence before, for "to its left"."""
    if sentence.question:
        return []
    text, starts = " ".join(sentence.tokens), []
    position = 0
    for word in sentence.tokens:
        starts.append(position)
        position += len(word) + 1
    result = []
    for direction, pattern in COMPILED.items():
        for match in pattern.finditer(text):
            first = starts.index(match.start())
            last = next(k for k in range(len(starts)) if starts[k] + len(sentence.tokens[k]) >= match.end())
            result += _between(sentence, direction, first, last)
    for direction, pattern in COMPILED_OWNED.items():
        for match in pattern.finditer(text):
            first = starts.index(match.start())
            last = next(k for k in range(len(starts)) if starts[k] + len(sentence.tokens[k]) >= match.end())
            result += _of_pronoun(sentence, earlier, direction, first, last)
    return result or _owned_side(sentence) or _by_reference(sentence)


def _plain(sentence: Sentence, first: int, *parts: Mention) -> bool:
    """Whether neither the direction nor one of the objects is hedged, denied or depicted."""
    return sentence.states[first] == PLAIN and all(
        asserted(sentence, part) == "exists" for part in parts if part in sentence.mentions
    )


def _between(sentence: Sentence, direction: str, first: int, last: int) -> list[Relation]:
    """The relation of a direction before the object it is measured from: "left of the dog"."""
    tokens, before = sentence.tokens, sentence.before(first)
    landmark = next((m for m in sentence.mentions if m.first == last + 1), None)
    # "left or right of", "left and right of", and a side of what is no object ("the left side of the image")
    if (
        landmark is None
        or before in ("or", "either")
        or (before == "and" and {*tokens[:first]} & {"left", "right"} and tokens[first - 2] in ("left", "right"))
    ):
        return []
    if landmark.category in SURFACES and {"side", "edge"} & {*tokens[first : last + 1]}:
        return []
    if tokens[first : last + 1] == ["over"] and not (first == 0 or any(m.last == first - 1 for m in sentence.mentions)):
        return []  # "leaning over the table"
    subjects = _subjects(sentence, first, landmark)
    if not subjects or not _plain(sentence, first, landmark):
        return []
    return [
        Relation(subject, direction, landmark, min(subject.first, first), max(subject.last, landmark.last))
        for subject in subjects
        if subject is not landmark and subject.category != landmark.category and _plain(sentence, first, subject)
    ]


def _subjects(sentence: Sentence, first: int, landmark: Mention) -> list[Mention]:
    """The objects whose position is stated: after the landmark if the direction opens the clause, else before it."""
    tokens, i = sentence.tokens, first
    while i and (tokens[i - 1].endswith("ly") or tokens[i - 1] in DEGREES):
        i -= 1
    opening = tokens[i - 1] if i else ","
    following = tokens[landmark.last + 1 : landmark.last + 2]
    earlier = [m for m in sentence.mentions if m.last < first]
    after = [m for m in sentence.mentions if m.first > landmark.last]
    opens_clause = opening in OPENINGS and bool(following) and following[0] in INVERSION
    if after and (not earlier or (opens_clause and [opening] != following)):
        return _coordinated(sentence, after[0])
    if not earlier:
        return []
    head = earlier[-1]
    verb = tokens[i - 2] if i > 1 and opening.endswith(("ed", "ing", "n", "d")) else opening
    if opening == "and":  # "the cat is left of the dog and above the bed"
        head = next((m for m in earlier if m.first >= sentence.clause(first)[0]), head)
    elif verb in COPULAS:
        while (owner := _phrase_owner(sentence, head)) is not None:
            head = owner
    if "are" in tokens[head.last : first]:
        return [m for m in earlier if list_start(sentence, head) <= m.first <= head.first]
    return [head]


def _phrase_owner(sentence: Sentence, mention: Mention) -> Mention | None:
    """The mention to which a phrase belongs that ends with `mention`: the dog of "the dog on the couch"."""
    previous = next((m for m in reversed(sentence.mentions) if m.last < mention.first), None)
    if previous is None:
        return None
    between = sentence.tokens[previous.last + 1 : mention.first]
    ends = bool({*between} & (COPULAS | JOINERS | {"there", "that", "which", "but", "while", ":"}))
    return previous if {*between} & PREPOSITIONS and not ends else None


def _coordinated(sentence: Sentence, first: Mention) -> list[Mention]:
    """A mention, and those joined to it: "a cat and a dog"."""
    return [
        m for m in sentence.mentions if m.first >= first.first and list_start(sentence, m) == first.first or m is first
    ]


def _of_pronoun(sentence: Sentence, earlier: Sentence | None, direction: str, first: int, last: int) -> list[Relation]:
    """ "with a tv to its left", "to its left is a tv": it is the other object of the sentence, or the last one's."""
    around = sentence.mentions
    before = [m for m in around if m.last < first]
    after = [m for m in around if m.first > last]
    if len(before) >= 2:
        subject, landmark = before[-1], before[0]
    elif before and after:
        subject, landmark = after[0], before[0]
    elif len(after) == 1 and earlier and len({m.category for m in earlier.mentions}) == 1:
        subject, landmark = after[0], earlier.mentions[0]
        if asserted(earlier, landmark) != "exists":
            return []
    else:
        return []
    if sentence.tokens[max(0, first - 2) : first][-1:] == ["is"] and len(before) >= 2 and "so" in sentence.tokens:
        subject, landmark = before[-1], before[0]
    if subject.category == landmark.category or not _plain(sentence, first, subject, landmark):
        return []
    return [Relation(subject, direction, landmark, min(subject.first, first), max(last, subject.last))]


def _owned_side(sentence: Sentence) -> list[Relation]:
    """ "on the dog's left (side)" """
    tokens, result = sentence.tokens, []
    for landmark in sentence.mentions:
        i = landmark.last + 1
        if tokens[i : i + 1] != ["'s"]:
            continue
        last = next((k for k in range(i + 1, min(i + 3, len(tokens))) if tokens[k] in ("left", "right")), None)
        others = [m for m in sentence.mentions if m.category != landmark.category]
        if last and len(others) == 1 and tokens[landmark.first - 1] in ("to", "on", "at"):
            subject = others[0]
            if _plain(sentence, landmark.first, subject, landmark):
                start = min(subject.first, landmark.first)
                result.append(Relation(subject, tokens[last], landmark, start, max(subject.last, last)))
    return result


def _by_reference(sentence: Sentence) -> list[Relation]:
    """One direction and two objects, one of which is the reference: "compared with the dog, the cat is further left";
    or two objects at opposite sides: "the cat is on the left and the dog is on the right"."""
    tokens = sentence.tokens
    categories = list(dict.fromkeys(m.category for m in sentence.mentions))
    directions = [(i, BARE[word]) for i, word in enumerate(tokens) if word in BARE]
    if (
        len(categories) != 2
        or len(sentence.mentions) != 2
        or not all(sentence.states[i] == PLAIN for i, _ in directions)
    ):
        return []
    if not all(asserted(sentence, m) == "exists" for m in sentence.mentions):
        return []
    a, b = sentence.mentions
    if len(directions) == 1 and not {*tokens[directions[0][0] : directions[0][0] + 4]} & (IMAGE | {"or"}):
        for landmark, subject in ((a, b), (b, a)):
            if REFERENCE.search(" ".join(tokens[max(0, landmark.first - 3) : landmark.first])):
                return [Relation(subject, directions[0][1], landmark, 0, len(tokens) - 1)]
    if len(directions) != 2 or directions[0][1] != OPPOSITE[directions[1][1]]:
        return []
    (first, direction), (second, _) = directions
    if tokens[first + 1 : second] == ["to"]:  # "from left to right: a cat, then a dog"
        return [Relation(a, direction, b, 0, len(tokens) - 1)] if second < a.first or b.last < first else []
    if a.last < first < b.first and b.last < second or first < a.first and a.last < second < b.first:
        return [Relation(a, direction, b, min(a.first, first), max(b.last, second))]
    return []
