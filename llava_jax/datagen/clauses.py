"""A sentence with its mentions, and the questions about it that several kinds of claim ask."""

import dataclasses

from llava_jax.datagen.categories import Vocabulary
from llava_jax.datagen.mentions import Mention, TextSpan, mentions, sentences, split_words
from llava_jax.datagen.scopes import CONJUNCTIONS, IMAGE, PERCEIVED, states

PREPOSITIONS = frozenset(
    "in on at near under over above below behind beside between beneath underneath inside outside into onto upon "
    "against along across around through toward towards with from by next atop among amid within wearing".split()
)
PARTICIPLES = frozenset(
    "parked seated located placed positioned situated gathered dressed stacked lined arranged scattered hanging "
    "tied docked spread mounted attached surrounded covered filled standing sitting lying laying".split()
)
WHOLE_IMAGE = (IMAGE - {"foreground", "background", "setting", "display"}) | {
    "it",
    "total",
    "all",
    "view",
    "here",
    "vain",
    "point",
}
NOT_RESTRICTING = frozenset("including appearing existing being remaining showing counting anything nothing".split())
OBJECTS = frozenset("objects things shapes items elements figures contents pieces".split())
LONGEST = 200  # words; the time to read a sentence grows faster than its length
JOINERS = frozenset({"and", ",", "or", "plus", "nor", "&"})


@dataclasses.dataclass(frozen=True)
class Sentence:
    """states: of each token, see scopes.states. question: the sentence asks and asserts nothing."""

    spans: list[TextSpan]
    tokens: list[str]
    states: list[str]
    mentions: list[Mention]
    question: bool

    def before(self, i: int) -> str:
        return self.tokens[i - 1] if i > 0 else ""

    def clause(self, i: int) -> tuple[int, int]:
        """Returns (first, end) of the tokens around token i between commas, colons and conjunctions."""
        bounds = [
            k
            for k, word in enumerate(self.tokens)
            if word in (",", ":", ";", "(", ")", "--", "–", "—") or word in CONJUNCTIONS
        ]
        first = max((k + 1 for k in bounds if k < i), default=0)
        return first, min((k for k in bounds if k > i), default=len(self.tokens))


def parse(text: str, vocabulary: Vocabulary) -> list[Sentence]:
    """Splits a text into sentences and reads each; of a longer sentence LONGEST words at a time."""
    result = []
    for offset, part in sentences(text):
        question, all_spans = part.rstrip()[-1] == "?", split_words(part, offset)
        for k in range(0, len(all_spans), LONGEST):
            spans = all_spans[k : k + LONGEST]
            tokens = [span.text for span in spans]
            result.append(Sentence(spans, tokens, states(spans), mentions(spans, vocabulary), question))
    return result


def names_whole_image(tokens: list[str]) -> bool:
    """Whether the words after a preposition name the image as a whole: "the image", "this lively scene"."""
    return any(word in WHOLE_IMAGE or word in OBJECTS for word in tokens[:4])


def restricted(sentence: Sentence, mention: Mention) -> bool:
    """Whether the sentence speaks of some objects of the category only: those on a table, those that stand, his."""
    return _restricted_after(sentence, mention) or _restricted_before(sentence, mention)


def _restricted_after(sentence: Sentence, mention: Mention) -> bool:
    end = sentence.clause(mention.last)[1]
    tokens = sentence.tokens[mention.last + 1 : end]
    for i, word in enumerate(tokens):
        following = tokens[i + 1 :]
        if word in ("and", "or") and i == 0:
            return False
        if word in PREPOSITIONS and not names_whole_image(following):
            return True
        if word in ("who", "that", "which", "whose") and not {*following[:5]} & (PERCEIVED | {"visible", "present"}):
            return True
        if (word.endswith("ing") and word not in NOT_RESTRICTING) or word in PARTICIPLES:
            return True
        if word in PREPOSITIONS:  # the words that name the image restrict nothing
            return False
    return False


def _restricted_before(sentence: Sentence, mention: Mention) -> bool:
    first = sentence.clause(mention.first)[0]
    if sentence.tokens[0] in PREPOSITIONS | {"to"} and sentence.tokens[first] in (
        "there",
        "we",
        "i",
        "you",
        "it",
        "the",
    ):
        first = 0
    i = list_start(sentence, mention)
    if any(first <= other.first < i for other in sentence.mentions):
        return True
    tokens = sentence.tokens[first:i]
    return any(word in PREPOSITIONS and not names_whole_image(tokens[k + 1 :]) for k, word in enumerate(tokens))


def list_start(sentence: Sentence, mention: Mention) -> int:
    """Returns the first token of the list "a dog, two cats and ..." in which a mention stands."""
    i = mention.first
    while True:
        previous = next((m for m in sentence.mentions if m.last < i and _only_joiners(sentence, m.last + 1, i)), None)
        if previous is None:
            return i
        i = previous.first


def _only_joiners(sentence: Sentence, start: int, end: int) -> bool:
    return start < end and all(word in JOINERS for word in sentence.tokens[start:end])
