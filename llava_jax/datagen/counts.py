"""Numbers of objects that a sentence states: before the noun, or apart from it ("as for dogs, I count two")."""

import dataclasses

from llava_jax.datagen.clauses import OBJECTS, Sentence, restricted
from llava_jax.datagen.mentions import GROUPS, Mention, number_of
from llava_jax.datagen.scopes import PERCEIVED, PLAIN

# Modifiers that leave no object of the category out.
WHOLE = frozenset(
    "distinct different separate visible total such individual identical noticeable only main clear".split()
)
# What may follow a number that stands apart from its noun.
AFTER_NUMBER = frozenset(
    "in here visible such altogether overall total and as present for when throughout within across there "
    "distinct separate instances examples them times".split()
)
EXACTLY = frozenset("exactly only just precisely".split())


@dataclasses.dataclass(frozen=True)
class Count:
    """count: None where the number is vague ("several"). first, last: tokens."""

    mention: Mention
    count: int | None
    at_least: bool
    first: int
    last: int
    apart: bool = False  # the number does not stand before its noun


def counts(sentence: Sentence) -> list[Count]:
    """Returns the counts that a sentence states, not its denials. "a dog" and "one of them" state none.

    A count is a lower bound where it is called one, where the noun or a modifier names a part of the category
    ("two men", "two brown dogs"), and where the sentence speaks of some objects only ("two cups on the table").
    """
    if sentence.question:
        return []
    result = []
    for mention in sentence.mentions:
        if sentence.states[mention.head] != PLAIN or mention.count == 0:
            continue
        if mention.determiner == "vague" and mention.noun.plural:
            result.append(Count(mention, None, False, mention.first, mention.last))
        if mention.determiner != "number" or mention.count is None:
            continue
        exact = sentence.before(mention.first) in EXACTLY
        part = mention.at_least or mention.noun.narrower or not WHOLE.issuperset(mention.modifiers)
        part = part or (not exact and restricted(sentence, mention))
        if mention.count == 1 and (part or not _states_one(sentence, mention)):
            continue
        result.append(Count(mention, mention.count, bool(part), mention.first, mention.last))
    return result or _apart(sentence)


def _states_one(sentence: Sentence, mention: Mention) -> bool:
    """Whether "one dog" is a count: "there is one dog", "a single dog"; not "one dog sits, another stands"."""
    before = sentence.tokens[max(0, mention.first - 3) : mention.first]
    single = {"single", "lone", "sole", "solitary"} & {*sentence.tokens[mention.first : mention.head]}
    existential = any(
        word in ("there", "see", "count", "contains", "shows", "exactly", "only", "just", "has") for word in before
    )
    another = any(word in ("another", "other") for word in sentence.tokens[mention.last :])
    return bool(single or existential) and not another


def _apart(sentence: Sentence) -> list[Count]:
    """The count of a sentence with one noun and one number apart from it: "dogs: 2", "the number of dogs is two"."""
    tokens = sentence.tokens
    if len({m.category for m in sentence.mentions}) != 1:
        return []
    mention = sentence.mentions[0]
    numbers = [(i, _value(tokens, i)) for i in range(len(tokens)) if _value(tokens, i) is not None]
    numbers = [(i, value) for i, value in numbers if _stands_alone(tokens, i)]
    counted = {"count", "tally", "total"} & {*tokens[mention.last + 1 : mention.last + 2]}  # "the dog count is two"
    if len(numbers) != 1 or not (mention.noun.plural or counted or numbers[0][1] == 1):
        return []
    i, value = numbers[0]
    if sentence.states[i] != PLAIN or value == 0 or mention.determiner in ("indefinite", "no", "number"):
        return []
    part = mention.noun.narrower or not WHOLE.issuperset(mention.modifiers)
    at_least = tokens[max(0, i - 2) : i] == ["at", "least"]
    if any(
        word in ("about", "around", "approximately", "roughly", "nearly", "almost")
        for word in tokens[max(0, i - 1) : i]
    ):
        return []
    return [Count(mention, value, part or at_least, min(i, mention.head), max(i, mention.last), apart=True)]


def _value(tokens: list[str], i: int) -> int | None:
    if tokens[i] in GROUPS and tokens[max(0, i - 1) : i] in (["a"], ["the"]):
        return GROUPS[tokens[i]]
    return {"twice": 2, "thrice": 3}.get(tokens[i], number_of(tokens[i]))


def _stands_alone(tokens: list[str], i: int) -> bool:
    """Whether the number at i has no noun of its own: "there are two .", "two of them"; not "two sit, one stands"."""
    following = tokens[i + 1 : i + 4] or ["."]
    if tokens[i] == "one":
        return not following[0][0].isalpha() or following[0] == "in"
    if following[0] == "of":
        return {*following[1:]} & ({"them", "these", "those"} | OBJECTS) != set()
    if following[0] in ("are", "is", "can"):
        return bool(
            {*following[1:]}
            & (PERCEIVED | {"number", "count", "total", "how", "visible", "present", "shown", "here", "in", "there"})
        )
    return not following[0][0].isalpha() or following[0] in AFTER_NUMBER
