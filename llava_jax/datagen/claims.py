"""Text about an image -> the claims it makes that boxes can decide: objects, their absence, numbers and sides.

Rules over words, without a parser or a model. What is hedged ("possibly a cat"), hypothetical, a question, depicted in
the image ("a painting of a cat") or said of a category in general is returned with certain=False, so that it can be
counted; so are vague numbers ("several"). The kinds are those of CHAIR (arXiv 1809.02156, existence), extended by
absence, count and relation.
"""

import dataclasses

from llava_jax.datagen.categories import Vocabulary, coco_vocabulary
from llava_jax.datagen.clauses import Sentence, parse
from llava_jax.datagen.counts import counts
from llava_jax.datagen.existence import asserted
from llava_jax.datagen.relations import relations
from llava_jax.datagen.short_answers import Short, short_answer

KINDS = ("exists", "absent", "count", "relation")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of one object category, or of two for a relation.

    kind: one of KINDS. text: the words of the answer from `start` to `end`. count: of kind "count", None where it is
    vague. relation: "left", "right", "above" or "below", of `subject` seen from `object`. at_least: the count is a
    lower bound. certain: False where the text leaves the claim open.
    """

    kind: str
    subject: str
    text: str
    start: int
    end: int
    count: int | None = None
    relation: str | None = None
    object: str | None = None
    at_least: bool = False
    certain: bool = True
    pair: int = 0  # which answer of a text with several

    @property
    def meaning(self) -> tuple:
        """What is claimed, without the words: equal for claims that say the same; "a left of b" is "b right of a"."""
        subject, relation, other = self.subject, self.relation, self.object
        if relation in ("right", "below"):
            subject, other = other, subject
            relation = "left" if relation == "right" else "above"
        return self.kind, subject, self.count, relation, other


def claims_in(question: str, answer: str, vocabulary: Vocabulary | None = None) -> list[Claim]:
    """Returns the claims of an answer in the order of its words, each claim once, at its first certain words.

    The question gives short answers their meaning: "yes", "no", "three", "left". vocabulary: COCO's by default. A count
    or a relation also claims that its objects exist.
    """
    vocabulary = vocabulary or coco_vocabulary()
    result, earlier = [], None
    for sentence in parse(answer, vocabulary):
        if (
            earlier is None or earlier.question
        ):  # the first sentence, and one that answers a question of the text itself
            before = parse(question, vocabulary)[-1:] if earlier is None else [earlier]
            for short in short_answer(before[0], sentence) if before else []:
                result.append(_claim(answer, sentence, short))
        result += _claims_of(sentence, earlier, answer)
        earlier = sentence
    return _each_once(result)


def _claim(answer: str, sentence: Sentence, short: Short) -> Claim:
    start, end = sentence.spans[short.first].start, sentence.spans[short.last].end
    details = {name: getattr(short, name) for name in ("count", "at_least", "relation", "object", "certain")}
    return Claim(short.kind, short.subject, answer[start:end], start, end, **details)


def _claims_of(sentence: Sentence, earlier: Sentence | None, answer: str) -> list[Claim]:
    def claim(kind: str, subject: str, first: int, last: int, **details) -> Claim:
        start, end = sentence.spans[first].start, sentence.spans[last].end
        return Claim(kind, subject, answer[start:end], start, end, **details)

    result = []
    for mention in sentence.mentions:
        verdict = asserted(sentence, mention)
        kind = "absent" if verdict == "absent" else "exists"
        first = mention.head if mention.determiner == "bare" else mention.first
        result.append(claim(kind, mention.category, first, mention.last, certain=verdict != "uncertain"))
    for c in counts(sentence):
        certain = c.apart or (c.count is not None and asserted(sentence, c.mention) == "exists")
        if c.apart:
            result.append(claim("exists", c.mention.category, c.mention.head, c.mention.last))
        result.append(
            claim("count", c.mention.category, c.first, c.last, count=c.count, at_least=c.at_least, certain=certain)
        )
    for r in relations(sentence, earlier):
        result.append(
            claim("relation", r.subject.category, r.first, r.last, relation=r.direction, object=r.object.category)
        )
    return result


def _each_once(claims: list[Claim]) -> list[Claim]:
    """Keeps one claim of each meaning: a certain one before an uncertain, an exact count before a lower bound."""
    kept: dict[tuple, Claim] = {}
    for claim in claims:
        known = kept.setdefault(claim.meaning, claim)
        if (claim.certain, not claim.at_least) > (known.certain, not known.at_least):
            kept[claim.meaning] = claim
    return sorted(kept.values(), key=lambda claim: (claim.start, claim.end, KINDS.index(claim.kind)))
