"""Which mentions assert that an object is in the image, which that none is, and which leave it open."""

from llava_jax.datagen.clauses import JOINERS, OBJECTS, PARTICIPLES, PREPOSITIONS, Sentence, list_start, restricted
from llava_jax.datagen.mentions import ALIVE, DEPICTED, DEPICTED_ALIVE, FUNCTION, Mention
from llava_jax.datagen.scopes import GENERALLY, HEDGED, IMAGE, NEGATED, NEGATIONS, OPEN, PERCEIVED, PLAIN

ART = frozenset(
    "sculpture statue poster mural logo figurine sticker print shadow reflection silhouette emoji icon model".split()
)
PICTURES = frozenset(
    "picture photo photograph image illustration drawing painting sketch cartoon portrait depiction shot".split()
)
PICTURE_WORDS = frozenset("a an the clear colorful close up head black and white old vintage -".split())
SHOWING = frozenset(
    "show shows showing feature features featuring depict depicts depicting contain contains containing include "
    "includes including display displays displaying have has having hold holds carry carries wear wears ride "
    "rides see seen are is were was with showcases presents captures capture captured notice spot observe be".split()
)
CONTAINERS = frozenset(
    "full bowl plate box basket slice slices piece pieces tray bag shelf stream presence pictures photos images "
    "head side view close-up bundle heap mass sea mound cup row sight".split()
)
SITUATIONS = (
    PARTICIPLES
    | PERCEIVED
    | frozenset(
        "visible present shown depicted displayed featured included pictured here there walking riding holding "
        "wearing on in at near behind beside next".split()
    )
)
FINITE = frozenset("is are was were can may might could would should must do does will have has".split())
AUXILIARIES = frozenset("might may could would should can must will".split())
STANDING = frozenset(
    "sit stand lie walk fill surround line hang appear rest graze occupy dot float wait gather decorate exist".split()
)
EMPTY_SUBJECTS = (
    frozenset(
        "there am is are was were the this that a an in of on at i we you one it can do does did to be any entire "
        "anywhere even as well also so from not no and or see find for clearly actually however viewer observer "
        "absolutely simply have has contains contain include includes show shows feature features depict depicts "
        "display displays hold holds whole seems anything nothing looks like look spot notice observe count "
        "counted single sign signs trace hint evidence absence lack presence zero none among objects object "
        "things shapes items everything room all but where within without devoid free lacks lacking missing "
        "absent thing what artist painter photographer creator camera author draw drawn paint place placed add "
        "put give given exist exists occur fails fail failed vain instance instances example examples case true "
        "part search will would could able unable resembling complete clear total obvious excludes exclude omits "
        "omit leaves out been comes come such point shown present visible depicted something".split()
    )
    | IMAGE
    | PERCEIVED
    | OBJECTS
    | NEGATIONS
)
GONE = frozenset("absent missing nowhere nonexistent non-existent lacking omitted excluded absence".split())
SHOWN = (
    frozenset(
        "present visible shown there depicted included seen pictured found in here displayed featured part any "
        "among one something appear exist occur feature figure drawn on".split()
    )
    | PERCEIVED
)


def asserted(sentence: Sentence, mention: Mention) -> str:
    """Returns "exists", "absent" or "uncertain" for a mention."""
    if sentence.question or _depicted(sentence, mention):
        return "uncertain"
    state = sentence.states[mention.head]
    denied = _denied_after(sentence, mention)
    if (state == OPEN and denied != "absent") or _alternative(sentence, mention):
        return "uncertain"
    if denied:
        return "uncertain" if mention.modifiers or mention.noun.narrower else denied
    if state == NEGATED:
        return _negated(sentence, mention)
    if mention.determiner == "definite" and state in (PLAIN, HEDGED):
        return "exists"
    if state == HEDGED or _generic_subject(sentence, mention):
        return "uncertain"
    if mention.determiner == "bare":
        return "exists" if _bare_asserted(sentence, mention) else "uncertain"
    return "uncertain" if sentence.before(mention.head) in ("any", "every") else "exists"


def _alternative(sentence: Sentence, mention: Mention) -> bool:
    """Whether "or" joins the mention to another category: "a cat or a dog". Under a negation both are denied."""
    if sentence.states[mention.head] == NEGATED:
        return False
    for other in sentence.mentions:
        first, second = sorted((mention, other), key=lambda m: m.first)
        between = sentence.tokens[first.last + 1 : second.first]
        if other.category != mention.category and between in (["or"], [",", "or"]):
            return True
    if mention.determiner in ("vague", "number"):  # "two or three dogs"
        return False
    either = sentence.tokens[mention.last + 1 : mention.last + 2] == ["or"] or sentence.before(mention.first) == "or"
    return either and not any(
        other is not mention and other.category == mention.category and abs(other.head - mention.head) < 5
        for other in sentence.mentions
    )


def _depicted(sentence: Sentence, mention: Mention) -> bool:
    """Whether the object is a toy or a picture in the image; "this is a photo of a dog" speaks of the image itself."""
    alive = mention.category in ALIVE
    if {*mention.modifiers} & (DEPICTED | DEPICTED_ALIVE if alive else DEPICTED):
        return True
    tokens, i = sentence.tokens, mention.first
    kind = tokens[i - 2].removesuffix("s") if sentence.before(i) == "of" else ""
    if kind not in PICTURES:
        return kind in ART
    before = [word for word in tokens[: i - 2] if word not in PICTURE_WORDS]
    if not before or before[-1] in ("is", "shows", "this", "in", "presents"):
        return bool({*tokens[mention.last :]} & {"hang", "hangs", "hanging", "wall", "framed", "screen", "shirt"})
    return True


def _negated(sentence: Sentence, mention: Mention) -> str:
    """Denied outright ("there is no dog"), or only something of it ("the man holds no cup", "does not see the dog")."""
    i = list_start(sentence, mention)
    frame = sentence.tokens[sentence.clause(i)[0] : i]
    simple = all(word in EMPTY_SUBJECTS or word.endswith(("n't", "ly")) or not word[0].isalpha() for word in frame)
    if mention.determiner in ("definite", "possessive"):
        return "exists" if mention.determiner == "definite" and not simple else "uncertain"
    if mention.modifiers or mention.noun.narrower or restricted(sentence, mention) or not simple:
        return "uncertain"
    denied_number = mention.count == 0 or (
        mention.count == 1 and "not" in sentence.tokens[max(0, mention.first - 2) : mention.first]
    )
    return "absent" if mention.count is None or denied_number else "uncertain"


def _denied_after(sentence: Sentence, mention: Mention) -> str:
    """Returns "absent" if the words after a mention deny it ("a dog is not visible", "dogs: none"), "uncertain" if they
    deny it of a part of the image only ("not visible on the couch"), and "" else."""
    if sentence.states[mention.head] == NEGATED:
        return ""
    if {m.category for m in sentence.mentions} == {mention.category} and _none_after(
        sentence.tokens[mention.last + 1 :]
    ):
        return "absent"
    end = next(
        (
            m.first
            for m in sentence.mentions
            if m.first > mention.last
            and not all(word in JOINERS for word in sentence.tokens[mention.last + 1 : m.first])
        ),
        len(sentence.tokens),
    )
    if (
        any(m is not mention and m.first < mention.first for m in sentence.mentions)
        and list_start(sentence, mention) == mention.first
    ):
        return ""
    tokens = sentence.tokens[mention.last + 1 : end]
    for i, word in enumerate(tokens[:6]):
        if word in GONE or tokens[i : i + 2] == ["left", "out"]:
            return "" if {"not", "isn't", "aren't"} & {*tokens[:i]} else "absent"
        if word in ("not", "cannot", "never", "nor") or word.endswith("n't"):
            after = [w for w in tokens[i + 1 : i + 5] if w not in ("be", "been", "a", "the", "actually", "at", "to")]
            if not after or after[0] not in SHOWN:
                return ""
            return "uncertain" if _elsewhere(after) else "absent"
    return ""


def _none_after(tokens: list[str]) -> bool:
    """Whether words deny what was named before them: "as for dogs, there are none", "a dog, but did not find one"."""
    denied = any(word in ("not", "cannot") or word.endswith("n't") for word in tokens)
    return bool({"none", "zero", "0"} & {*tokens}) or (denied and tokens[-2:-1] in (["one"], ["any"], ["it"]))


def _elsewhere(tokens: list[str]) -> bool:
    """Whether the words restrict a denial to a part of the image: "not visible on the table"."""
    following = [k for k, word in enumerate(tokens) if word in PREPOSITIONS]
    return any(not {*tokens[k + 1 : k + 4]} & (IMAGE | OBJECTS | {"it", "all"}) for k in following)


def _generic_subject(sentence: Sentence, mention: Mention) -> bool:
    """Whether an indefinite subject stands before a modal: "some people might prefer ..." """
    following = sentence.tokens[mention.last + 1 : mention.last + 2]
    perceived = {*sentence.tokens[mention.last + 1 : mention.last + 6]} & PERCEIVED
    return bool(following) and following[0] in AUXILIARIES and not perceived and mention.determiner != "number"


def _bare_asserted(sentence: Sentence, mention: Mention) -> bool:
    """Whether a noun without article stands for objects of the image, and not for the category in general."""
    tokens, left = sentence.tokens, sentence.before(mention.first)
    start = list_start(sentence, mention)
    if start < mention.first:  # "a man and woman", "plates, forks and spoons"
        first = next(m for m in sentence.mentions if m.first == start)
        return asserted(sentence, first) == "exists"
    fragment = not any(word in FUNCTION - PREPOSITIONS - {"and", "or", "of", "s"} for word in tokens)
    if fragment or left == ":":
        return True
    # A caption: "dog running on a beach".
    if mention.head == 0 or (mention.first == 0 and mention.modifiers):
        following = tokens[mention.last + 1]
        if not FINITE & {*tokens} and (following.endswith(("ing", "ed")) or following in PREPOSITIONS):
            return True
    if left in (",", "and") and _in_shown_list(tokens, mention.first - 1):
        return True
    if not mention.noun.plural and not mention.noun.mass:
        return False
    if left == "of":
        return sentence.before(mention.first - 1) in CONTAINERS
    if left in SHOWING or left.endswith("ing") or left in PREPOSITIONS - {"from", "toward", "towards", "among"}:
        return True
    if left in ("also", "even", "only") and sentence.before(mention.first - 1) in SHOWING:
        return True
    if start > 0 and left not in (",", "and", "the", "where", "while", "as", "that"):
        return False
    last = mention
    for other in sentence.mentions:  # "bicycles and cars are parked"
        if all(word in JOINERS for word in tokens[last.last + 1 : other.first]) and other.first > last.last:
            last = other
    following = tokens[last.last + 1 : last.last + 5]
    if following[:1] and following[0] in STANDING:
        return True
    verb = following[:1] and following[0] in ("are", "is", "can", "were")
    return (
        bool(verb)
        and not {*following} & GENERALLY
        and any(word in SITUATIONS or word.endswith("ing") for word in following[1:])
    )


def _in_shown_list(tokens: list[str], i: int) -> bool:
    """Whether a list of other nouns leads back from token i to a word such as "includes": "includes plates, forks"."""
    while i >= 0 and (
        tokens[i] in (",", "and", "of", "a", "an", "some", "several", "two") or tokens[i] not in FUNCTION
    ):
        if tokens[i] in SHOWING or tokens[i] == ":":
            return True
        i -= 1
    return i > 0 and tokens[i] in SHOWING
