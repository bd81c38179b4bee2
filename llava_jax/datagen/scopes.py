"""How far each word of a sentence is asserted: plainly, with a hedge, in a hypothesis, or negated."""

from llava_jax.datagen.mentions import DEFINITE, INDEFINITE, VAGUE, TextSpan, number_of

PLAIN, HEDGED, NEGATED, OPEN = "plain", "hedged", "negated", "open"
IMAGE = frozenset(
    "image picture photo photograph pic scene frame shot snapshot view canvas drawing illustration sight "
    "composition background foreground display setting whole overall visual rendering figure artwork diagram "
    "panel graphic".split()
)
# Hedges until the clause ends: what follows may be so, or is so in general.
MODALS = frozenset(
    "might may could would should must can will shall cannot suggest suggests suggesting imply implies implying "
    "seem seems seeming think believe guess assume suspect wonder usually typically commonly generally often "
    "sometimes normally frequently unsure uncertain unclear expect".split()
)
GENERALLY = frozenset("usually typically commonly generally often sometimes normally frequently".split())
# Hedges until the next comma.
ADVERBS = frozenset(
    "possibly perhaps maybe probably likely potentially presumably apparently seemingly potential possible need "
    "needs want wants wanting prefer prefers hope hopes require requires allow allows risk danger chance "
    "possibility resemble resembles resembling reminiscent supposedly conceivably arguably".split()
)
HYPOTHESES = frozenset("if unless whether imagine suppose supposing wish pretend".split())
NEGATIONS = frozenset(
    "no not never without neither nor none lacks lack lacking absence absent missing devoid nowhere nothing "
    "cannot hardly omits excludes zero nobody unable".split()
)
PERCEIVED = frozenset(
    "seen spotted found observed noticed viewed see spot observe notice find make count identify identified "
    "discerned discern located counted detected detect recognize recognized say confirm tell report made glimpsed "
    "discovered".split()
)
CONJUNCTIONS = frozenset("but while whereas although though because since yet however".split())
# First words of a sentence that are no activity in general: "sitting left of the dog is a cat".
LEADING = frozenset(
    "looking counting considering judging standing sitting lying resting hanging floating hovering appearing "
    "being".split()
)
SUBJECTS = frozenset("there he she it they we you i this that these those the another which with who as and so".split())


def states(spans: list[TextSpan]) -> list[str]:
    """Returns PLAIN, HEDGED (indefinite objects are uncertain), NEGATED or OPEN (nothing is asserted) a token."""
    tokens = [span.text for span in spans]
    result = [PLAIN] * len(tokens)
    if _generic_start(tokens):
        result = [HEDGED] * len(tokens)
    state, until_comma = PLAIN, False
    if " in vain" in " ".join(tokens):  # "you look for a dog in vain"
        return [NEGATED] * len(tokens)
    for i in range(len(tokens)):
        if _ends(tokens, i, until_comma, state):
            state = PLAIN
        opened = _opens(tokens, i)
        if opened and state == opened[0]:
            until_comma = until_comma and opened[1]
        elif opened and not (state in (NEGATED, OPEN) and opened[0] == HEDGED):
            state, until_comma = opened
        if state != PLAIN:
            result[i] = state
    return result


def _not_overlooked(tokens: list[str], i: int) -> bool:
    """Whether a negation or an infinitive at i says that something is plain to see: "hard to miss", "no doubt"."""
    plain = {*tokens[i + 1 : i + 4]} & {"miss", "overlook", "mistaking", "overlooked", "missed", "ignore", "denying"}
    return bool(plain) and (tokens[i] != "to" or tokens[i - 1] in ("hard", "difficult", "impossible", "not", "easy"))


def _opens(tokens: list[str], i: int) -> tuple[str, bool] | None:
    """Returns (state, whether it ends at the next comma) if word i begins a hedge, a hypothesis or a negation."""
    word, rest = tokens[i], tokens[i + 1 : i + 5]
    following = rest[0] if rest else ""
    if word == "if" and following in ("you", "we", "i", "one") and {*rest} & {"look", "count", "search", "go", "move"}:
        return None
    if word in HYPOTHESES or (word == "as" and following in ("if", "though")):
        return OPEN, True
    if word in ("instead", "rather", "unlike", "except") and (
        word in ("unlike", "except") or following in ("of", "than")
    ):
        return OPEN, True
    if word == "other" and following == "than":
        return OPEN, True
    if word in ("no", "not", "without") and {*rest[:2]} & {
        "doubt",
        "question",
        "only",
        "just",
        "fewer",
        "less",
        "more",
        "hard",
    }:
        return None
    if _not_overlooked(tokens, i):
        return None
    if word in ("fail", "fails", "failed") and following == "to":
        return NEGATED, False
    if word in NEGATIONS or word.endswith("n't") or (word == "free" and following == "of"):
        return NEGATED, False
    if word == "0":
        return NEGATED, False
    if word in ("can", "could", "will", "would", "may", "should") and any(w in PERCEIVED for w in rest):
        return None
    if word in MODALS or (word in ("appear", "appears", "appearing") and following == "to"):
        return HEDGED, False
    if word in ("look", "looks", "shaped", "looking", "sounds") and following == "like":
        return HEDGED, True
    if word == "possible" and {*rest} & PERCEIVED:
        return None
    if word in ADVERBS or (
        word in ("looking", "waiting", "searching", "search", "hoping") and following in ("for", "of")
    ):
        return HEDGED, i > 0
    if word == "when" and following.endswith("ing"):
        return HEDGED, True
    if word == "to" and _infinitive(tokens, i):
        return HEDGED, True
    if word == "for" and following.endswith("ing") and following not in ("anything", "something", "everything"):
        return HEDGED, True
    return None


def _infinitive(tokens: list[str], i: int) -> bool:
    """Whether "to" at i begins an infinitive: "to ride a horse", not "next to a horse" or "to the left"."""
    if i + 1 == len(tokens) or (i and tokens[i - 1] in ("next", "close", "adjacent", "attached", "due", "similar")):
        return False
    word = tokens[i + 1]
    if any(w in PERCEIVED | {"visible"} for w in tokens[i + 1 : i + 4]) or not word[0].isalpha():
        return False
    outside = DEFINITE | INDEFINITE | VAGUE | IMAGE | {"left", "right", "top", "bottom", "one", "which", "whom", "be"}
    return word not in outside and number_of(word) is None and not word.endswith("s")


def _generic_start(tokens: list[str]) -> bool:
    """Whether an activity in general is the subject: "Riding a bike is ...", not "Riding a bike, a man ..."."""
    if not tokens or not tokens[0].endswith("ing") or tokens[0] in LEADING:
        return False
    verbs = ("is", "can", "may", "might", "could", "would", "helps", "requires", "provides", "allows")
    return next((word for word in tokens if word in verbs or word == ","), ",") != ","


def _ends(tokens: list[str], i: int, until_comma: bool, state: str) -> bool:
    """Whether a hedge or a negation ends before word i."""
    word = tokens[i]
    if word in (":", "--", "–", "—", ";", ")", "(") or word in CONJUNCTIONS:
        return True
    if i and tokens[i - 1] == ",":
        if until_comma or word in SUBJECTS - {"and"}:
            return True
        if word == "and" and state != NEGATED and tokens[i + 1 : i + 2] and tokens[i + 1] in SUBJECTS:
            return True
        if state == NEGATED:  # "no dogs, cats or birds" runs on; "no dogs, only a cat" does not
            return word in INDEFINITE | DEFINITE | VAGUE | {"only", "just", "and"} or number_of(word) is not None
    return (
        word in ("and", "so")
        and state != OPEN
        and tokens[i + 1 : i + 2]
        and tokens[i + 1] in ("there", "is", "are")
        or False
    )
