"""The verb `chat`: what is asked, what is written where, and what does not end a conversation."""

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
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.cli import chat as terminal
from llava_jax.errors import ConfigError, DataError, TooLong
from tests.fixtures.tiny_models import random_params, uneven

PATIENCE = 300  # seconds; all but a few are the machine's other work
CHAT = [sys.executable, "-m", "llava_jax", "chat"]
ROOT = Path(__file__).parents[2]
# Runs a command after making the terminal on its standard input the one whose Ctrl-C reaches it. Started by a shell in
# the background, the tests ignore that signal, and their children would too.
OWNED = (
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
RED = Image.new("RGB", (8, 8), (200, 30, 30))


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a red one.png"
    RED.save(file)
    return file


class Model:
    """Says `answers` one by one, each a list of pieces or exceptions; remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, messages, images):
        self.asked.append((words(messages), len(images)))
        for piece in self.answers.pop(0):
            if not isinstance(piece, str):
                raise piece
            yield piece


def words(messages) -> list[str]:
    """One line a message: its images as *, then its text."""
    found = []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            found.append(parts)
        else:
            found.append("".join("*" if part["type"] == "image" else part["text"] for part in parts))
    return found


def talk(model, *lines, pictures=(), has_tower=True, is_terminal=True):
    terminal.converse(model, lines, pictures, has_tower=has_tower, is_terminal=is_terminal)


def test_a_piece_is_written_before_the_next_is_there(capsys):
    seen = []

    def answer(messages, images):
        for piece in ("one", " two", " three"):
            yield piece
            seen.append(capsys.readouterr().out)

    talk(answer, "count", is_terminal=False)
    assert seen == ["one", " two", " three"] and capsys.readouterr().out == "\n"


def test_a_conversation_goes_on_with_all_that_was_said():
    model = Model(["a", " b \n"], ["c"])
    talk(model, "first\n", "   \n", "second")
    assert model.asked == [(["first"], 0), (["first", "a b", "second"], 0)]


def test_ctrl_c_stops_the_answer_and_what_was_said_stays(capsys):
    model = Model(["a", " b", KeyboardInterrupt()], ["c"])
    talk(model, "first", "second")
    assert model.asked[1] == (["first", "a b", "second"], 0)
    out, err = capsys.readouterr()
    assert (out, err) == ("a b\nc\n", "stopped\n")


def test_ctrl_c_before_the_first_word_takes_the_question_back_and_keeps_its_image():
    model = Model([KeyboardInterrupt()], ["c"])
    talk(model, "first", "second", pictures=[RED])
    assert model.asked == [(["*first"], 1), (["*second"], 1)]


def test_ctrl_c_in_a_pipe_ends_all_of_it():
    with pytest.raises(KeyboardInterrupt):
        talk(Model(["a", KeyboardInterrupt()], ["c"]), "first", "second", is_terminal=False)


def test_an_image_comes_with_the_next_question_only(picture):
    model = Model(["a"], ["b"], ["c"])
    talk(model, "1", f"/image {picture}", f"/image '{picture}'", "2", "3", pictures=[RED])
    assert model.asked[2] == (["*1", "a", "**2", "b", "3"], 3)


def test_a_bad_image_is_said_in_one_line_and_the_conversation_goes_on(tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    model = Model(["a"])
    odd = (f"/image {'x' * 5000}", "/image ~nobody-of-this-name/a.png", "/image")
    talk(model, f"/image {tmp_path}/none.png", f"/image {tmp_path}/bad.png", *odd, "hello")
    assert model.asked == [(["hello"], 0)]
    out, err = capsys.readouterr()
    assert out == "a\n" and len(err.splitlines()) == 5
    assert "none.png: no such image file" in err and "bad.png" in err


def test_clear_starts_anew_with_the_images_of_the_command_line():
    model = Model(["a"], ["b"])
    talk(model, "1", "/clear", "2", pictures=[RED])
    assert model.asked == [(["*1"], 1), (["*2"], 1)]


def test_exit_ends_and_other_commands_are_no_questions(capsys):
    model = Model(["a"])
    talk(model, "/help", "/quit", "/etc/passwd is what?", "/exit", "not asked")
    assert model.asked == [(["/etc/passwd is what?"], 0)]
    err = capsys.readouterr().err
    assert all(command in err for command in ("/image FILE", "/clear", "/exit", "there is no /quit"))


def test_a_conversation_too_long_says_how_to_go_on(capsys):
    model = Model(["a"], [TooLong("prompt 0 has 99 tokens; the model takes 1 to 63")], ["b"])
    talk(model, "1", "2", "/clear", "3")
    assert model.asked[2] == (["3"], 0)
    out, err = capsys.readouterr()
    assert out == "a\nb\n" and "99 tokens" in err and "start anew with /clear" in err.splitlines()[0]


def test_a_language_model_alone_refuses_images_and_answers(picture, capsys):
    model = Model(["a"])
    talk(model, f"/image {picture}", "hello", has_tower=False)
    assert model.asked == [(["hello"], 0)] and "takes no images" in capsys.readouterr().err


def test_a_terminal_gets_no_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    talk(Model(["a\x1b]0;title\x07\tb\x9b", "\nc é 👩‍💻"]), "hello")
    assert capsys.readouterr().out == "a]0;title\tb\nc é 👩‍💻\n"


@pytest.fixture
def stub(monkeypatch):
    """Instead of a loaded model: what `load` and `chat` were called with."""
    calls = SimpleNamespace(load=None, chat=None, vision=object())

    def chat(messages, images, **settings):
        calls.chat = (words(messages), len(images), settings)
        return iter(["fine"])

    def load(path, **options):
        calls.load = (str(path), {k: v for k, v in options.items() if v is not None})
        return SimpleNamespace(config=SimpleNamespace(vision=calls.vision), template="vicuna_v1", chat=chat)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO("how are you ?\n"))
    return calls


def test_every_flag_arrives(stub, picture, capsys):
    flags = "--tower t --template llava_v1 --aspect pad --dtype float32 --allow-pickle --temperature 0.5 --top-p 0.9"
    flags += " --top-k 7 --max-new-tokens 20 --seed 3"
    tyro.cli(terminal.chat, args=["model", "--image", str(picture), *flags.split(), "--image", str(picture)])
    options = dict(tower=Path("t"), template="llava_v1", aspect="pad", dtype="float32", allow_pickle=True)
    assert stub.load == ("model", options)
    settings = dict(stream=True, temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=20, seed=3)
    assert stub.chat == (["**how are you ?"], 2, settings)
    assert capsys.readouterr() == ("fine\n", "loading model\n")


def test_what_is_wrong_with_the_flags_is_said_before_anything_is_loaded(stub, tmp_path):
    for flags, fault, kind in (
        (["--image", str(tmp_path / "none.png")], "none.png: no such image file", DataError),
        (["--template", "vicuna"], "'vicuna'", ConfigError),
        (["--temperature=-1"], "temperature", ConfigError),
    ):
        with pytest.raises(kind, match=fault):
            tyro.cli(terminal.chat, args=[str(tmp_path), *flags])
        assert stub.load is None


def test_images_for_a_language_model_alone_are_refused(stub, picture):
    stub.vision = None
    with pytest.raises(ConfigError, match="a language model alone; leave out --image"):
        tyro.cli(terminal.chat, args=["model", "--image", str(picture)])


def test_help_needs_no_jax():
    code = "import sys, llava_jax.cli.chat; print(sorted({'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# A real model in a process of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA that talks nonsense for as long as it may."""
    folder = tmp_path_factory.mktemp("model") / "it"
    config = uneven(llm=dict(vocab_size=512, max_positions=8192))
    save_hf(folder, random_params(config), config, open_tokenizer("tiny"), "float32")
    return folder


def test_a_pipe_gets_the_answers_alone(folder, picture):
    command = [*CHAT, str(folder), "--image", str(picture), "--max-new-tokens", "4", "--dtype", "float32"]
    text = "what color is the cross ?\n/image none.png\nis there a circle ?\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    model = loading.load(folder, dtype="float32")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the cross ?"}]}]
    first = model.chat(messages, [picture], max_new_tokens=4)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "is there a circle ?"}]
    second = model.chat(messages, [picture], max_new_tokens=4)
    assert [line.strip() for line in done.stdout.splitlines()] == [first, second]
    assert "none.png: no such image file" in done.stderr and "Traceback" not in done.stderr


def test_a_path_that_is_no_model_ends_with_one_line(tmp_path):
    done = subprocess.run([*CHAT, str(tmp_path / "gone")], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.splitlines()[-1] == f"error: {tmp_path / 'gone'} does not exist" and "Traceback" not in done.stderr
    )


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_the_program(folder):
    main, side = pty.openpty()
    command = [sys.executable, "-c", OWNED, *CHAT, str(folder), "--max-new-tokens=8000", "--dtype=float32"]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True, cwd=ROOT)
    os.close(side)
    try:
        until(main, "> ")
        os.write(main, b"how are you ?\n")
        until(main, "how are you ?\r\n")
        until(main, " ")  # the answer has begun
        os.write(main, b"\x03")
        until(main, "stopped\r\n")
        until(main, "> ")
        assert process.poll() is None
        os.write(main, b"\x04")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        os.close(main)


def until(terminal: int, text: str) -> str:
    """Reads from a terminal until `text` comes."""
    seen, end = "", time.monotonic() + PATIENCE
    while text not in seen:
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {seen!r}"
        seen += os.read(terminal, 1).decode(errors="replace")
    return seen
