"""Checks of a teacher's text that need no image: refusals, leaks of the source, roles, emptiness, length, language.

The teacher reads captions and boxes; the student sees an image. A reply that talks of captions teaches the student to
talk of something that is not there. Replies such as "your message is empty" stayed in released data sets (SVIT).

The checks know English only. They describe a reply and drop nothing: dropping by such checks can hurt a model
(FineVision, arXiv 2510.17269), so that a filter is the caller's decision.
"""

import re
import unicodedata
from collections.abc import Sequence

from llava_jax.datagen.contexts import ImageContext

FAULTS = {
    "empty": "no question with an answer, or one without a letter or digit",
    "refusal": "the teacher declines, or says that it cannot see an image",
    "meta reply": "the teacher talks to its user: greets, asks for input, offers help",
    "source leak": "names captions, boxes, coordinates or a description, which the student does not see",
    "roles": "markers of the dialogue (Question:, ===, <image>) inside a question or an answer",
    "too short": "fewer words than an answer of its kind needs",
    "too long": "an answer of more than 400 words",
    "language": "not English",
}
# Own choices: far from the means of GPT-4's answers, 16.5, 78 and 113 words (LLaVA-Bench COCO).
FEWEST_WORDS = {"conversation": 1, "detail": 20, "reasoning": 15}
MOST_WORDS = 400

_IMAGE = (
    r"(an? |the |this |that |any |your )?(actual |original |attached )?(images?|pictures?|photo(graph)?s?|visuals?)"
)
_UNABLE = r"(can ?not|can't|could not|couldn't|am unable to|'m unable to|am not able to|'m not able to)"
_REFUSAL = (
    r"\bi('m| am) (very |really |so )?sorry\b|^sorry\b|\bi apologi[sz]e\b|\bmy apologies\b",
    r"\b(as|i am|i'm)( just| only)? an? (ai|artificial intelligence|(large |ai )?language model|text-based|virtual)\b",
    rf"\bi ?{_UNABLE} (directly |actually )?(see|view|access|open|display|process|analy[sz]e|look at) {_IMAGE}\b",
    rf"\bi ?{_UNABLE} (assist|help(?! but)|comply|fulfill?|provide|answer|complete|generate|create|continue|do that)\b",
    r"\bi (do not|don't) have (access to|the ability to|the capability to|visual)\b",
    r"\bno (image|picture|photo) (was|is|has been) (provided|attached|given|included|shared)\b",
    rf"\bwithout (seeing|access to|being able to see) {_IMAGE}\b",
    r"\b(against|violates) (my|the|our) (guidelines|policy|policies|programming)\b",
)
_META = (
    r"\byour (message|input|request|prompt|query) (is|was|seems|appears|looks) (to be )?(empty|blank|incomplete|cut)\b",
    r"\bplease (provide|share|upload|send|supply|give|specify|clarify)( me| us)?( with)? (an?|the|more|your|some|any"
    r"|further|additional|what)\b",
    r"\byou (have not|haven't|did not|didn't) (provided?|included?|attach(ed)?|uploaded?|shared?|gave|given?)\b",
    r"^(sure|certainly|of course|absolutely|okay|ok|great|understood)[!,.:]* (here|i('ll| will| can)|let|below)\b",
    r"\bhere (is|are)( (an?|the|some|your|my|two|three|four|five|several|possible))* (\w+ ){0,3}"
    r"(questions?|answers?|q&a|conversations?|dialogues?|responses?|descriptions?|pairs)\b",
    r"\blet me know (if|what|whether|how)\b|\bfeel free to (ask|let|provide|share|reach|contact)\b",
    r"\b(i )?hope (this|that|it) helps\b",
    r"\b(i'd|i would|i'll|i will|i'm|i am) (be )?(happy|glad) to (help|assist|provide|describe|answer)\b",
    r"\bhow (can|may) i (help|assist)\b|\banything else (i can|you('d| would)? (like|need|want))\b",
    r"\bas (requested|instructed|you (asked|requested))\b|\bper (your|the) (request|instructions?)\b",
    r"\[(insert|your|name of|answer|question|object|description)\b[^\]]*\]",
)
_TEXTS = r"(descriptions?|texts?|sentences?|information|data)"
_LEAK = (
    r"\bcaptions?\b",
    r"\b(bounding[- ]?box(es)?|bbox(es)?|coordinates?(?! with| well)|object detect(ion|or)|annotations?|annotated)\b",
    rf"\b(the|this|these) (given|provided|supplied|above|textual|written|previous) ({_TEXTS}|context|details)\b",
    rf"\b({_TEXTS}|context|details) (provided|given|supplied|above)\b(?! (by|on) (an?|the) )",
    r"\b(the|these|those|your|all|both|some|one of the|image) (descriptions?|sentences?) (also )?(say|state|mention"
    r"|indicate|suggest|describe|note|refer|imply|implie|doe|do|i)s?\b",
    rf"\b(based on|according to|from|per) (the|these|this|your) (image )?{_TEXTS}\b(?! (in|of|on|visible|shown)\b)",
    r"\b(is|are|was|were|isn't|aren't|wasn't) (not |also |only |never )?(explicitly |specifically |clearly )?"
    r"(described (as|in|by)|mentioned|specified|stated)\b",
    r"[\[(]\s*\d*\.\d+\s*,\s*\d*\.\d+|\b0\.\d{3}\b|\b[xy][12] ?=",
)
_ROLES = (
    r"^\W*(questions?|answers?|q|user|assistant|human|gpt|chatgpt|system|teacher|student)( ?\d+)?\W{0,3}:",
    r"={3,}|</?s>|<\|[\w ]+\|>|<image>|\[/?INST\]|<</?SYS>>",
    r"^#+ ?(human|assistant|instruction|response|question|answer)\b",
)


def _compiled(patterns: Sequence[str]) -> re.Pattern:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE)


REFUSAL, META, LEAK, ROLES = map(_compiled, (_REFUSAL, _META, _LEAK, _ROLES))
# Frequent in every English text, and rare in other languages that use the Latin script.
ENGLISH = frozenset(
    "the and of to is are with there this that it its be what which from has have at by for not some can as their they "
    "he she his who how why where image picture or one two three another yes front behind near left right".split()
)
ENGLISH_SHARE = 0.12  # of the words of a text
DECIDABLE_WORDS = 12  # a shorter text may lack these words in English too
LATIN_SHARE = 0.8  # of the letters of a text


def text_faults(context: ImageContext, kind: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the names of FAULTS that a reply has, in their order; [] for a good one.

    kind: "conversation", "detail" or "reasoning". pairs: (question, answer) of the reply. A question is searched for
    leaks and roles only: "Can you provide a description?" is a fair question. Words that the image's own captions
    use ("a cartoon with a caption") are no leak of them.
    """
    answers = [_plain(answer) for _, answer in pairs]
    texts = [_plain(text) for pair in pairs for text in pair]
    lengths = [len(answer.split()) for answer in answers]
    captions = _plain("\n".join(context.captions)).casefold()
    checks = {
        "empty": not pairs or any(not any(map(str.isalnum, text)) for text in texts),
        "refusal": any(REFUSAL.search(answer) for answer in answers),
        "meta reply": any(META.search(answer) for answer in answers),
        "source leak": any(m.group().casefold() not in captions for text in texts for m in LEAK.finditer(text)),
        "roles": any(ROLES.search(text) for text in texts),
        "too short": any(0 < length < FEWEST_WORDS[kind] for length in lengths),
        "too long": any(length > MOST_WORDS for length in lengths),
        "language": not all(map(is_english, texts)),
    }
    return [name for name in FAULTS if checks[name]]


def is_english(text: str) -> bool:
    """Whether a text is English, as far as its letters and its most frequent words can tell.

    A text of fewer than 12 words in Latin letters passes.
    """
    letters = [c for c in text if c.isalpha()]
    if sum("LATIN" in unicodedata.name(c, "") for c in letters) < LATIN_SHARE * len(letters):
        return False
    tokens = re.findall(r"[^\W\d_]+", text.casefold())
    return len(tokens) < DECIDABLE_WORDS or sum(word in ENGLISH for word in tokens) >= ENGLISH_SHARE * len(tokens)


def _plain(text: str) -> str:
    """Returns the text with straight apostrophes, of full width characters their common form, without outer space."""
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").strip()
