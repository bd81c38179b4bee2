"""The table of conversation templates, and the layouts that they are made of. `templates.render` uses them.

Every template is rounds of (question, answer):

    header question cue | answer          ...and for each later round:   between question cue | answer

The answer is `lead` + text + `tail`, and a training text ends with `footer`. A prompt ends at a bar. The bar stands
before a space, or after a newline or a special token, where LLaMA's SentencePiece cannot merge across it:
`ASSISTANT:` | ` A red bus.`, never `ASSISTANT: ` | `A red bus.`

The templates without a LLaVA of their own render, byte for byte, what the chat template published with those models
renders (checked in tests/text/test_chat_template.py).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Segment(NamedTuple):
    """A part of a rendered conversation. `kind` distinguishes the token `</s>` from `</s>` typed by a user."""

    text: str
    is_target: bool = False
    kind: Literal["text", "image", "special", "system"] = "text"  # system: a gap in a layout, never in a conversation


class TurnLayout(NamedTuple):
    """How rounds become segments; see the module docstring."""

    header: tuple[Segment, ...]
    between: tuple[Segment, ...]
    cue: tuple[Segment, ...]
    lead: tuple[Segment, ...]
    tail: tuple[Segment, ...]
    footer: tuple[Segment, ...] = ()
    system: tuple[Segment, ...] = ()  # the header of a conversation with a system text, which fills the gap SYSTEM


@dataclass(frozen=True)
class Template:
    """One template. `prompt` is the layout at inference if it differs from training."""

    train: TurnLayout
    stop: str
    prompt: TurnLayout | None = None
    text_is_dropped: bool = False  # a question keeps only its image markers, and there is one round
    strips: bool = False  # removes white space around all texts, as the chat template published with the model does
    system_is_last: bool = False  # a system text precedes the last question, instead of filling a gap in the header

    @property
    def has_system(self) -> bool:
        """Whether a conversation may begin with a system text."""
        return bool(self.train.system) or self.system_is_last


SYSTEM = Segment("", kind="system")


def fill(layout: tuple[Segment, ...], system: str) -> tuple[Segment, ...]:
    """Returns the segments of a header with the system text in its gap."""
    return tuple(_text(system) if segment == SYSTEM else segment for segment in layout)


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
SYSTEM_QWEN_2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SYSTEM_SMOLLM_2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LLAMA_3_1_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # before any system text


def _vicuna(default: str) -> Template:
    system = (SYSTEM, _text(" USER: "))
    layout = TurnLayout(
        header=fill(system, default),
        between=(_text("USER: "),),
        cue=(_text(" ASSISTANT:"),),
        lead=(_target(" "),),
        tail=(_special("</s>", is_target=True),),
        system=system,
    )
    return Template(layout, stop="</s>")


def _llama_2(default: str, between: tuple[Segment, ...], strips: bool = False) -> Template:
    system = (_text("[INST] <<SYS>>\n"), SYSTEM, _text("\n<</SYS>>\n\n"))
    layout = TurnLayout(
        header=fill(system, default) if default else (_text("[INST] "),),
        between=(*between, _text("[INST] ")),
        cue=(_text(" [/INST]"),),
        lead=(_target(" "),),
        tail=(_target(" "), _special("</s>", is_target=True)),
        system=system,
    )
    return Template(layout, stop="</s>", strips=strips)


def _mistral(mark: str, space: str, system: tuple[Segment, ...] = (), system_is_last: bool = False) -> Template:
    """Mistral's own templates. mark: kind of `[INST]` and `[/INST]`, plain text until v3. They differ by one space."""
    begin, end = (Segment(text, kind=mark) for text in ("[INST]", "[/INST]"))
    layout = TurnLayout(
        header=(begin, _text(" ")),
        between=(begin, _text(" ")),
        cue=(_text(" "), end) if mark == "text" else (end,),
        lead=(_target(space),),
        tail=(_special("</s>", is_target=True),),
        system=system and (*system, begin, _text(" ")),
    )
    return Template(layout, stop="</s>", system_is_last=system_is_last)


def _blocks(
    begin: tuple[Segment, ...], end: tuple[Segment, ...], default: str | None = None, *, before_system: str = "",
    assistant: str = "assistant", footer: tuple[Segment, ...] = (), strips: bool = False,
) -> Template:  # fmt: skip
    """Templates whose messages are all of one form: begin, text, end.

    begin: `{}` in its texts stands for the role. end: begins with the special token that ends an answer. default: the
    system text of a conversation without one; None: it has no system message then.
    """

    def opened(role: str) -> tuple[Segment, ...]:
        return tuple(segment._replace(text=segment.text.format(role)) for segment in begin)

    system = (*opened("system"), _text(before_system), SYSTEM, *end, *opened("user"))
    layout = TurnLayout(
        header=opened("user") if default is None else fill(system, default),
        between=opened("user"),
        cue=(*end, *opened(assistant)),
        lead=(),
        tail=(end[0]._replace(is_target=True), *end[1:]),
        footer=footer,
        system=system,
    )
    return Template(layout, stop=end[0].text, strips=strips)


def _chatml(default: str | None) -> Template:
    # LLaVA's `chatml_direct` differs: no newline after `<|im_end|>`, another system text.
    return _blocks((_special("<|im_start|>"), _text("{}\n")), (_special("<|im_end|>"), _text("\n")), default)


def _llama_3(**options) -> Template:
    begin = (_special("<|start_header_id|>"), _text("{}"), _special("<|end_header_id|>"), _text("\n\n"))
    return _blocks(begin, (_special("<|eot_id|>"),), strips=True, **options)


def _gemma() -> Template:
    user = (_special("<start_of_turn>"), _text("user\n"))
    layout = TurnLayout(
        header=user,
        between=user,
        cue=(_special("<end_of_turn>"), _text("\n"), _special("<start_of_turn>"), _text("model\n")),
        lead=(),
        tail=(_special("<end_of_turn>", is_target=True), _text("\n")),
        system=(*user, SYSTEM, _text("\n\n")),  # of Gemma 3; the templates of Gemma 1 and 2 refuse a system text
    )
    return Template(layout, stop="<end_of_turn>", strips=True)


# The original trained v0 on one string and served it with another. Both are kept: old weights expect them.
_V0_TRAIN = (SYSTEM, _text("\n\n"), _target("###"), _text(" Human: "))
_V0_PROMPT = (SYSTEM, _text("###Human: "))
_V0 = Template(
    train=TurnLayout(
        header=fill(_V0_TRAIN, SYSTEM_HUMAN),
        between=(_target("###"), _text(" Human: ")),
        cue=(_text("\n"),),
        lead=(_target("### Assistant: "),),
        tail=(_target("\n"),),
        footer=(_target("### "),),
        system=_V0_TRAIN,
    ),
    prompt=TurnLayout(
        header=fill(_V0_PROMPT, SYSTEM_HUMAN),
        between=(_text("Human: "),),
        cue=(_text("###Assistant:"),),
        lead=(_target(" "),),
        tail=(_target("###"),),
        system=_V0_PROMPT,
    ),
    stop="###",
)

_PLAIN = Template(
    train=TurnLayout(header=(), between=(), cue=(), lead=(), tail=(_target("\n"),)), stop="\n", text_is_dropped=True
)

TEMPLATES = {
    "vicuna_v1": _vicuna(SYSTEM_USER),
    "llava_v1": _vicuna(SYSTEM_HUMAN),
    "llava_v0": _V0,
    "plain": _PLAIN,
    "llama_2": _llama_2(SYSTEM_LLAMA_2, between=(_special("<s>"),)),
    "llava_llama_2": _llama_2(SYSTEM_VISION, between=(_special("<s>"),)),
    "llama_2_chat": _llama_2("", between=(_special("<s>"),), strips=True),  # as published: no default system text
    "mistral_instruct": _llama_2("", between=()),  # LLaVA's; the next three are Mistral's
    "mistral_v1": _mistral("text", ""),  # 7B Instruct v0.1 and v0.2
    "mistral_v3": _mistral("special", " ", system_is_last=True),  # 7B Instruct v0.3
    "mistral_v7": _mistral(
        "special", " ", (_special("[SYSTEM_PROMPT]"), _text(" "), SYSTEM, _special("[/SYSTEM_PROMPT]"))
    ),
    "chatml": _chatml(SYSTEM_CHATML),  # Qwen 1.5 and 2
    "chatml_bare": _chatml(None),
    "qwen_2_5": _chatml(SYSTEM_QWEN_2_5),
    "smollm_2": _chatml(SYSTEM_SMOLLM_2),
    "llama_3": _llama_3(),
    "llama_3_1": _llama_3(default="", before_system=LLAMA_3_1_DATES),  # 3.2 and 3.3 too
    "gemma": _gemma(),  # 1 to 3
    "phi_3": _blocks((_special("<|{}|>"), _text("\n")), (_special("<|end|>"), _text("\n")), footer=(_special("</s>"),)),
    "phi_4": _blocks((_special("<|im_start|>"), _text("{}"), _special("<|im_sep|>")), (_special("<|im_end|>"),)),
}
