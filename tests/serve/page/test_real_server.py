"""The program `serve` with the model that ships, from its first line to SIGTERM, and the chat page with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from playwright.sync_api import expect

from llava_jax.serve.examples import SCENES
from tests.fixtures.child_process import TRAINING
from tests.serve.page.chat import Chat

TIMEOUT = 120  # seconds, for a busy machine
EXAMPLES = json.loads((SCENES / "examples.json").read_text(encoding="utf-8"))


def scene(number: int) -> dict:
    """A file of one of the examples."""
    name = f"scene-{number}.png"
    return {"name": name, "mimeType": "image/png", "buffer": (SCENES / name).read_bytes()}


class Program:
    """`serve tiny` in a process of its own."""

    def __init__(self, folder):
        command = [sys.executable, "-m", "llava_jax", "serve", "tiny", "--port=0", "--slots=2"]
        command += [f"--compile-cache={folder}", "--length=256", "--prefix-mib=64"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | TRAINING, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.notes = []
        threading.Thread(target=lambda: self.notes.extend(self.process.stderr), daemon=True).start()
        self.line = self.process.stdout.readline()
        assert self.line.startswith("serving tiny at http://127.0.0.1:"), self.notes
        self.url = self.line.split()[3]

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=TIMEOUT) as response:
            lines = response.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def wait_until_idle(self) -> None:
        end = time.monotonic() + 5
        while self.metric("llava_jax:free_slots") < 2 or self.metric("vllm:num_requests_running"):
            assert time.monotonic() < end, "a slot is left"
            time.sleep(0.01)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    started = Program(tmp_path_factory.mktemp("compile_cache"))
    yield started
    started.process.kill()


@pytest.fixture
def real_chat(page, program):
    opened = Chat(page, program).is_ready()
    page.click("summary")
    page.fill("#temperature", "0")
    yield opened
    opened.close()
    assert opened.log == []


def test_program_reports_its_address_and_answers(program):
    assert program.line.endswith("(2 slots of 256 tokens)\n")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    request = urllib.request.Request(
        f"{program.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        assert json.load(response)["usage"]["completion_tokens"] == 2


def test_examples_are_answered_right(real_chat):
    for example in EXAMPLES:
        real_chat.page.get_by_role("button", name=example["question"], exact=True).click()
        assert real_chat.finished(1) == [example["answer"]]
        real_chat.click("New chat")


def test_second_question_is_about_the_same_image_and_reads_little(real_chat, program):
    chat = real_chat
    chat.attach(scene(1)).attached(1)
    (first,) = chat.ask(EXAMPLES[0]["question"]).finished(1)
    hits = program.metric("vllm:prefix_cache_hits_total")
    assert chat.ask("how many objects are there ?").finished(2) == [first, EXAMPLES[0]["answer"]]
    assert program.metric("vllm:prefix_cache_hits_total") > hits
    chat.click("Regenerate")
    expect(chat.page.locator(".meta:not([hidden])")).to_have_count(2)
    assert chat.finished(2) == [first, EXAMPLES[0]["answer"]]


# Presses Escape at the first text of an answer: it is complete before a driver would do so.
STOP_AT_TEXT = """new MutationObserver((_, observer) => {
  if (!document.querySelector("[data-part=answer]")?.textContent) return;
  observer.disconnect();
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
}).observe(document.body, {childList: true, characterData: true, subtree: true})"""


def test_stop_frees_the_slot(real_chat, program):
    chat, before = real_chat, program.metric("vllm:generation_tokens_total")
    chat.page.evaluate(STOP_AT_TEXT)
    chat.attach(scene(3)).attached(1)
    (text,) = chat.ask("describe the image .").finished(1)  # 41 tokens
    program.wait_until_idle()
    assert text and "stopped by you" in chat.turn(0).locator(".meta").inner_text()
    assert program.metric("vllm:generation_tokens_total") - before < 41


def test_broken_image_and_long_question_are_explained(real_chat):
    chat = real_chat
    # The browser shows the upper part of a truncated PNG; the server refuses it.
    whole = scene(1)
    chat.attach(whole | {"name": "cut.png", "buffer": whole["buffer"][:-500]}).attached(1)
    chat.ask("how many objects are there ?").finished(1)
    assert "the file is truncated" in chat.turn(0).locator("[data-part=error-message]").inner_text()
    assert "Request req-" in chat.turn(0).locator("[data-part=request-id]").inner_text()
    chat.click("Edit")
    chat.click("Remove cut.png")
    chat.ask("z" * 2000).finished(1)
    assert "shorten it" in chat.turn(0).locator("[data-part=error-message]").inner_text()


def test_note_of_the_tiny_model_is_shown(real_chat):
    assert "lower case" in real_chat.page.locator("#note").inner_text()


def test_sigterm_ends_the_program(program):
    start = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(TIMEOUT) == 143 and time.monotonic() - start < 15
    assert program.process.stdout.read() == "" and not any("Traceback" in line for line in program.notes)
