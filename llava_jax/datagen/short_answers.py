"""Claims of answers that mean something only with their question: "yes", "no", "three", "left"."""

import dataclasses
import re

from llava_jax.datagen.clauses import Sentence, restricted
from llava_jax.datagen.counts import WHOLE
from llava_jax.datagen.existence import asserted
from llava_jax.datagen.mentions import number_of
from llava_jax.datagen.relations import OPPOSITE, relations
from llava_jax.datagen.scopes import PERCEIVED

YES, NO = frozenset({"yes", "yeah", "yep", "correct", "indeed", "certainly"}), frozenset({"no", "nope"})
EXISTENCE = re.compile(
    r"^(?:(?:is|are|was|were) there|(?:do|can|could) (?:you|we|i) (?:\w+ )?(?:see|spot|find|notice|make out|detect)|"
    r"(?:does|do) (?:the|this|that) (?:\w+ )?(?:image|picture|photo|scene) (?:\w+ )?"
    r"(?:contain|show|include|have|feature|depict)|is any|are any)"
)
HEDGES = frozenset("might may could would should likely probably possible or".split())


@dataclasses.dataclass(frozen=True)
class Short:
    """A claim that a short answer makes together with its question; first, last: tokens of the answer."""

    kind: str
    subject: str
    first: int
    last: int
    count: int | None = None
    at_least: bool = False
    relation: str | None = None
    object: str | None = None
    certain: bool = True


def short_answer(question: Sentence, answer: Sentence) -> list[Short]:
    """Returns the claims of "yes", "no", a number or a side at the start of an answer to a question."""
    # Read as a statement, the question says what "yes" affirms.
    statement, tokens = dataclasses.replace(question, question=False), answer.tokens
    text = " ".join(statement.tokens)
    bare = (
        len(statement.mentions) == 1
        and len(statement.tokens) - 2 == statement.mentions[0].last - statement.mentions[0].first
    )
    if "how many" in text or "number of" in text or (bare and number_of(tokens[0]) is not None):
        return _number(statement, tokens, bool(answer.mentions))
    if tokens[0] in YES:
        return _affirmed(statement)
    if tokens[0] in NO:
        return _denied(statement)
    return _side(statement, tokens)


def _number(statement: Sentence, tokens: list[str], names_object: bool) -> list[Short]:
    """The number that answers "how many dogs ...?", where the answer does not name the dogs itself."""
    numbers = [(i, number_of(word)) for i, word in enumerate(tokens) if number_of(word) is not None]
    subject = next(
        (m for m in statement.mentions if m.first == 0 or {"many", "number"} & {*statement.tokens[: m.head]}), None
    )
    if subject is None or names_object:
        return []
    if tokens[0] in ("none", "zero", "no") or (numbers and numbers[0][1] == 0):
        plain = not subject.modifiers and not subject.noun.narrower and not restricted(statement, subject)
        return [Short("absent", subject.category, 0, 0, certain=plain)]
    if len(numbers) != 1 or numbers[0][0] > 5:
        return []
    i, value = numbers[0]
    vague = {*tokens[max(0, i - 2) : i]} & {
        "about",
        "around",
        "approximately",
        "roughly",
        "possibly",
        "maybe",
        "perhaps",
    }
    part = subject.noun.narrower or not WHOLE.issuperset(subject.modifiers) or restricted(statement, subject)
    return [
        Short("exists", subject.category, i, i),
        Short("count", subject.category, i, i, value, bool(part) or tokens[max(0, i - 2) : i] == ["at", "least"],
              certain=not vague),
    ]  # fmt: skip


def _affirmed(statement: Sentence) -> list[Short]:
    if HEDGES & {*statement.tokens} or statement.tokens[0] not in (
        "is",
        "are",
        "does",
        "do",
        "can",
        "was",
        "were",
        "has",
    ):
        return []
    result = [
        Short("exists", m.category, 0, 0)
        for m in statement.mentions
        if asserted(statement, m) == "exists"
        or m.determiner == "indefinite"
        or (m.determiner == "bare" and m.noun.plural)
    ]
    result += [
        Short("relation", r.subject.category, 0, 0, relation=r.direction, object=r.object.category)
        for r in relations(statement, None)
    ]
    return result


def _denied(statement: Sentence) -> list[Short]:
    """The absence that "no" claims. To "is there a brown dog?" it leaves open whether there are dogs."""
    text = " ".join(statement.tokens)
    visible = statement.tokens[0] in ("is", "are") and {*statement.tokens} & (PERCEIVED | {"visible", "present"})
    named = all(m.first == 0 and m.last >= len(statement.tokens) - 2 for m in statement.mentions)  # "a dog? no"
    if (
        not (EXISTENCE.match(text) or visible or named)
        or len({m.category for m in statement.mentions}) > 1
        and "or" not in text
    ):
        return []
    return [
        Short("absent", m.category, 0, 0,
              certain=not (m.modifiers or m.noun.narrower or restricted(statement, m)) and m.determiner != "definite")
        for m in statement.mentions
    ]  # fmt: skip


def _side(statement: Sentence, tokens: list[str]) -> list[Short]:
    """The side that answers "is the cat left or right of the dog?": the last word of the answer that names one."""
    options = [word for word in statement.tokens if word in OPPOSITE]
    if (
        len(statement.mentions) != 2
        or len(options) != 2
        or options[0] != OPPOSITE[options[1]]
        or "or" not in statement.tokens
    ):
        return []
    conclusion = max((i for i, word in enumerate(tokens) if word in ("so", "therefore")), default=-1) + 1
    sides = [i for i in range(conclusion, len(tokens)) if tokens[i] in options]
    if len(sides) != 1 or {"not", "neither"} & {*tokens[conclusion:]}:
        return []
    a, b = statement.mentions
    return [Short("relation", a.category, sides[0], sides[0], relation=tokens[sides[0]], object=b.category)]
