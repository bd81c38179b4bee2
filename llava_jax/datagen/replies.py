r"""Parses the replies of a teacher.

The grammar of conversation and reasoning, as published: blocks that are separated by a line `===`, each a line
`Question:` or `Answer:` and a text; question first, answer last, alternating; texts may contain empty lines.

Accepted as well, because the texts are the same:
- three or more `=` as separator, empty blocks, a separator before the first and after the last block;
- no separator before a line that begins with a label;
- text on the line of its label; a label in bold or as a heading, with a number ("**Question 2:** ..."), in any case;
- a code fence around the whole reply, a first line that introduces it ("Here is the conversation:"), Windows line ends;
- in a reply that was cut at the token limit, the complete pairs of a conversation before the cut;
- further pairs of a reasoning reply, of which the first is used.

A description (detail) is the whole reply, without a fence around it or "Answer:" before it. Everything else is
rejected with one of REASONS: nothing is guessed or repaired.
"""

import re

from llava_jax.text.templates import IMAGE_MARKER

REASONS = (
    "refused",
    "empty reply",
    "cut at the token limit",
    "no question",
    "text outside of questions and answers",
    "begins with an answer",
    "ends with a question",
    "two questions in a row",
    "two answers in a row",
    "empty question",
    "empty answer",
    "questions in a description",
    "contains <image>",
    "contains a lone surrogate",
)
SEPARATOR = re.compile(r"\s*={3,}\s*")
LABEL = re.compile(r"[ \t#>*_]*(question|answer)[ \t]*\d*[ \t*_]*[:\uff1a][ \t*_]*", re.IGNORECASE)
FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
# A reply that begins so is about the request and not about the image.
REFUSAL = re.compile(
    r"(i['\u2019]?m (really |very )?sorry|i am (really |very )?sorry|sorry, (but )?i|i apologi[sz]e|"
    r"i (can ?not|can['\u2019]t|am unable to|['\u2019]m unable to|won['\u2019]t) (assist|help|provide|create|generate|"
    r"fulfill|comply|see|view|describe)|i['\u2019]m unable to|unfortunately, i|as an ai\b)",
    re.IGNORECASE,
)


def parse_reply(kind: str, text: str, finish: str = "stop") -> tuple[list[tuple[str, str]], str | None]:
    """((question, answer) pairs, None), or ([], one of REASONS). The question of a description is "".

    kind: conversation, detail or reasoning. finish: the server's finish reason; `length` means that the text is cut.
    """
    text = text.replace("\r\n", "\n").strip()
    if fenced := FENCE.fullmatch(text):
        text = fenced[1].strip()
    if reason := _unusable(text):
        return [], reason
    if kind == "detail":
        return _parse_description(text, finish == "length")
    blocks, reason = _blocks(text)
    if reason is None and finish == "length":
        blocks = _complete_blocks(blocks) if kind == "conversation" else []
        reason = None if blocks else "cut at the token limit"
    reason = reason or _fault_of_order(blocks)
    if reason:
        return [], reason
    pairs = [(blocks[i][1], blocks[i + 1][1]) for i in range(0, len(blocks), 2)]
    return (pairs[:1] if kind == "reasoning" else pairs), None


def _unusable(text: str) -> str | None:
    if not text:
        return "empty reply"
    if REFUSAL.match(text):
        return "refused"
    if IMAGE_MARKER in text:  # would stand for another image
        return "contains <image>"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "contains a lone surrogate"
    return None


def _parse_description(text: str, is_cut: bool) -> tuple[list[tuple[str, str]], str | None]:
    if (label := LABEL.match(text)) and label[1].lower() == "answer":
        text = text[label.end() :].strip()
    if is_cut:
        return [], "cut at the token limit"
    if any(LABEL.match(line) or SEPARATOR.fullmatch(line) for line in text.split("\n")):
        return [], "questions in a description"
    return ([("", text)], None) if text else ([], "empty answer")


def _blocks(text: str) -> tuple[list[tuple[str, str]], str | None]:
    """[("question" or "answer", text), ...], or [] and what is wrong."""
    lines = text.split("\n")
    if not any(map(LABEL.match, lines)):
        return [], "no question"
    blocks: list[tuple[str, list[str]]] = []
    is_open = is_introduced = False
    for line in lines:
        if SEPARATOR.fullmatch(line):
            is_open = False
        elif label := LABEL.match(line):
            rest = line[label.end() :]
            if rest.count("**") % 2:  # bold around label and text
                rest = rest.rstrip().removesuffix("**")
            blocks.append((label[1].lower(), [rest]))
            is_open = True
        elif is_open:
            blocks[-1][1].append(line)
        elif line.strip():
            if blocks or is_introduced or not line.rstrip().endswith(":"):
                return [], "text outside of questions and answers"
            is_introduced = True
    return [(label, "\n".join(lines).strip()) for label, lines in blocks], None


def _complete_blocks(blocks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The blocks of a cut reply without the last, which is incomplete, and without a question whose answer is lost."""
    blocks = blocks[:-1]
    return blocks[:-1] if blocks and blocks[-1][0] == "question" else blocks


def _fault_of_order(blocks: list[tuple[str, str]]) -> str | None:
    labels = [label for label, _ in blocks]
    if labels[0] == "answer":
        return "begins with an answer"
    for before, after in zip(labels, labels[1:], strict=False):
        if before == after:
            return f"two {before}s in a row"
    if labels[-1] == "question":
        return "ends with a question"
    return next((f"empty {label}" for label, text in blocks if not text), None)
