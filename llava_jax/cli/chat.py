"""python -m llava_jax chat MODEL: a conversation with a model, or with a server, on a terminal or through pipes.

    python -m llava_jax chat llava-1.5-7b-hf --image taxi.jpg
    python -m llava_jax chat llava-1.5-7b-hf --image taxi.jpg < questions.txt > answers.txt
    python -m llava_jax chat --server http://127.0.0.1:8000

Standard output contains only the answers. Notes and errors go to standard error.
"""

import base64
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from llava_jax.cli.flags import Flat, LoadFlags, SamplingFlags, read_key
from llava_jax.errors import ConfigError, DataError, TooLong, UserError, harmless
from llava_jax.images.faults import CHAT_HINT
from llava_jax.images.preprocess import load_image
from llava_jax.llm_client.chat_server import ChatServer, RemoteText
from llava_jax.output.console import log, print_output
from llava_jax.output.interrupts import exit_code_of, raise_interrupt, stop_signals
from llava_jax.text.templates import find_template

HELP = """\
/image FILE   adds an image to the next question
/clear        starts over, with the images of the command line
/help         prints this list
/exit         exits, like Ctrl-D; Ctrl-C stops an answer, or exits at the prompt"""

log_note = partial(log, to_stderr=True)
# (messages, images) -> pieces, as LlavaModel.chat; where they have an attribute `tokens`, it is their number at the end
Answer = Callable[[list[dict], list[Image.Image]], Iterable[str]]


def chat(
    path: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = None,
    *,
    server: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None,
    api_key_file: Path | None = None,
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    loading: Flat[LoadFlags],
    sampling: Flat[SamplingFlags],
) -> None:  # raises UserError for bad flags or a bad model
    """Chats with a model. Without a terminal, each line of standard input is a question.

    Args:
        path: A LLaVA (a Hugging Face or original folder, or a run's workdir), or a language model (a folder or GGUF).
            `tiny`, if no file has this name: the tiny LLaVA that ships with the package.
        server: Chats with a running server of `serve`, or of OpenAI's chat API, instead of a MODEL.
        api_key_file: A file with the server's API key.
        image: An image for the first question.
    """
    find_template(loading.template or "vicuna_v1")
    if (path is None) == (server is None):
        raise ConfigError("pass a MODEL, or --server URL")
    if api_key_file and server is None:
        raise ConfigError("--api-key-file needs --server")
    images = [_open_image(file) for file in image]
    if server is None:
        answer, has_tower = _load_model(path, loading, sampling)
    else:
        answer, has_tower = _connect(server, read_key(api_key_file) if api_key_file else None, sampling)
    if images and not has_tower:
        raise ConfigError(f"{path or server} is a language model alone; leave out --image")
    is_terminal = sys.stdin.isatty()
    converse(answer, _input_lines(), images, has_tower=has_tower, is_terminal=is_terminal, shows_speed=loading.verbose)


def _load_model(path: Path, loading: LoadFlags, sampling: SamplingFlags) -> tuple[Answer, bool]:
    """Loads a model -> (its answers, whether it takes images)."""
    from llava_jax.api.load import load
    from llava_jax.checkpoint.built_in import NOTE, built_in_model, model_location
    from llava_jax.inference.engine import GenerationConfig  # imports jax, which takes seconds

    GenerationConfig((), **sampling.options())  # raises for a value out of range, before loading
    path = model_location(path)
    log_note(f"loading {path}")
    model = load(path, **loading.options())
    if sys.stdin.isatty():
        log_note(f"template {model.template}; /help lists the commands")
        if path == built_in_model():
            log_note(NOTE)
    return partial(model.chat, stream=True, **sampling.options()), model.config.vision is not None


def _connect(url: str, key: str | None, sampling: SamplingFlags) -> tuple[Answer, bool]:
    """Finds out what a server serves -> (its answers, whether it takes images)."""
    server = ChatServer(url, key)
    name, takes_images = server.model()
    log_note(f"{harmless(name)} at {url}" + ("; /help lists the commands" if sys.stdin.isatty() else ""))
    fields = sampling.options()
    fields["max_tokens"] = fields.pop("max_new_tokens")
    if not fields["top_k"]:
        del fields["top_k"]  # OpenAI's own servers do not know it

    def answer(messages: list[dict], images: list[Image.Image]) -> RemoteText:
        rest = iter(images)
        return server.stream([_with_images(message, rest) for message in messages], model=name, **fields)

    return answer, takes_images


def _with_images(message: dict, images: Iterator[Image.Image]) -> dict:
    """The message with the next of `images` as data URI in each of its image parts."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for part in message["content"]:
        if part["type"] == "image":
            file = io.BytesIO()
            next(images).save(file, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            part = {"type": "image_url", "image_url": {"url": url}}
        parts.append(part)
    return message | {"content": parts}


def converse(
    answer: Answer, lines: Iterable[str], pictures: Sequence[Image.Image], *, has_tower: bool, is_terminal: bool,
    shows_speed: bool = False,
) -> None:  # fmt: skip
    """Answers the questions and commands in `lines` until they end or one is /exit.

    The first question, and the first one after /clear, comes with `pictures`. A question without an answer is dropped
    from the conversation, and its images go to the next one. On a terminal, Ctrl-C stops an answer, and its text so far
    stays in the conversation; otherwise KeyboardInterrupt propagates, as it does for other stop signals. shows_speed:
    logs the tokens per second of each answer.
    """
    messages, images, pending = [], [], list(pictures)
    for line in lines:
        line = line.strip()
        command, _, rest = line.partition(" ")
        if not line:
            continue
        elif command == "/exit":
            return
        elif command == "/help":
            log_note(HELP)
        elif command == "/clear":
            messages, images, pending = [], [], list(pictures)
            log_note(f"a new conversation, with {len(pending)} image(s)" if pending else "a new conversation")
        elif command == "/image" and not has_tower:
            log_note("this is a language model alone; it takes no images")
        elif command == "/image":
            try:
                pending.append(_open_image(Path(os.path.expanduser(rest.strip(" '\"")))))
                log_note(f"the next question comes with {len(pending)} image(s)")
            except DataError as e:
                log_note(e)
        elif re.fullmatch(r"/[a-z]+", command):
            log_note(f"unknown command {command}; /help lists the commands")
        else:
            content = [*[{"type": "image"}] * len(pending), {"type": "text", "text": line}]
            question = {"role": "user", "content": content}
            reply = _write_answer(answer, [*messages, question], [*images, *pending], is_terminal, shows_speed)
            if reply is not None:
                messages += [question, {"role": "assistant", "content": reply}]
                images, pending = images + pending, []


def _write_answer(
    answer: Answer, messages: list[dict], images: list[Image.Image], is_terminal: bool, shows_speed: bool
) -> str | None:  # fmt: skip
    """Prints an answer as it is generated. Returns its text; None if an error or Ctrl-C came before any text."""
    text, message, start = "", None, time.monotonic()
    try:
        with stop_signals(raise_interrupt):  # a context for each answer: Ctrl-C may stop many, one after another
            pieces = answer(messages, images)
            for piece in pieces:
                text += piece
                print_output(harmless(piece) if sys.stdout.isatty() else piece)
    except KeyboardInterrupt as e:
        if not is_terminal or exit_code_of(e) != 130:
            raise
        message = "stopped"
    except TooLong as e:
        message = f"too long for the model: {e}, or start over with /clear"
    except UserError as e:
        message = e
    if text or message is None:
        print_output("\n")
    if message is not None:
        log_note(message)
    elif shows_speed and (tokens := getattr(pieces, "tokens", 0)):
        seconds = time.monotonic() - start
        log_note(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s")
    return text.rstrip() if text or message is None else None


def _input_lines() -> Iterator[str]:
    """The lines of standard input; on a terminal with a prompt, until Ctrl-D. Ctrl-C there raises KeyboardInterrupt."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  (adds history to input())
    except ImportError:
        pass
    while True:
        try:
            if sys.stdout.isatty():
                line = input("> ")
            else:
                print("> ", end="", file=sys.stderr, flush=True)
                line = input()
        except (EOFError, OSError):  # OSError: the terminal is gone
            log_note("")
            return
        except KeyboardInterrupt:
            log_note("")
            raise
        yield line


def _open_image(file: Path) -> Image.Image:
    """Raises DataError."""
    return load_image(file, str(file), hint=CHAT_HINT)
