"""Words of a sentence, and the noun phrases in it that name an object category, with their article or number."""

import dataclasses
import re

from llava_jax.datagen.categories import Noun, Vocabulary

SENTENCE = re.compile(r"[^.!?;\n]+(?:[.!?;]+(?![^\s\"')])|\n|$|[.!?;])")
# Words keep an inner apostrophe ("isn't", "o'clock") and hyphens; a possessive 's is a token of its own.
TOKEN = re.compile(
    r"[a-z]+['’]s-[a-z]+|[a-z]+(?:-[a-z]+)*(?:['’](?!s\b)[a-z]+)?|['’]s\b|\d+(?:[.,:]\d+)*|--|[^\w\s]", re.IGNORECASE
)
NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"dozen": 12}
GROUPS = {"pair": 2, "duo": 2, "trio": 3, "quartet": 4, "quintet": 5}  # "a trio of"
VAGUE = frozenset(
    "several some many few various multiple numerous couple countless plenty lots handful group groups number "
    "variety dozens hundreds bunch bunches collection assortment array crowd herd flock stack stacks pile piles "
    "row rows set sets cluster series most enough lot range mix fleet".split()
)
DEFINITE = frozenset("the this that these those each both all my our your his her its their".split())
POSSESSIVE = frozenset("my our your his her its their".split())
INDEFINITE = frozenset("a an another one any every either neither no half".split())
FUNCTION = frozenset(
    "is are was were be been being am has have had do does did can could may might must shall should will would "
    "not and or nor but if as than then so because while whereas although though since until unless whether which "
    "who whom whose where when what why how there here it he she they we you i him them us me of in on at to from "
    "by with without for near under over above below behind beside besides between beneath underneath inside "
    "outside into onto upon against along across around through toward towards up down off out next like such "
    "including plus about during after before only just also even still too very perhaps maybe possibly probably "
    "likely yes neither depicts depict excludes exclude omits omit shows show showing features feature contains "
    "contain includes include displays display showcases see sees saw find finds notice spot observe hold holds "
    "wear wears ride rides carry carries say says stand stands sit sits lie lies appear appears seem seems look "
    "looks count counts lack lacks remain remains make makes get gets s 's ’s".split()
) - {"no"}
# Nouns after a category's name that make it a modifier: "dog bed", "train station".
HEADS = frozenset(
    "uniform uniforms accident alarm arm arms bag bags barn bath baths batter booth boots bottoms bowl bowls box "
    "boxes bread breed breeds bun buns cabinet cabinets cage cages cake cakes camera car carriage carriages cars "
    "cart carts case cases cider cloth club clubs collar colony competition conductor conversation conversations "
    "costume costumes counter counters court courts cover crash crust cushion cushions cutter dealer dealership "
    "design designs dish dishes dock door doors dough drawer drawers drawing drawings driver drivers ears edge "
    "edges engine engines enthusiast enthusiasts equipment event events eye face fare farm farmer farms feeder "
    "feeders field fields figurine figurines flock food frame frosting fur game games garage gear grove hair "
    "handle handles harbor hat hats herd holder horn house hull instructor jacket journey journeys juice keeper "
    "lane lanes leash leg legs lesson lessons level levels lid lift lifts linen linens logo logos lot lots lover "
    "lovers maintenance mask masks match meat milk neck nest nests number opener oven ovens owner owners painting "
    "paintings pan pans paper park parker parlor parlour pattern patterns peel pen pens pie plantation platform "
    "platforms player players pole poles population populations print race rack racks ramp ramps ranch rental "
    "rentals repair resort resorts restaurant ride rider riders rights rim route routes salad sauce screen "
    "screens sculpture sculptures seat seatbelt setting settings shape shapes sheet sheets shelf shelter shelves "
    "shop shops sitter skills skin slice slope slopes soup species split spread stable stables stairs stand "
    "station stations statue statues sticker stickers sticks stop store stores stream suit surface surfaces tag "
    "tags tail team teams theme ticket tickets tire tires tissue top topping toppings tour tower towers toy toys "
    "track tracks traffic trailer trailers trainer tree trees trick tricks vendor walker walkers warmer wash "
    "wheel wheels window windows".split()
)
APPROXIMATE = frozenset("about around approximately roughly nearly almost maybe perhaps possibly".split())
NO_MODIFIERS = FUNCTION | DEFINITE | INDEFINITE | VAGUE
VERB_SUBJECTS = frozenset("they it he she we you i who that which can may will".split())
COLOURS = frozenset("black white red blue green yellow brown gray grey orange pink purple tan silver gold".split())
ADJECTIVES = frozenset("orange remote human individual adult convertible".split())
# Modifiers of what is no object of the category; the second ones only of people and animals ("a plush couch" is one).
DEPICTED = frozenset({"toy", "fake", "cartoon", "lego", "animated", "miniature"})
DEPICTED_ALIVE = frozenset({"stuffed", "plush", "painted", "ceramic", "carved", "wooden", "inflatable"})
ALIVE = frozenset("person bird cat dog horse sheep cow elephant bear zebra giraffe".split())


@dataclasses.dataclass(frozen=True)
class TextSpan:
    text: str  # lower-case
    start: int  # in the whole answer
    end: int


@dataclasses.dataclass(frozen=True)
class Mention:
    """A noun phrase. first, last: indices of its tokens, article or number included; head: the noun's first token.

    determiner: "definite", "possessive", "indefinite", "no", "number", "vague" or "bare".
    """

    noun: Noun
    first: int
    head: int
    last: int
    determiner: str
    count: int | None = None
    at_least: bool = False  # the count is a lower bound
    modifiers: tuple[str, ...] = ()

    @property
    def category(self) -> str:
        return self.noun.category


def sentences(text: str) -> list[tuple[int, str]]:
    """Splits a text at full stops, question and exclamation marks, semicolons and line ends; (offset, sentence)."""
    return [(match.start(), match[0]) for match in SENTENCE.finditer(text) if match[0].strip()]


def split_words(text: str, offset: int = 0) -> list[TextSpan]:
    """Returns the lower-case words, numbers and punctuation marks of a text."""
    return [
        TextSpan(m[0].lower().replace("’", "'"), offset + m.start(), offset + m.end()) for m in TOKEN.finditer(text)
    ]


def number_of(word: str) -> int | None:
    """Returns the value of a number word or of up to three digits, else None."""
    return int(word) if re.fullmatch(r"\d{1,3}", word) else NUMBERS.get(word)


def mentions(text_spans: list[TextSpan], vocabulary: Vocabulary) -> list[Mention]:
    """Returns the noun phrases of a sentence that name a category, in order; of overlapping nouns the longest.

    A noun before another noun is a modifier ("dog bed", "baby elephant"), and no mention.
    """
    tokens = [span.text for span in text_spans]
    runs = []
    i = 0
    while i < len(tokens):
        run = _longest(tokens, i, vocabulary)
        if run:
            runs.append((i, *run))
            i = run[0]
        else:
            i += 1
    nouns = {i for start, end, _ in runs for i in range(start, end)}
    result = []
    for k, (start, end, noun) in enumerate(runs):
        following = runs[k + 1] if k + 1 < len(runs) else None
        if noun.category is None or (not noun.plural and following and following[0] == end):
            continue
        if end < len(tokens) and tokens[end] in HEADS and not noun.plural:
            continue
        mention = _phrase(tokens, start, end, noun, nouns)
        if not (noun.ambiguous and _other_part_of_speech(tokens, mention)):
            result.append(mention)
    return result


def _longest(tokens: list[str], start: int, vocabulary: Vocabulary) -> tuple[int, Noun] | None:
    """Returns (end, noun) of the longest noun that starts here; a hyphen counts as a space."""
    for length in range(min(vocabulary.longest, len(tokens) - start), 0, -1):
        phrase = tuple(" ".join(tokens[start : start + length]).split())
        noun = vocabulary.nouns.get(phrase) or vocabulary.nouns.get(tuple(" ".join(phrase).replace("-", " ").split()))
        if noun:
            return start + length, noun
    return None


def _phrase(tokens: list[str], start: int, end: int, noun: Noun, nouns: set[int]) -> Mention:
    """Finds the article or number before a noun, over at most five modifiers; nouns: the tokens of all nouns."""
    first = start
    while (
        first > 0 and start - first < 6 and (_modifies(tokens, first - 1) or _joins_modifiers(tokens, first - 1, nouns))
    ):
        first -= 1
    modifiers = tuple(tokens[first:start])
    left = tokens[first - 1] if first else ""
    value = number_of(left)
    if left == "of" and first > 1:
        return _after_of(tokens, first, start, end, noun, modifiers)
    if value is not None:
        return _counted(tokens, first - 1, start, end, noun, value, modifiers)
    if left == "no":
        return Mention(noun, first - 1, start, end - 1, "no", modifiers=modifiers)
    if left == "'s":
        return Mention(noun, first, start, end - 1, "possessive", modifiers=modifiers)
    if left in POSSESSIVE:
        return Mention(noun, first - 1, start, end - 1, "possessive", modifiers=modifiers)
    if left in DEFINITE:
        count = 2 if left == "both" else None
        kind = "number" if count else "definite"
        return Mention(noun, first - 1, start, end - 1, kind, count, modifiers=modifiers)
    if left in INDEFINITE:
        single = any(word in ("single", "lone", "solitary", "sole") for word in modifiers)
        others = tuple(word for word in modifiers if word not in ("single", "lone", "solitary", "sole"))
        if single:
            return Mention(noun, first - 1, start, end - 1, "number", 1, modifiers=others)
        return Mention(noun, first - 1, start, end - 1, "indefinite", modifiers=modifiers)
    if left in VAGUE:
        return Mention(noun, first - 1, start, end - 1, "vague", modifiers=modifiers)
    return Mention(noun, first, start, end - 1, "bare", modifiers=modifiers)


def _modifies(tokens: list[str], i: int) -> bool:
    """Whether word i can stand between an article or a number and its noun."""
    word = tokens[i]
    if not word[0].isalpha() or number_of(word) is not None or word in NO_MODIFIERS:
        return False
    if word.endswith("ing"):  # "a sleeping dog", not "man holding dogs"
        return i > 0 and (tokens[i - 1] in DEFINITE | INDEFINITE | VAGUE or number_of(tokens[i - 1]) is not None)
    return True


def _joins_modifiers(tokens: list[str], i: int, nouns: set[int]) -> bool:
    """Whether "and" or a comma stands between two modifiers after an article: "a tan and black cat"."""
    if tokens[i] not in ("and", ",") or i < 2 or not _modifies(tokens, i - 1):
        return False
    if i - 1 in nouns and tokens[i - 1] != "orange":
        return False
    before = tokens[i - 2]
    return before in DEFINITE | {"a", "an", "another"} or number_of(before) is not None or tokens[i - 1] in COLOURS


def _counted(tokens, first: int, head: int, end: int, noun: Noun, value: int, modifiers: tuple[str, ...]) -> Mention:
    """A mention after a number, with what stands before the number: "at least two", "about ten", "the two"."""
    before = tokens[max(0, first - 3) : first]
    at_least, kind, count = False, "number", value
    if before and before[-1] in ("a", "an") and tokens[first] == "dozen":
        first -= 1
    if before[-2:] in (["at", "least"], ["no", "fewer"], ["no", "less"]):
        at_least = True
    elif before[-2:] in (["more", "than"],) or before[-1:] == ["over"]:
        at_least, count = True, value + 1
    elif before and before[-1] in APPROXIMATE or before[-2:] in (["up", "to"], ["at", "most"], ["fewer", "than"]):
        kind, count = "vague", None
    elif (
        len(before) > 1 and before[-1] in ("to", "or", "-", "–") and number_of(before[-2]) is not None
    ):  # "two or three"
        kind, count = "vague", None
    if before[-1:] and before[-1] in DEFINITE | {"another", "other"}:
        first -= 1
        at_least = at_least or before[-1] in ("another", "other")
    return Mention(noun, first, head, end - 1, kind, count, at_least, modifiers)


def _after_of(tokens, first: int, head: int, end: int, noun: Noun, modifiers: tuple[str, ...]) -> Mention:
    """A bare noun after "of": "a pair of dogs", "a total of two dogs", "a group of dogs", "a photo of dogs"."""
    left = first - 2
    measure = tokens[left]
    article = left - 1 if left and tokens[left - 1] in INDEFINITE | DEFINITE else left
    several = {"a", "an"} & {*tokens[max(0, left - 3) : left]}
    if measure in ("number", "count", "total", "tally") and not several:  # "the total number of dogs is two"
        return Mention(noun, first, head, end - 1, "bare", modifiers=modifiers)
    if measure in GROUPS:
        # A pair of skis or scissors is one object of two parts.
        count = GROUPS[measure] if noun.category not in ("skis", "scissors") else None
        return Mention(noun, article, head, end - 1, "number" if count else "vague", count, modifiers=modifiers)
    if measure in VAGUE or measure in ("pairs", "kinds", "types", "sorts"):
        return Mention(noun, article, head, end - 1, "vague", modifiers=modifiers)
    return Mention(noun, first, head, end - 1, "bare", modifiers=modifiers)


def _other_part_of_speech(tokens: list[str], mention: Mention) -> bool:
    """Whether an ambiguous word is no noun here: a verb ("to book"), or an adjective ("an orange plate")."""
    left = tokens[mention.first - 1] if mention.first else ""
    right = tokens[mention.last + 1] if mention.last + 1 < len(tokens) else "."
    if (left == "to" and not mention.noun.plural) or left in VERB_SUBJECTS:
        return mention.determiner == "bare"
    if tokens[mention.head] == "couple" and right == "of":
        return True
    if mention.noun.plural:
        return mention.determiner == "bare" and bool(mention.modifiers)
    if mention.determiner == "bare":  # "a shirt and tie", but not "sit and book a room"
        return left not in ("and", ",") or not (right in FUNCTION or not right[0].isalpha())
    if mention.noun.category == "orange" and {*mention.modifiers} & {"bright", "dark", "light", "vivid", "deep"}:
        return True
    joined = tokens[mention.last + 2 : mention.last + 3]
    if mention.noun.category in ("orange", "remote") and right in ("and", "or", "-"):
        return not joined or joined[0] not in FUNCTION | DEFINITE | INDEFINITE | VAGUE
    if tokens[mention.head] not in ADJECTIVES:
        return False
    return not (right in FUNCTION or not right[0].isalpha() or right.endswith(("ing", "ed", "n't")))
