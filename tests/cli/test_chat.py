"""The verb `chat`: prompts, output streams, commands, and errors that do not end a conversation."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from PIL import Image

from llava_jax.api import load as loading
from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.cli import chat as chat_verb
from llava_jax.errors import ConfigError, DataError, TooLong
from tests.fixtures.tiny_models import random_params, uneven

TIMEOUT = 300  # seconds, for a busy machine
CHAT = [sys.executable, "-m", "llava_jax", "chat"]
ROOT = Path(__file__).parents[2]
# Runs a command whose controlling terminal is its standard input, so that Ctrl-C reaches it. If a shell started the
# tests in the background, they ignore SIGINT, and so would their children.
WITH_TERMINAL = (
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
RED = Image.new("RGB", (8, 8), (200, 30, 30))


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a red one.png"
    RED.save(file)
    return file


class FakeModel:
    """Yields the pieces of `answers`, one answer per call, or raises its exceptions; records its calls."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def __call__(self, messages, images):
        self.calls.append((message_lines(messages), len(images)))
        for piece in self.answers.pop(0):
            if not isinstance(piece, str):
                raise piece
            yield piece


def message_lines(messages) -> list[str]:
    """One line per message: * for each image, then the text."""
    lines = []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            lines.append(parts)
        else:
            lines.append("".join("*" if part["type"] == "image" else part["text"] for part in parts))
    return lines


def converse(model, *lines, pictures=(), has_tower=True, is_terminal=True):
    chat_verb.converse(model, lines, pictures, has_tower=has_tower, is_terminal=is_terminal)


def test_each_piece_is_printed_before_the_next_is_generated(capsys):
    printed = []

    def answer(messages, images):
        for piece in ("one", " two", " three"):
            yield piece
            printed.append(capsys.readouterr().out)

    converse(answer, "count", is_terminal=False)
    assert printed == ["one", " two", " three"] and capsys.readouterr().out == "\n"


def test_conversation_keeps_all_earlier_turns():
    model = FakeModel(["a", " b \n"], ["c"])
    converse(model, "first\n", "   \n", "second")
    assert model.calls == [(["first"], 0), (["first", "a b", "second"], 0)]


def test_ctrl_c_stops_an_answer_and_keeps_its_text(capsys):
    model = FakeModel(["a", " b", KeyboardInterrupt()], ["c"])
    converse(model, "first", "second")
    assert model.calls[1] == (["first", "a b", "second"], 0)
    out, err = capsys.readouterr()
    assert (out, err) == ("a b\nc\n", "stopped\n")


def test_ctrl_c_before_any_text_drops_question_keeps_image():
    model = FakeModel([KeyboardInterrupt()], ["c"])
    converse(model, "first", "second", pictures=[RED])
    assert model.calls == [(["*first"], 1), (["*second"], 1)]


def test_ctrl_c_without_terminal_ends_the_program():
    with pytest.raises(KeyboardInterrupt):
        converse(FakeModel(["a", KeyboardInterrupt()], ["c"]), "first", "second", is_terminal=False)


def test_image_belongs_to_the_next_question_only(picture):
    model = FakeModel(["a"], ["b"], ["c"])
    converse(model, "1", f"/image {picture}", f"/image '{picture}'", "2", "3", pictures=[RED])
    assert model.calls[2] == (["*1", "a", "**2", "b", "3"], 3)


def test_bad_image_is_one_line_and_the_conversation_continues(tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    model = FakeModel(["a"])
    odd = (f"/image {'x' * 5000}", "/image ~nobody-of-this-name/a.png", "/image")
    converse(model, f"/image {tmp_path}/none.png", f"/image {tmp_path}/bad.png", *odd, "hello")
    assert model.calls == [(["hello"], 0)]
    out, err = capsys.readouterr()
    assert out == "a\n" and len(err.splitlines()) == 5
    assert "none.png: no such file" in err and "bad.png" in err and "sample" not in err


def test_clear_restores_the_images_of_the_command_line():
    model = FakeModel(["a"], ["b"])
    converse(model, "1", "/clear", "2", pictures=[RED])
    assert model.calls == [(["*1"], 1), (["*2"], 1)]


def test_exit_ends_and_unknown_commands_are_not_questions(capsys):
    model = FakeModel(["a"])
    converse(model, "/help", "/quit", "/etc/passwd is what?", "/exit", "not asked")
    assert model.calls == [(["/etc/passwd is what?"], 0)]
    err = capsys.readouterr().err
    assert all(command in err for command in ("/image FILE", "/clear", "/exit", "unknown command /quit"))


def test_too_long_conversation_suggests_clear(capsys):
    model = FakeModel(["a"], [TooLong("prompt 0 has 99 tokens; the model takes 1 to 63")], ["b"])
    converse(model, "1", "2", "/clear", "3")
    assert model.calls[2] == (["3"], 0)
    out, err = capsys.readouterr()
    assert out == "a\nb\n" and "99 tokens" in err and "start over with /clear" in err.splitlines()[0]


def test_language_model_alone_rejects_images_but_answers(picture, capsys):
    model = FakeModel(["a"])
    converse(model, f"/image {picture}", "hello", has_tower=False)
    assert model.calls == [(["hello"], 0)] and "takes no images" in capsys.readouterr().err


def test_terminal_gets_no_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    converse(FakeModel(["a\x1b]0;title\x07\tb\x9b", "\nc é 👩‍💻"]), "hello")
    assert capsys.readouterr().out == "a]0;title\tb\nc é 👩‍💻\n"


@pytest.fixture
def stub(monkeypatch):
    """Replaces `load` and records the arguments of `load` and `chat`."""
    calls = SimpleNamespace(load=None, chat=None, vision=object())

    def chat(messages, images, **settings):
        calls.chat = (message_lines(messages), len(images), settings)
        return iter(["fine"])

    def load(path, **options):
        calls.load = (str(path), {k: v for k, v in options.items() if v is not None})
        return SimpleNamespace(config=SimpleNamespace(vision=calls.vision), template="vicuna_v1", chat=chat)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO("how are you ?\n"))
    return calls


def test_every_flag_reaches_load_or_chat(stub, picture, capsys):
    flags = "--tower t --template llava_v1 --aspect pad --dtype float32 --allow-pickle --temperature 0.5 --top-p 0.9"
    flags += " --top-k 7 --max-new-tokens 20 --seed 3"
    tyro.cli(chat_verb.chat, args=["model", "--image", str(picture), *flags.split(), "--image", str(picture)])
    options = dict(tower=Path("t"), template="llava_v1", aspect="pad", dtype="float32", allow_pickle=True)
    assert stub.load == ("model", options)
    settings = dict(stream=True, temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=20, seed=3)
    assert stub.chat == (["**how are you ?"], 2, settings)
    assert capsys.readouterr() == ("fine\n", "loading model\n")


def test_tiny_is_the_built_in_model_unless_a_folder_has_this_name(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tyro.cli(chat_verb.chat, args=["tiny"])
    assert stub.load[0] == str(built_in_model())
    Path("tiny").mkdir()
    tyro.cli(chat_verb.chat, args=["tiny"])
    assert stub.load[0] == "tiny"


def test_bad_flags_are_reported_before_loading(stub, tmp_path):
    for flags, fault, kind in (
        (["--image", str(tmp_path / "none.png")], "none.png: no such file", DataError),
        (["--template", "vicuna"], "'vicuna'", ConfigError),
        (["--temperature=-1"], "temperature", ConfigError),
    ):
        with pytest.raises(kind, match=fault):
            tyro.cli(chat_verb.chat, args=[str(tmp_path), *flags])
        assert stub.load is None


def test_image_flag_is_rejected_for_a_language_model_alone(stub, picture):
    stub.vision = None
    with pytest.raises(ConfigError, match="a language model alone; leave out --image"):
        tyro.cli(chat_verb.chat, args=["model", "--image", str(picture)])


def test_chat_module_imports_no_jax():
    code = "import sys, llava_jax.cli.chat; print(sorted({'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# A real model in a subprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA with random weights, which answers up to the token limit."""
    folder = tmp_path_factory.mktemp("model") / "it"
    config = uneven(llm=dict(vocab_size=512, max_positions=8192))
    save_hf(folder, random_params(config), config, open_tokenizer("tiny"), "float32")
    return folder


def test_stdout_contains_only_the_answers(folder, picture):
    command = [*CHAT, str(folder), "--image", str(picture), "--max-new-tokens", "4", "--dtype", "float32"]
    text = "what color is the cross ?\n/image none.png\nis there a circle ?\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    model = loading.load(folder, dtype="float32")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the cross ?"}]}]
    first = model.chat(messages, [picture], max_new_tokens=4)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "is there a circle ?"}]
    second = model.chat(messages, [picture], max_new_tokens=4)
    assert [line.strip() for line in done.stdout.splitlines()] == [first, second]
    assert "none.png: no such file" in done.stderr and "Traceback" not in done.stderr


def test_missing_model_path_is_one_line_and_exits_2(tmp_path):
    done = subprocess.run([*CHAT, str(tmp_path / "gone")], capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.splitlines()[-1] == f"error: {tmp_path / 'gone'} does not exist" and "Traceback" not in done.stderr
    )


def test_terminal_ctrl_c_stops_answer_and_ctrl_d_ends_program(folder):
    terminal_end, process_end = pty.openpty()
    command = [sys.executable, "-c", WITH_TERMINAL, *CHAT, str(folder), "--max-new-tokens=8000", "--dtype=float32"]
    process = subprocess.Popen(
        command, stdin=process_end, stdout=process_end, stderr=process_end, start_new_session=True, cwd=ROOT
    )
    os.close(process_end)
    try:
        until(terminal_end, "> ")
        os.write(terminal_end, b"how are you ?\n")
        until(terminal_end, "how are you ?\r\n")
        until(terminal_end, " ")  # the answer has started
        os.write(terminal_end, b"\x03")
        until(terminal_end, "stopped\r\n")
        until(terminal_end, "> ")
        assert process.poll() is None
        os.write(terminal_end, b"\x04")
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        os.close(terminal_end)


def until(terminal: int, text: str) -> str:
    """Reads from a terminal until `text` appears."""
    printed, end = "", time.monotonic() + TIMEOUT
    while text not in printed:
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {printed!r}"
        printed += os.read(terminal, 1).decode(errors="replace")
    return printed
