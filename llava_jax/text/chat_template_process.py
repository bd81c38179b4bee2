"""Renders a model's chat template (Jinja) in a child process: it is a program of others, and may be hostile.

The child has limits of CPU time, memory, files and output (see chat_template_program.py), none of this process's
environment, and is killed when it takes too long.
"""

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava_jax.errors import DataError

PROGRAM = Path(__file__).with_name("chat_template_program.py")
LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # a Python may need them to start
SECONDS = 20.0  # on an idle machine the limit of CPU time comes first; a busy one must not change what is recognised
OUTPUT = 8 * 2**20  # bytes that are read; the program writes less


class RenderedChat(NamedTuple):
    """What a chat template makes of a conversation: a text, or an error."""

    text: str
    error: str


def render_chats(
    template: str, conversations: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> list[RenderedChat]:
    """Renders conversations in one child process.

    conversations: the variables of each, `messages` and `add_generation_prompt`. variables: those of all, such as
    `bos_token`. Raises DataError that says why the template cannot be rendered at all: it runs too long, needs too much
    memory, or ends its process.
    """
    request = json.dumps({"template": template, "conversations": conversations, "variables": variables}).encode()
    folders = {str(Path(importlib.util.find_spec(name).origin).parents[1]) for name in ("jinja2", "markupsafe")}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM), *sorted(folders)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={k: os.environ[k] for k in LIBRARY_PATHS if k in os.environ}, bufsize=0,
    )  # fmt: skip
    try:
        process.stdout.read(1)  # starting is not limited either
        try:
            process.stdin.write(request)
            process.stdin.close()
        except BrokenPipeError:
            pass  # the exit status says more
        output = _read(process.stdout, time.monotonic() + SECONDS)
    finally:
        process.kill()
        status = process.wait()
        process.stdout.close()
    try:
        return [RenderedChat(text, error) for text, error in json.loads(output)]
    except ValueError:
        raise DataError(f"it runs too long or needs too much memory (its process ended with {status})") from None


def _read(pipe, deadline: float) -> bytes:
    """Reads to the end, at most OUTPUT bytes, at most until `deadline`."""
    output = b""
    while len(output) < OUTPUT:
        if not select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            break
        if not (piece := os.read(pipe.fileno(), 2**16)):
            break
        output += piece
    return output
