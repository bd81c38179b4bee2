"""Recognises a model's own chat template (Jinja) as one of our conversation templates, by what it renders.

The marker of a template proves nothing: several of Mistral's differ by one space beside `[INST]`, which changes the
tokens. So a probe conversation is rendered by both, and the texts are compared.
"""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from llava_jax.errors import DataError
from llava_jax.text.chat_template_process import RenderedChat, render_chats
from llava_jax.text.encode import IMAGE_ENDS
from llava_jax.text.template_table import SYSTEM, TEMPLATES, Segment, Template, TurnLayout
from llava_jax.text.templates import IMAGE_MARKER, render_with
from llava_jax.text.tokenizer import Tokenizer

WRAPPED = IMAGE_MARKER.join(IMAGE_ENDS)  # an image in a chat template of a model that wraps images
SIZE = 2**20  # characters; published chat templates have up to 20,000
COMPARED = 2000  # characters, to find the nearest template; the time is quadratic

PROMPT = (("human", "The first question."), ("gpt", "The first answer."), ("human", "The second question."))
COMPLETE = (*PROMPT, ("gpt", "The second answer."))
WITH_SYSTEM = (("system", "The system text."), *PROMPT)
PROBES = PROMPT, COMPLETE, WITH_SYSTEM
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

# Hugging Face's LLaVA 1.5 ships a template without the system text and the `</s>` that the model was trained with.
_LLAVA_HF = Template(
    TurnLayout(
        header=(Segment("USER: "),), between=(Segment("USER: "),), cue=(Segment(" ASSISTANT:"),), lead=(Segment(" "),),
        tail=(Segment(" "),), system=(SYSTEM, Segment(" USER: ")),
    ), stop="</s>",
)  # fmt: skip
CANDIDATES = (
    *((name, entry) for name, entry in TEMPLATES.items() if not entry.text_is_dropped),
    ("vicuna_v1", _LLAVA_HF),
)


class Recognition(NamedTuple):
    """What a chat template is. template: the name of ours that renders the same, "" for none; `fault` then says why."""

    template: str
    fault: str = ""
    wraps_images: bool = False  # an image stands between <im_start> and <im_end>
    begins_with_bos: bool = False


class Difference(NamedTuple):
    """Where a template of ours differs from a chat template. similarity: from 0 to 1, of the rendered prompts."""

    similarity: float
    description: str


def default_chat_template(value: Any) -> str:
    """Returns the Jinja text of the key `chat_template`: itself, or `default` of a list of named templates; "" for
    None. Raises DataError for anything else."""
    named = value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        named = {str(item.get("name")): item.get("template") for item in value}
    text = named.get("default") if isinstance(named, dict) else named
    if text is not None and not isinstance(text, str):
        raise DataError(f"it is of type {type(text).__name__}, neither text nor a list of named texts")
    if value and text is None:
        raise DataError(f"it has templates named {', '.join(map(repr, named))}, but none named 'default'")
    return text or ""


def bos_and_eos(tokenizer: Tokenizer) -> tuple[str, str]:
    """Returns the texts of the tokens that begin and end a sequence, "" for one that the tokenizer lacks."""
    names = {id: name for name, id in tokenizer.special.items()}
    return names.get(tokenizer.bos_id, ""), names.get(tokenizer.eos_id, "")


@functools.cache
def recognise(jinja: str, bos: str = "", eos: str = "") -> Recognition:
    """Returns which of our templates renders the same as a chat template. bos, eos: texts of the tokenizer's tokens.

    Compared are a prompt of two rounds, the same conversation completed, and, where both accept a system text, a prompt
    that begins with one. A BOS at the beginning may be missing, because tokenizers add it. Nothing of the chat template
    is executed in this process, see `render_chats`.
    """
    if len(jinja) > SIZE:
        return Recognition("", f"it has {len(jinja):,} characters")
    image = {"messages": [{"role": "user", "content": [{"type": "image"}, *_parts("Look.")]}]}
    requests = [_request(turns, as_parts) for as_parts in (False, True) for turns in PROBES] + [image]
    try:
        *rendered, with_image = render_chats(jinja, requests, {"bos_token": bos, "eos_token": eos, "tools": None})
    except DataError as error:
        return Recognition("", str(error))
    wraps_images = WRAPPED in with_image.text
    # Some accept only text, some only parts; of the others' content they make nothing, or Python's repr of a list.
    text, parts = rendered[: len(PROBES)], rendered[len(PROBES) :]
    chats = parts if _shows(parts[0]) and not _shows(text[0]) else text
    if chats[0].error:
        return Recognition("", f"it cannot be rendered ({chats[0].error})", wraps_images)
    differences = {}
    for name, entry in CANDIDATES:
        for prefix in dict.fromkeys(("", bos)):
            difference = _difference(entry, chats, prefix, bos, eos)
            if difference is None:
                return Recognition(name, "", wraps_images, bool(prefix))
            differences[name] = max(difference, differences.get(name, difference))
    name = max(differences, key=lambda name: differences[name].similarity)
    return Recognition("", f"the nearest is {name}, but {differences[name].description}", wraps_images)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _request(turns: Sequence[tuple[str, str]], as_parts: bool) -> dict[str, Any]:
    messages = [{"role": ROLES[role], "content": _parts(text) if as_parts else text} for role, text in turns]
    return {"messages": messages, "add_generation_prompt": turns[-1][0] == "human"}


def _shows(chat: RenderedChat) -> bool:
    return all(text in chat.text for _, text in PROMPT) and "'type'" not in chat.text


def _difference(entry: Template, chats: Sequence[RenderedChat], prefix: str, bos: str, eos: str) -> Difference | None:
    """Returns where `entry`, after `prefix`, differs from a chat template's renderings of PROBES; None for nowhere."""
    layout = (entry.prompt or entry.train)._replace(footer=())
    entry = dataclasses.replace(entry, train=layout, prompt=None)

    def ours(entry: Template, turns: Sequence[tuple[str, str]]) -> str:
        names = {"<s>": bos, "</s>": eos}
        segments = render_with(entry, turns, open_answer=turns[-1][0] == "human")
        return prefix + "".join(names.get(s.text, s.text) if s.kind == "special" else s.text for s in segments)

    prompt, complete, with_system = chats
    expected = ours(entry, PROMPT)
    similarity = difflib.SequenceMatcher(None, prompt.text[:COMPARED], expected, autojunk=False).ratio()
    if prompt.text != expected:
        return Difference(similarity, _first_difference(prompt.text, expected))
    expected = ours(entry, COMPLETE).rstrip()  # white space or a footer may follow the last stop
    if not complete.error and not complete.text.startswith(expected):
        return Difference(similarity, "after the last answer " + _first_difference(complete.text, expected))
    if not entry.has_system or WITH_SYSTEM[0][1] not in with_system.text:
        return None
    expected = ours(entry, WITH_SYSTEM)
    # Our exports before there was a system role made an answer of a system text.
    as_answer = layout._replace(header=(*layout.lead, Segment(WITH_SYSTEM[0][1]), *layout.tail, *layout.between))
    if with_system.text in (expected, ours(dataclasses.replace(entry, train=as_answer), PROMPT)):
        return None
    return Difference(similarity, "with a system text " + _first_difference(with_system.text, expected))


def _first_difference(theirs: str, ours: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    span = slice(max(start - 12, 0), start + 24)
    return f"the model's has {theirs[span]!r} where it has {ours[span]!r}"
