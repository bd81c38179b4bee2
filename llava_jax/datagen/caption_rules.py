"""Noun phrases of English captions by rules: lists of function words, verbs and endings. Needs no other package.

A chunk is a run of words that no function word, verb or punctuation mark interrupts; a determiner begins a new one.
launch/bench/measure_filter.py compares the result with spaCy's.
"""

import functools
import re
from collections.abc import Iterator
from typing import Literal

RULES_VERSION = 1  # of what `rule_phrases` returns; cached phrases of another version are not used
TOKEN = re.compile(r"close up\b|[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,:]*\w*|[^\w\s]")

# Begin a chunk and belong to it; not part of its lemma.
DETERMINERS = frozenset(
    """
    a an the this that these those some any no every each both all several many few most such same another other various
    my your his her its our their one two three four five six seven eight nine ten eleven twelve hundred thousand
    """.split()
)
# End a chunk: prepositions, conjunctions, pronouns, auxiliaries, adverbs of place and degree.
ENDS = frozenset(
    """
    about above across after against along alongside amid among amongst around as at atop before behind below beneath
    beside besides between beyond by despite down during except for from in inside into like near next of off on onto
    opposite out outside over past per since than through throughout till to toward towards under underneath unlike
    until up upon via versus vs while with within without
    and or but nor so yet if because although though when where which who whom whose what why how whether
    i me you he him she it we us they them myself yourself himself herself itself ourselves themselves someone somebody
    something anyone anything everyone everything nobody nothing there here
    am is are was were be been being do does did have has had having can could will would shall should may might must
    isn't aren't wasn't weren't don't doesn't didn't can't won't it's he's she's there's that's let's i'm you're they're
    not never also just only then now away together apart aside ahead back-to-back indoors outdoors overhead
    """.split()
)
ADVERBS = frozenset("very really too quite rather almost still already even much more less".split())
# Verbs of captions; `_verb_forms` adds the endings. They end a chunk only after a noun: "a walk", "a man walks".
VERBS = """
    sit stand lie lay walk run ride hold play eat look watch wear carry fly jump swim drive sleep rest lean hang pose
    smile talk read write cook cut feed pull push throw catch kick hit swing cross enter arrive attend perform
    sing dance celebrate score speak visit show display feature contain include cover fill surround decorate
    perch graze roam travel move turn grow bloom shine float sail surf ski skate climb wait work use make take get give
    put keep hug kiss touch reach prepare serve pour drink brush wash clean open close sell buy face point
    appear seem become remain try begin start stop stay live wave paint draw build see go come have lead follow
    compete win celebrate announce pay add offer greet hide chase drag pass park approach line gather seat
""".split()
PAST = """
    sat stood lay laid lain ran rode held ate wore flew swam drove slept hung spoke sang wrote cut fed threw caught hit
    swung left showed shown grew shone made took taken got gave put kept drank sold bought became began drew built saw
    went came led won paid hid seen worn held driven ridden flown known thrown written eaten broken torn
""".split()
# Words that look like verb forms but are nouns or modifiers.
NOUNS_IN_ING = frozenset(
    """
    building ceiling wedding painting clothing ring king string spring wing thing evening morning lightning railing
    drawing engraving clearing crossing landing opening meeting meaning beginning stocking earring lettering awning
    living dining swimming parking boxing wrestling cycling bowling shopping icing frosting stuffing topping dressing
    filling seasoning pudding dumpling duckling darling ceilings lighting paving setting wing sling swing sibling viking
    training racing fishing sewing baking frying mixing vending housing rocking
    skiing skateboarding surfing snowboarding graduation advertising engineering marketing packaging wiring
    """.split()
)
NOUNS_IN_ED = frozenset(
    "bed red shed seed weed speed feed breed sled hundred need creed reed deed biped quadruped infrared bobsled".split()
)
NOUNS_IN_LY = frozenset(
    """
    family fly butterfly dragonfly jelly belly lily ally assembly supply italy july bully holly folly elderly friendly
    lovely curly ugly early daily weekly lonely silly hilly wooly woolly bubbly smelly deadly lively homely
    """.split()
)
# Two adjectives around "and" are one chunk: "a black and white cat". A chunk of adjectives alone is none: "it is red".
ADJECTIVES = frozenset(
    """
    black white red green blue yellow brown orange purple pink gray grey gold golden silver beige tan blonde dark light
    bright colorful colourful big small large little tall short long old young new wooden wet dry hot cold warm cool
    full empty open closed clear cloudy sunny snowy blurry beautiful pretty cute happy sad high low huge tiny giant
    fresh ripe round square clean dirty different own similar first second third last modern ancient vintage rustic
    traditional strange elegant fluffy furry shiny fancy plain soft hard heavy thick thin wide narrow deep shallow sharp
    male female adult asian american african european chinese japanese indian french german italian british
    able unable ready likely available visible bare alone alive asleep awake aware upside
    """.split()
)
PLURALS = {
    "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth", "mice": "mouse",
    "geese": "goose", "oxen": "ox", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "shelves": "shelf",
    "loaves": "loaf", "halves": "half", "scarves": "scarf", "wives": "wife", "calves": "calf", "hooves": "hoof",
    "lives": "life", "thieves": "thief", "elves": "elf", "firemen": "fireman", "policemen": "policeman",
    "fishermen": "fisherman", "businessmen": "businessman", "snowmen": "snowman", "dice": "die", "cacti": "cactus",
    "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "mangoes": "mango", "buffaloes": "buffalo",
    "buses": "bus", "gases": "gas", "lenses": "lens", "zombies": "zombie", "cookies": "cookie", "movies": "movie",
    "selfies": "selfie", "brownies": "brownie", "smoothies": "smoothie", "pies": "pie", "ties": "tie", "lies": "lie",
    "hoodies": "hoodie", "calories": "calorie", "birdies": "birdie", "axes": "axe", "shoes": "shoe", "canoes": "canoe",
    "toes": "toe", "caches": "cache", "moustaches": "moustache", "mustaches": "mustache", "headaches": "headache",
}  # fmt: skip
NO_PLURALS = frozenset(
    """
    series species tennis canvas christmas news chess gymnastics mathematics physics athletics politics texas paris
    los angeles las vegas us gas lens bus always perhaps various famous gorgeous delicious dangerous swiss this
    """.split()
)


def _verb_forms(verb: str) -> Iterator[str]:
    yield verb
    yield verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "o")) else "s")
    if verb.endswith("y") and verb[-2] not in "aeou":
        yield verb[:-1] + "ies"


VERB_FORMS = frozenset(form for verb in VERBS for form in _verb_forms(verb)) | frozenset(PAST)


def rule_phrases(caption: str) -> list[tuple[str, str, str]]:
    """Returns (chunk, lemma, head) of each noun phrase of a caption; see `noun_phrases`."""
    tokens = TOKEN.findall(caption.lower())
    phrases, chunk, has_content = [], [], False  # content: words that may name something; determiners do not
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        kind = _kind(token)
        if kind == "determiner":
            if has_content:
                phrases += _close(chunk)
                chunk, has_content = [], False
            chunk.append(token)
        elif token == "and" and chunk and chunk[-1] in ADJECTIVES and following in ADJECTIVES:
            chunk.append(token)
        elif _ends_chunk(kind, has_content, bool(chunk), following):
            if has_content:
                phrases += _close(chunk)
            chunk, has_content = [], False
        else:
            chunk.append(token)
            has_content = has_content or kind != "adverb"
    return phrases + (_close(chunk) if has_content else [])


@functools.lru_cache(maxsize=1 << 16)
def _kind(token: str) -> Literal["determiner", "end", "ing", "ed", "adverb", "verb", "word"]:
    """The class of a token, by its letters alone."""
    if token in DETERMINERS or token[0].isdecimal():
        return "determiner"
    if token in ENDS or not token[0].isalpha():
        return "end"
    if token.endswith("ing") and len(token) > 4 and token not in NOUNS_IN_ING:
        return "ing"
    if token.endswith("ed") and len(token) > 3 and token not in NOUNS_IN_ED:
        return "ed"
    if token in ADVERBS or token.endswith("ly") and token not in NOUNS_IN_LY:
        return "adverb"
    return "verb" if token in VERB_FORMS else "word"


def _ends_chunk(kind: str, has_content: bool, is_inside: bool, following: str) -> bool:
    """Whether a token of this kind is not part of a noun chunk. is_inside: the chunk has words, if only determiners."""
    if kind in ("word", "end"):
        return kind == "end"
    may_modify = following != "" and _kind(following) not in ("determiner", "end")  # "a snow covered slope"
    if kind == "ing":
        return has_content or not is_inside
    if kind == "ed":
        return not may_modify and (has_content or not is_inside)
    if kind == "adverb":
        return not (is_inside and may_modify)
    return has_content or not (is_inside or may_modify)


def _close(chunk: list[str]) -> list[tuple[str, str, str]]:
    """The phrase of a chunk, in a list; an empty list if it has no noun."""
    if chunk[-1] in ADJECTIVES or _kind(chunk[-1]) == "adverb":
        return []
    content = [_base_form(t) for t in chunk if t != "and" and _kind(t) != "determiner" and t not in ADVERBS]
    return [(" ".join(chunk), " ".join(content), content[-1])]


@functools.lru_cache(maxsize=1 << 16)
def _base_form(token: str) -> str:
    """The singular of a noun; other words unchanged."""
    token = re.sub(r"['’]s?$", "", token) or token
    if token in PLURALS:
        return PLURALS[token]
    if not token.endswith("s") or len(token) < 4 or token.endswith(("ss", "us", "is")) or token in NO_PLURALS:
        return token
    if token.endswith("ies") and len(token) > 4:
        return token[:-3] + "y"
    if token.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return token[:-2]
    return token[:-1]
