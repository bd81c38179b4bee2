"""From what a model wrote to the letter of a choice.

strict    as the original's `eval_science_qa`, character for character
ending    the last of its rules alone, all that its GPT-4 ensembles have
lenient   what a reader would take as an answer too
"""

import re

from llava_jax.data.sources.scienceqa import LETTERS

SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the dot is the original's: any one character, but there must be one
# "the correct answer is", "ANSWER:". No two \s* in a row: they would try all ways to share a run of spaces.
ANSWER_PREFIX = r"(?i:\banswer(?:\s+is(?:\s*:)?|\s*:)\s*)"
# A small letter must end its clause: "the answer is a dog" names no letter. Nor does "The answer is Blue.", for anybody
# but the strict rule.
STATED = re.compile(ANSWER_PREFIX + r"(?:\(([A-Za-z])\)|([A-Z])(?!\w)|([a-z])(?=\s*(?:[.,;:!)\n]|$)))")
ALONE = re.compile(r"\(?([A-Za-z])\)?[.:]?")  # the whole text
LEADING = re.compile(r"(?:\(([A-Za-z])\)|([A-Z])[.):])\s")  # what a text begins with


def read_letter(text: str, choices: tuple[str, ...], parser: str) -> str | None:
    """The letter that the strict or the lenient parser reads in a text."""
    return strict(text) if parser == "strict" else lenient(text, choices)


def strict(text: str) -> str | None:
    """A letter alone; else a letter, a full stop and a space in front; else exactly one "The answer is X" with one more
    character behind. The letter may be of no choice. None for everything else."""
    if len(text) == 1 and text in LETTERS:
        return text
    if text[1:3] == ". " and text[0] in LETTERS:
        return text[0]
    return stated_letter(text)


def stated_letter(text: str) -> str | None:
    """The letter of exactly one "The answer is X" with one more character behind; None for everything else."""
    letters = SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 else None


def lenient(text: str, choices: tuple[str, ...]) -> str | None:
    """The letter of one of `choices`: the letters that are alone, in front or stated as the answer, in any case and
    however often, if all are the same one; without any letter, a choice that is the whole text or the answer stated."""
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
    """The place of a letter among so many choices; -1 where it has none."""
    return LETTERS[:choices].find(letter) if letter else -1
