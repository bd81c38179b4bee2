"""Conversation templates as a table, and the function that renders a conversation into segments.

A rendered conversation is a list of `Segment`s: runs of text, `<image>` markers and special tokens, each marked as
trained on or not. Token ids and target mask are both made from them (encode.py), so they cannot drift apart.

Every template is rounds of (question, answer):

    header question cue | answer          ...and for each later round:   between question cue | answer

The answer is `lead` + text + `tail`, and a training text ends with `footer`. A prompt ends at a bar. The bar stands
before a space, or after a newline or a special token, where LLaMA's SentencePiece cannot merge across it:
`ASSISTANT:` | ` A red bus.`, never `ASSISTANT: ` | `A red bus.`
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llava_jax.errors import ConfigError, DataError

IMAGE_MARKER = "<image>"
ROLES = ("human", "gpt")


class Segment(NamedTuple):
    """A part of a rendered conversation. `kind` distinguishes the token `</s>` from `</s>` typed by a user."""

    text: str
    is_target: bool = False
    kind: Literal["text", "image", "special"] = "text"


class TurnLayout(NamedTuple):
    """How rounds become segments; see the module docstring."""

    header: tuple[Segment, ...]
    between: tuple[Segment, ...]
    cue: tuple[Segment, ...]
    lead: tuple[Segment, ...]
    tail: tuple[Segment, ...]
    footer: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class Template:
    """One template. `prompt` is the layout at inference if it differs from training."""

    train: TurnLayout
    stop: str
    prompt: TurnLayout | None = None
    text_is_dropped: bool = False  # a question keeps only its image markers, and there is one round


def _text(text: str) -> Segment:
    return Segment(text)


def _target(text: str) -> Segment:
    return Segment(text, is_target=True)


def _special(text: str, is_target: bool = False) -> Segment:
    return Segment(text, is_target, "special")


_CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
SYSTEM_HUMAN = _CURIOUS.format("human")
SYSTEM_USER = _CURIOUS.format("user")
SYSTEM_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
SYSTEM_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
SYSTEM_CHATML = "You are a helpful assistant."


def _vicuna(system: str) -> Template:
    layout = TurnLayout(
        header=(_text(f"{system} USER: "),),
        between=(_text("USER: "),),
        cue=(_text(" ASSISTANT:"),),
        lead=(_target(" "),),
        tail=(_special("</s>", is_target=True),),
    )
    return Template(layout, stop="</s>")


def _llama_2(system: str, between: tuple[Segment, ...]) -> Template:
    layout = TurnLayout(
        header=(_text("[INST] " + (f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else "")),),
        between=(*between, _text("[INST] ")),
        cue=(_text(" [/INST]"),),
        lead=(_target(" "),),
        tail=(_target(" "), _special("</s>", is_target=True)),
    )
    return Template(layout, stop="</s>")


# The original trained v0 on one string and served it with another. Both are kept: old weights expect them.
_V0 = Template(
    train=TurnLayout(
        header=(_text(f"{SYSTEM_HUMAN}\n\n"), _target("###"), _text(" Human: ")),
        between=(_target("###"), _text(" Human: ")),
        cue=(_text("\n"),),
        lead=(_target("### Assistant: "),),
        tail=(_target("\n"),),
        footer=(_target("### "),),
    ),
    prompt=TurnLayout(
        header=(_text(f"{SYSTEM_HUMAN}###Human: "),),
        between=(_text("Human: "),),
        cue=(_text("###Assistant:"),),
        lead=(_target(" "),),
        tail=(_target("###"),),
    ),
    stop="###",
)

_PLAIN = Template(
    train=TurnLayout(header=(), between=(), cue=(), lead=(), tail=(_target("\n"),)), stop="\n", text_is_dropped=True
)

# Byte for byte what the ChatML templates of Qwen2 and SmolLM2 make of the same messages, so that public ChatML models
# see what they were trained on. LLaVA's `chatml_direct` differs: no newline after `<|im_end|>`, another system prompt.
_CHATML = Template(
    train=TurnLayout(
        header=(
            *(_special("<|im_start|>"), _text(f"system\n{SYSTEM_CHATML}"), _special("<|im_end|>"), _text("\n")),
            *(_special("<|im_start|>"), _text("user\n")),
        ),
        between=(_special("<|im_start|>"), _text("user\n")),
        cue=(_special("<|im_end|>"), _text("\n"), _special("<|im_start|>"), _text("assistant\n")),
        lead=(),
        tail=(_special("<|im_end|>", is_target=True), _text("\n")),
    ),
    stop="<|im_end|>",
)

TEMPLATES = {
    "vicuna_v1": _vicuna(SYSTEM_USER),
    "llava_v1": _vicuna(SYSTEM_HUMAN),
    "llava_v0": _V0,
    "plain": _PLAIN,
    "llama_2": _llama_2(SYSTEM_LLAMA_2, between=(_special("<s>"),)),
    "llava_llama_2": _llama_2(SYSTEM_VISION, between=(_special("<s>"),)),
    "mistral_instruct": _llama_2("", between=()),
    "chatml": _CHATML,
}


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
    with `open_answer` they end with "human" and the result is the prompt, up to the open assistant cue.

    - An `<image>` in a question is a marker. A single marker in a turn moves to the front as `<image>\\n` and the turn
      is stripped, as in LLaVA's loader; two or more stay in place, so that "left: <image> right: <image>" keeps its
      meaning. With `images_stay` a single marker stays too. In an answer `<image>` is ordinary text.
    - An empty answer is rendered like any other: `lead` and `tail`, at least the stop, are supervised.
    - `plain` has one round; the question is reduced to its markers, or to nothing without any (a caption or raw text).

        render("mistral_instruct", [("human", "What is it? <image>"), ("gpt", "A bus.")]) ==
            ("[INST] ", text), ("<image>", image), ("\\nWhat is it? [/INST]", text),
            (" A bus. ", text, target), ("</s>", special, target)

    Raises DataError for an empty conversation, an unknown role or roles out of order, text that is not a string, and
    more than one round of `plain`; ConfigError for an unknown template.
    """
    entry = find_template(template)
    layout = entry.prompt if open_answer and entry.prompt else entry.train
    _check_turns(turns, open_answer)
    if entry.text_is_dropped and len(turns) > 2:
        raise DataError(
            f"template {template!r} takes one question and one answer, this conversation has {len(turns)} turns; "
            "use a chat template or split it"
        )
    segments: list[Segment] = []
    for index, (role, text) in enumerate(turns):
        if role == "human":
            segments += layout.between if index else layout.header
            question = _question(text, images_stay)
            segments += [s for s in question if s.kind == "image"] if entry.text_is_dropped else question
            segments += layout.cue
        else:
            segments += (*layout.lead, _target(text), *layout.tail)
    return _merge_text(segments if open_answer else [*segments, *layout.footer])


def _check_turns(turns: Sequence[tuple[str, str]], open_answer: bool) -> None:
    if not turns:
        raise DataError("the conversation is empty; it needs at least one human turn")
    for index, (role, text) in enumerate(turns):
        expected = ROLES[index % 2]
        if role not in ROLES:
            raise DataError(f"turn {index} has the unknown role {role!r}; roles are {' and '.join(ROLES)}")
        if role != expected:
            raise DataError(f"turn {index} is from {role!r}, not {expected!r}; turns alternate and the human begins")
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
    segments = [_text(pieces[0])]
    for piece in pieces[1:]:
        segments += [Segment(IMAGE_MARKER, kind="image"), _text(piece)]
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
