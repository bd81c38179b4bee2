"""Parses the letter of a choice from a model's text.

strict          the rule of the original's `eval_science_qa`, exactly
stated_letter   only the last part of that rule, which is all that the GPT-4 ensembles use
lenient         also accepts other clear answers
"""

import re

from llava_jax.data.sources.scienceqa import LETTERS

SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the original's dot: any one character
# "the correct answer is", "ANSWER:". Never two \s* in a row, which would backtrack over every split of a run of spaces.
ANSWER_PREFIX = r"(?i:\banswer(?:\s+is(?:\s*:)?|\s*:)\s*)"
# A lower-case letter must end its clause: "the answer is a dog" states no letter. "The answer is Blue." states one only
# under the strict rule.
STATED = re.compile(ANSWER_PREFIX + r"(?:\(([A-Za-z])\)|([A-Z])(?!\w)|([a-z])(?=\s*(?:[.,;:!)\n]|$)))")
ALONE = re.compile(r"\(?([A-Za-z])\)?[.:]?")  # the whole text
LEADING = re.compile(r"(?:\(([A-Za-z])\)|([A-Z])[.):])\s")  # the start of a text


def read_letter(text: str, choices: tuple[str, ...], parser: str) -> str | None:
    """The letter that the strict or the lenient parser finds in a text."""
    return strict(text) if parser == "strict" else lenient(text, choices)


def strict(text: str) -> str | None:
    """The letter, A to E, if the text is a letter alone or begins with "X. "; otherwise `stated_letter`. It may be none
    of the choices."""
    if len(text) == 1 and text in LETTERS:
        return text
    if text[1:3] == ". " and text[0] in LETTERS:
        return text[0]
    return stated_letter(text)


def stated_letter(text: str) -> str | None:
    """The letter if the text contains exactly one "The answer is X" followed by a character; otherwise None."""
    letters = SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 else None


def lenient(text: str, choices: tuple[str, ...]) -> str | None:
    """The letter of one of `choices`, or None. Letters count in any case if they are the whole text, at its start, or
    stated as the answer; all must be equal. Otherwise a choice counts that is the whole text or the stated answer."""
    text = text.strip()
    first = ALONE.fullmatch(text) or LEADING.match(text)
    matches = STATED.findall(text) + ([first.groups()] if first else [])
    letters = {"".join(group or "" for group in groups).upper() for groups in matches}
    if letters:
        return letters.pop() if len(letters) == 1 and letters <= set(LETTERS[: len(choices)]) else None
    stated = _bare(re.split(ANSWER_PREFIX, text)[-1])
    same = [letter for letter, choice in zip(LETTERS, choices, strict=False) if stated and _bare(choice) == stated]
    return same[0] if len(same) == 1 else None


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()


def index_of(letter: str | None, choices: int) -> int:
    """The index of a letter among `choices` choices; -1 if it is none of them."""
    return LETTERS[:choices].find(letter) if letter else -1
