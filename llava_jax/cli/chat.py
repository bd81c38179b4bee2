"""The verb `chat`: a conversation with a model, on a terminal or through pipes.

    python -m llava_jax chat llava-1.5-7b-hf --image taxi.jpg
    python -m llava_jax chat llava-1.5-7b-hf --image taxi.jpg < questions.txt > answers.txt

Standard output has the answers and nothing else; notes and faults go to standard error.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from PIL import Image

from llava_jax.errors import ConfigError, DataError, TooLong, UserError, harmless
from llava_jax.images.preprocess import load_image
from llava_jax.text.templates import find_template

HELP = """\
/image FILE   adds an image to the next question
/clear        starts anew, with the images of the command line
/help         prints this
/exit         ends, as Ctrl-D does; Ctrl-C stops an answer, and ends at the prompt"""

Answer = Callable[[list[dict], list[Image.Image]], Iterator[str]]  # messages and images, as of Loaded.chat -> pieces


def chat(
    path: tyro.conf.Positional[Path],
    *,
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    tower: Path | None = None,
    base: Path | None = None,
    tokenizer: Path | None = None,
    template: str | None = None,
    aspect: Literal["crop", "pad"] | None = None,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    seed: int = 0,
    allow_pickle: bool = False,
) -> None:  # raises UserError for what cannot be loaded or used, SystemExit(130) where Ctrl-C ends it at work
    """Talks to a model. Without a terminal, each line of standard input is a question.

    Args:
        path: A LLaVA (a folder of Hugging Face's or of the original's), or a language model alone (a folder or a GGUF).
        image: An image that belongs to the first question. May be given several times.
        tower: The folder of the CLIP tower, for a LLaVA that lacks its own.
        base: The model that a LoRA folder, a projector or delta weights were made from.
        tokenizer: Where the tokenizer is, if not with the model.
        template: The conversation template. Default: chatml if the model's own chat template is, else vicuna_v1.
        aspect: What becomes of images that are not square. Default: what the model's files say.
        dtype: Of weights and arithmetic.
        temperature: 0 always takes the likeliest token.
        top_p: Draws from the likeliest tokens with this much probability together.
        top_k: Draws from this many of the likeliest tokens; 0 for all.
        max_new_tokens: An answer's length at most.
        seed: The same seed draws the same answers.
        allow_pickle: Reads weights in .bin files too. A pickle can hold any program: only from those you trust.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # no terminal's encoding ends a conversation
    try:
        find_template(template or "vicuna_v1")
        pictures = [_open(file) for file in image]
        from llava_jax.api.load import load
        from llava_jax.inference.engine import Settings  # only now: jax takes seconds to import

        drawn = dict(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, seed=seed)
        Settings((), **drawn)  # says what is out of range before the weights are read
        _note(f"loading {path}")
        model = load(
            path, dtype=dtype, tower=tower, base=base, tokenizer=tokenizer, template=template, aspect=aspect,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        has_tower = model.config.vision is not None
        if pictures and not has_tower:
            raise ConfigError(f"{path} is a language model alone; leave out --image")
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            _note(f"template {model.template}; /help lists the commands")
        answer = lambda messages, images: model.chat(messages, images, stream=True, **drawn)  # noqa: E731
        converse(answer, _lines(), pictures, has_tower=has_tower, is_terminal=is_terminal)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it again at its end


def converse(
    answer: Answer, lines: Iterable[str], pictures: Sequence[Image.Image], *, has_tower: bool, is_terminal: bool
) -> None:
    """Asks `lines` one after the other, and writes the answers, until they end or one is /exit.

    The first question, and the first after /clear, comes with `pictures`. A question that got no answer is not part
    of the conversation; its images wait for the next one. On a terminal KeyboardInterrupt stops an answer; what there
    is of it is part of the conversation.
    """
    messages, images, waiting = [], [], list(pictures)
    for line in lines:
        line = line.strip()
        command, _, rest = line.partition(" ")
        if not line:
            continue
        elif command == "/exit":
            return
        elif command == "/help":
            _note(HELP)
        elif command == "/clear":
            messages, images, waiting = [], [], list(pictures)
            _note(f"a new conversation, with {len(waiting)} image(s)" if waiting else "a new conversation")
        elif command == "/image" and not has_tower:
            _note("this is a language model alone, it takes no images")
        elif command == "/image":
            try:
                waiting.append(_open(Path(os.path.expanduser(rest.strip(" '\"")))))
                _note(f"the next question comes with {len(waiting)} image(s)")
            except DataError as e:
                _note(e)
        elif re.fullmatch(r"/[a-z]+", command):
            _note(f"there is no {command}; /help lists the commands")
        else:
            asked = {"role": "user", "content": [*[{"type": "image"}] * len(waiting), {"type": "text", "text": line}]}
            said = _say(answer, [*messages, asked], [*images, *waiting], is_terminal)
            if said is not None:
                messages += [asked, {"role": "assistant", "content": said}]
                images, waiting = images + waiting, []


def _say(answer: Answer, messages: list[dict], images: list[Image.Image], is_terminal: bool) -> str | None:
    """Writes an answer while it comes -> what was said, None for nothing because of a fault or Ctrl-C."""
    said, fault = "", None
    try:
        for piece in answer(messages, images):
            said += piece
            print(harmless(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        fault = "stopped"
    except TooLong as e:
        fault = f"too long for the model: {e}, or start anew with /clear"
    except UserError as e:
        fault = e
    if said or fault is None:
        print(flush=True)
    if fault is not None:
        _note(fault)
    return said.rstrip() if said or fault is None else None


def _lines() -> Iterator[str]:
    """The lines of standard input, asked for on a terminal until Ctrl-D or Ctrl-C."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  (gives input() its history)
    except ImportError:
        pass
    while True:
        try:
            if sys.stdout.isatty():
                line = input("> ")
            else:
                print("> ", end="", file=sys.stderr, flush=True)
                line = input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        yield line


def _open(file: Path) -> Image.Image:
    """Raises DataError."""
    if not os.path.isfile(file):  # Path's own raises for names too long, and for folders that may not be read
        raise DataError(f"{file}: no such image file")
    return load_image(file, str(file))


def _note(text: object) -> None:
    print(harmless(text), file=sys.stderr, flush=True)
