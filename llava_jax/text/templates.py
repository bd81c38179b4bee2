"""Renders conversations into segments, by a table of conversation templates (template_table.py).

A rendered conversation is a list of `Segment`s: runs of text, `<image>` markers and special tokens, each marked as
trained on or not. Token ids and target mask are both made from them (encode.py), so they cannot drift apart.
"""

import difflib
from collections.abc import Sequence

from llava_jax.errors import ConfigError, DataError
from llava_jax.text.template_table import TEMPLATES, Segment, Template, fill

DEFAULT_TEMPLATE = "vicuna_v1"  # of the original's training, and of models without a chat template
IMAGE_MARKER = "<image>"
ROLES = ("human", "gpt")


def find_template(name: str) -> Template:
    """The template called `name`. Raises ConfigError, with the most similar names, for an unknown one."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    suggestions = difflib.get_close_matches(name, TEMPLATES, n=2) or TEMPLATES
    raise ConfigError(f"no conversation template is called {name!r}; did you mean {' or '.join(suggestions)}?")


def stop_string(template: str) -> str:
    """The text that ends an answer: `</s>`, `###`, `<|im_end|>` or a newline.

    If it is a special token, decoding may hide it: stop on `encode.stop_ids` as well.
    """
    return find_template(template).stop


def render(
    template: str, turns: Sequence[tuple[str, str]], open_answer: bool = False, images_stay: bool = False
) -> list[Segment]:
    """Renders a conversation into segments, without the leading BOS, which the tokenizer adds.

    turns: (role, text), roles alternating "human", "gpt" and starting with "human". For training they end with "gpt";
    with `open_answer` they end with "human" and the result is the prompt, up to the open assistant cue. Before them may
    stand one "system" turn: its text replaces the template's own system text, and is never trained on.

    - An `<image>` in a question is a marker. A single marker in a turn moves to the front as `<image>\\n` and the turn
      is stripped, as in LLaVA's loader; two or more stay in place, so that "left: <image> right: <image>" keeps its
      meaning. With `images_stay` a single marker stays too. Elsewhere `<image>` is ordinary text.
    - An empty answer is rendered like any other: `lead` and `tail`, at least the stop, are supervised.
    - `plain` has one round; the question is reduced to its markers, or to nothing without any (a caption or raw text).

        render("mistral_instruct", [("human", "What is it? <image>"), ("gpt", "A bus.")]) ==
            ("[INST] ", text), ("<image>", image), ("\\nWhat is it? [/INST]", text),
            (" A bus. ", text, target), ("</s>", special, target)

    Raises DataError for an empty conversation, an unknown role or roles out of order, text that is not a string, more
    than one round of `plain`, and a system turn in a template without a system text; ConfigError for an unknown
    template.
    """
    entry = find_template(template)
    _check_turns(turns, open_answer)
    has_system = turns[0][0] == "system"
    if has_system and not entry.has_system:
        raise DataError(
            f"template {template!r} has no system text, but the conversation begins with one; remove the system turn "
            f"or choose a template that has one, e.g. {DEFAULT_TEMPLATE} or chatml"
        )
    if entry.text_is_dropped and len(turns) > 2:
        raise DataError(
            f"template {template!r} takes one question and one answer, this conversation has {len(turns)} turns; "
            "use a chat template or split it"
        )
    return render_with(entry, turns, open_answer, images_stay)


def render_with(
    template: Template, turns: Sequence[tuple[str, str]], open_answer: bool = False, images_stay: bool = False
) -> list[Segment]:
    """As `render`, with a template that need not be in the table, for turns that `render` would accept."""
    layout = template.prompt if open_answer and template.prompt else template.train
    if template.strips:
        turns = [(role, text.strip()) for role, text in turns]
    system, rounds = (turns[0][1], turns[1:]) if turns[0][0] == "system" else (None, turns)
    header = layout.header if system is None or template.system_is_last else fill(layout.system, system)
    last_question = (len(rounds) - 1) // 2 * 2
    segments: list[Segment] = []
    for index, (role, text) in enumerate(rounds):
        if role == "human":
            segments += layout.between if index else header
            if system is not None and template.system_is_last and index == last_question:
                segments.append(Segment(f"{system}\n\n"))
            question = _question(text, images_stay)
            segments += [s for s in question if s.kind == "image"] if template.text_is_dropped else question
            segments += layout.cue
        else:
            segments += (*layout.lead, Segment(text, is_target=True), *layout.tail)
    return _merge_text(segments if open_answer else [*segments, *layout.footer])


def _check_turns(turns: Sequence[tuple[str, str]], open_answer: bool) -> None:
    first = 1 if turns and turns[0][0] == "system" else 0
    if len(turns) == first:
        raise DataError("the conversation is empty; it needs at least one human turn")
    for index, (role, text) in enumerate(turns):
        expected = "system" if index < first else ROLES[(index - first) % 2]
        if role not in (*ROLES, "system"):
            raise DataError(f"turn {index} has the unknown role {role!r}; roles are {' and '.join(ROLES)}")
        if role != expected:
            raise DataError(
                f"turn {index} is from {role!r}, not {expected!r}; turns alternate and the human begins, at most after "
                "one system turn"
            )
        if not isinstance(text, str):
            raise DataError(f"turn {index} holds {type(text).__name__}, not text")
    last = "human" if open_answer else "gpt"
    if turns[-1][0] != last:
        purpose = "a prompt" if open_answer else "a training sample"
        raise DataError(f"the last turn is from {turns[-1][0]!r}; {purpose} ends with {last!r}")


def _question(text: str, images_stay: bool) -> list[Segment]:
    pieces = text.split(IMAGE_MARKER)
    if len(pieces) == 2 and not images_stay:
        pieces = f"{IMAGE_MARKER}\n{''.join(pieces).strip()}".strip().split(IMAGE_MARKER)
    segments = [Segment(pieces[0])]
    for piece in pieces[1:]:
        segments += [Segment(IMAGE_MARKER, kind="image"), Segment(piece)]
    return segments


def _merge_text(segments: Sequence[Segment]) -> list[Segment]:
    """Merges neighbouring text with equal flags into one segment, so that BPE sees it whole; drops empty text."""
    merged: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        if segment.kind == "text" and merged and merged[-1][1:] == segment[1:]:
            merged[-1] = segment._replace(text=merged[-1].text + segment.text)
        else:
            merged.append(segment)
    return merged
