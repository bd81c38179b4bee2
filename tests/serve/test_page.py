"""The chat page in Chromium, against a server with scripted answers."""

import base64
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.serve.page_server import PAGE, PageServer, scene

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
XSS = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TIMEOUT = 10_000  # milliseconds


def png(name: str, index: int = 0) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": scene(index)}


def data_uri(index: int) -> str:
    return "data:image/png;base64," + base64.b64encode(scene(index)).decode()


@pytest.fixture(scope="module")
def browser():
    # At most for this module: an open Playwright has an event loop running, where asyncio.run of other tests fails.
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def server():
    with PageServer() as page_server:
        yield page_server


class Chat:
    """The page under test, in a context of its own. `log`: console errors and requests to other hosts."""

    def __init__(self, browser, server: PageServer, **options):
        self.server, self.log = server, []
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.log.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.log.append(str(error)))
        self.page.on("request", self.note_request)
        self.page.goto(server.url)

    def note_request(self, request):
        if not request.url.startswith((self.server.url + "/", "data:")):
            self.log.append(request.url)

    def is_ready(self):
        playwright.expect(self.page.locator(".example img")).to_have_count(4)
        return self

    def attach(self, *files: dict):
        self.page.set_input_files("#files", list(files))
        return self

    def attached(self, count: int):
        playwright.expect(self.page.locator("#attached li")).to_have_count(count)

    def ask(self, text: str):
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        return self

    def turn(self, index: int):
        return self.page.locator(".turn").nth(index)

    def finished(self, count: int) -> list[str]:
        """Waits until `count` answers are there and none is running. Returns the texts of all answers."""
        playwright.expect(self.page.locator(".turn")).to_have_count(count)
        playwright.expect(self.page.locator(".turn.running")).to_have_count(0)
        return self.page.locator("[data-part=answer]").all_text_contents()

    def click(self, name: str, within=None, **options):
        (within or self.page).get_by_role("button", name=name, **options).click()

    def notice(self, text: str | re.Pattern):
        playwright.expect(self.page.locator("#notice")).to_have_text(text)


@pytest.fixture
def chat(browser, server):
    opened = Chat(browser, server).is_ready()
    yield opened
    expected = [text for text in opened.log if not text.startswith("Failed to load resource: the server responded")]
    opened.context.close()
    assert expected == []


def test_an_answer_about_an_image_is_streamed(chat, server):
    server.delay = 0.15
    server.pieces = ["A red ", "circle", "."]
    chat.attach(png("a.png")).attached(1)
    chat.ask("What is there?")
    playwright.expect(chat.turn(0).locator("[data-part=answer]")).to_have_text("A red circle", timeout=TIMEOUT)
    assert "running" in chat.turn(0).get_attribute("class"), "the text came only when the answer was complete"
    assert chat.finished(1) == ["A red circle."]
    (body,) = server.requests
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_uri(0)}},
                {"type": "text", "text": "What is there?"},
            ],
        }
    ]
    assert (body["model"], body["stream"], body["stream_options"]) == ("tiny", True, {"include_usage": True})
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.2, 0.7, 512)
    metadata = chat.turn(0).locator(".meta li").all_text_contents()
    assert metadata[:2] == ["tiny, step 1,200", "3 tokens"] and metadata[-1] == f"seed {body['seed']}"
    speed = float(re.fullmatch(r"([\d.]+) tokens/s", metadata[2])[1])
    assert 2 < speed <= 7.5 and metadata[4] == "finish reason: stop"  # 2 tokens in 0.3 s or more
    assert chat.page.locator("#attached li").count() == 0 and chat.page.input_value("#question") == ""


def test_a_second_question_sends_the_whole_conversation(chat, server):
    chat.attach(png("a.png", 1), png("b.png", 2)).attached(2)
    chat.click("Remove a.png")
    chat.attach(png("c.png", 3)).attached(2)
    chat.ask("Compare.").finished(1)
    server.finish = "length"
    chat.ask("And now?").finished(2)
    first, second = server.requests
    images = [part["image_url"]["url"] for part in first["messages"][0]["content"] if part["type"] == "image_url"]
    assert images == [data_uri(2), data_uri(3)]
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": "And now?"},
    ]
    assert chat.turn(0).get_by_role("img").count() == 2
    assert "cut at the token limit" in chat.turn(1).locator(".meta .cut").inner_text()


def test_stop_closes_the_request_and_keeps_the_text(chat, server):
    server.delay, server.pieces = 0.05, [f"{n} " for n in range(1000)]
    chat.ask("Count.")
    playwright.expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("0 1")
    chat.click("Stop")
    (text,) = chat.finished(1)
    assert server.disconnected.wait(5)
    assert text.startswith("0 1 ") and "stopped by you" in chat.turn(0).locator(".meta").inner_text()
    server.delay, server.pieces = 0, ["Done."]
    assert chat.ask("And?").finished(2) == [text, "Done."]
    assert server.requests[-1]["messages"][1] == {"role": "assistant", "content": text}


def test_regenerate_replaces_the_last_answer(chat, server):
    chat.ask("One?").finished(1)
    chat.ask("Two?").finished(2)
    assert not chat.turn(0).get_by_role("button", name="Regenerate").is_visible()
    server.pieces = ["Other."]
    chat.click("Regenerate")
    playwright.expect(chat.turn(1).locator("[data-part=answer]")).to_have_text("Other.")
    assert chat.finished(2) == ["A red circle.", "Other."]
    _, first, again = server.requests
    assert again["messages"] == first["messages"] and again["seed"] != first["seed"]


def test_an_edited_question_drops_what_follows(chat, server):
    chat.attach(png("a.png", 1)).attached(1)
    chat.ask("One?").finished(1)
    chat.ask("Two?").finished(2)
    chat.page.fill("#question", "a draft")
    chat.click("Edit", chat.turn(0))
    assert chat.page.input_value("#question") == "One?" and chat.page.locator(".turn.dropped").count() == 2
    chat.attached(1)
    chat.page.keyboard.press("Escape")
    assert chat.page.input_value("#question") == "a draft" and chat.page.locator(".turn.dropped").count() == 0
    chat.click("Edit", chat.turn(0))
    chat.ask("Three?").finished(1)
    (message,) = server.requests[-1]["messages"]
    assert [part.get("text") or part["image_url"]["url"] for part in message["content"]] == [data_uri(1), "Three?"]
    chat.click("New chat")
    assert chat.page.locator(".turn").count() == 0 and chat.page.locator("#start").is_visible()
    chat.ask("Four?").finished(1)
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Four?"}]


def test_a_new_chat_during_an_answer_stops_it(chat, server):
    server.delay, server.pieces = 0.05, ["word "] * 1000
    chat.ask("One?")
    playwright.expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("word")
    chat.click("New chat")
    assert server.disconnected.wait(5)
    server.delay, server.pieces = 0, ["Fine."]
    assert chat.ask("Two?").finished(1) == ["Fine."]
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Two?"}]


def test_files_that_are_no_images_are_refused(chat, server):
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"not a PNG file"}
    text = {"name": f"{XSS}.txt", "mimeType": "text/plain", "buffer": b"hello"}
    drawing = {"name": "drawing.svg", "mimeType": "image/svg+xml", "buffer": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    chat.attach(broken, text, drawing, png("fine.png")).attached(1)
    chat.notice(
        "“broken.png” cannot be read as an image: the file is damaged, or its content is not PNG. "
        f"“{XSS}.txt” is not an image of a supported type (PNG, JPEG, WebP, GIF, BMP). "
        "“drawing.svg” is not an image of a supported type (PNG, JPEG, WebP, GIF, BMP)."
    )
    chat.ask("What is there?").finished(1)
    chat.notice("")
    assert len(server.requests[0]["messages"][0]["content"]) == 2


ERRORS = {
    400: "messages[0]: the image is damaged.",
    429: "The server is busy and its queue is full. 32 requests are waiting. Try again in 3 s.",
    500: "The server failed on this request. internal error",
    "stream": "The server failed on this request. NaN in the logits.",
    "cut": "The connection ended before the answer was complete.",
}


def test_errors_are_shown_in_plain_words_with_the_request_id(chat, server):
    server.faults = list(ERRORS)
    for index, message in enumerate(ERRORS.values()):
        chat.ask(f"Question {index}?").finished(index + 1)
        assert chat.turn(index).locator("[data-part=error-message]").inner_text() == message
        assert chat.turn(index).locator("[data-part=request-id]").inner_text() == "Request req-7"
    # Only turns with some answer are part of the conversation.
    roles = [(message["role"], message["content"]) for message in server.requests[-1]["messages"]]
    assert roles == [("user", "Question 3?"), ("assistant", "A red "), ("user", "Question 4?")]
    assert chat.turn(0).locator("[data-part=left-out]").is_visible()
    assert not chat.turn(3).locator("[data-part=left-out]").is_visible()
    chat.click("Try again")
    playwright.expect(chat.turn(4).locator("[data-part=answer]")).to_have_text("A red circle.")
    assert not chat.turn(4).locator("[data-part=error]").is_visible()


def test_an_unreachable_server_is_reported(chat, server):
    chat.context.set_offline(True)
    chat.ask("Hello?").finished(1)
    assert chat.turn(0).locator("[data-part=error-message]").inner_text().startswith("The server cannot be reached.")
    chat.context.set_offline(False)
    chat.click("Try again")
    playwright.expect(chat.turn(0).locator("[data-part=answer]")).to_have_text("A red circle.")
    assert len(server.requests) == 1
    chat.log = [text for text in chat.log if "ERR_INTERNET_DISCONNECTED" not in text]


def test_markup_in_answers_and_names_stays_text(chat, server):
    server.pieces = [XSS[:20], XSS[20:]]
    chat.attach(png(f"{XSS}.png".replace("/", "-"))).attached(1)
    assert chat.ask(XSS).finished(1) == [XSS]
    assert chat.turn(0).locator("[data-part=question]").text_content() == XSS
    chat.click("Copy as curl or Python")
    assert "<script>document.title='owned'</script>" in chat.page.locator("#code").text_content()
    assert chat.page.title() == "tiny – llava_jax" and chat.page.locator("img[src=x], main script").count() == 0


def test_an_inline_script_is_blocked_by_the_policy(browser, server):
    chat = Chat(browser, server).is_ready()
    chat.page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror='document.title=1'>`)")
    chat.page.wait_for_timeout(100)
    assert chat.page.title() == "tiny – llava_jax" and any("Content Security Policy" in text for text in chat.log)
    chat.context.close()


def test_a_key_is_asked_for_and_kept_in_the_tab(browser, server):
    server.key = "secret-1"
    chat = Chat(browser, server)
    dialog = chat.page.locator("#key-dialog")
    chat.page.fill("#key", "wrong")
    chat.page.keyboard.press("Enter")
    playwright.expect(dialog.locator("#key-error")).to_be_visible()
    chat.page.fill("#key", "secret-1")
    chat.click("Use the key")
    chat.is_ready()
    assert not dialog.is_visible() and not chat.page.locator("#offline").is_visible()
    assert chat.ask("Hello?").finished(1) == ["A red circle."]
    chat.click("Copy as curl or Python")
    code = chat.page.locator("#code").text_content()
    assert "secret-1" not in code and "Bearer $LLAVA_JAX_KEY" in code
    stored = chat.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    assert stored == [["secret-1"], [], ""]
    chat.click("Close", chat.page.locator("#code-dialog"))
    server.key = "secret-2"  # the server restarted with another key
    chat.ask("Again?")
    chat.page.fill("#key", "secret-2")
    chat.page.keyboard.press("Enter")
    playwright.expect(chat.turn(1).locator("[data-part=answer]")).to_have_text("A red circle.")
    chat.context.close()


FOCUSED = """(() => {
  const element = document.activeElement;
  const ring = [element, element.closest(".card")].some((e) => e && getComputedStyle(e).outlineStyle === "solid");
  return [element.textContent.trim() || element.id, ring];
})()"""


def test_the_keyboard_alone_is_enough(chat, server):
    page, keys = chat.page, chat.page.keyboard
    assert page.evaluate("document.activeElement.id") == "question"
    keys.type("First line")
    keys.press("Shift+Enter")
    keys.type("second line")
    server.delay, server.pieces = 0.05, ["word "] * 1000
    keys.press("Enter")
    playwright.expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("word")
    keys.press("Escape")
    chat.finished(1)
    assert server.requests[0]["messages"][0]["content"] == "First line\nsecond line"
    page.locator(".skip").focus()
    order = []
    while not order or order[-1][0] != "Parameters":
        keys.press("Tab")
        order.append(page.evaluate(FOCUSED))
    names = ["New chat", "Edit", "Regenerate", "Copy as curl or Python", "question", "Images", "Parameters"]
    assert order == [[name, True] for name in names]
    keys.press("Enter")
    keys.press("Tab")
    assert page.evaluate(FOCUSED) == ["temperature", True]


def test_the_parameters_are_sent_and_checked(chat, server):
    page = chat.page
    page.click("summary")
    values = {"temperature": "0", "top_p": "", "max_tokens": "7", "seed": ""}
    for name, value in values.items():
        page.fill(f"#{name}", value)
    chat.ask("One?").finished(1)
    assert {name: server.requests[0].get(name) for name in values} == {
        "temperature": 0, "top_p": None, "max_tokens": 7, "seed": None,
    }  # fmt: skip
    page.fill("#seed", "5")
    page.fill("#temperature", "3")
    page.click("summary")
    chat.ask("Two?")
    assert page.evaluate("document.activeElement.id") == "temperature" and page.input_value("#question") == "Two?"
    page.fill("#temperature", "1")
    page.press("#question", "Enter")
    chat.finished(2)
    assert (server.requests[1]["seed"], len(server.requests)) == (5, 2)


def test_an_example_is_asked_with_its_image(chat, server):
    chat.page.locator(".example").nth(2).click()
    chat.finished(1)
    image, text = server.requests[0]["messages"][0]["content"]
    assert (image["image_url"]["url"], text["text"]) == (data_uri(2), "Is there a red square?")
    assert not chat.page.locator("#start").is_visible()


TRANSFER = """([kind, type, bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(bytes)], name, {type: "image/png"}));
  const target = document.querySelector("#question");
  const options = {bubbles: true, cancelable: true, [kind]: transfer};
  const event = kind === "dataTransfer" ? new DragEvent(type, options) : new ClipboardEvent(type, options);
  target.dispatchEvent(event);
  return [event.defaultPrevented, getComputedStyle(document.querySelector("#drop")).display];
}"""


def test_images_are_dropped_and_pasted(chat):
    data = list(scene(1))
    assert chat.page.evaluate(TRANSFER, ["dataTransfer", "dragover", data, "x.png"]) == [True, "grid"]
    assert chat.page.evaluate(TRANSFER, ["dataTransfer", "drop", data, "dropped.png"]) == [True, "none"]
    chat.attached(1)
    assert chat.page.evaluate(TRANSFER, ["clipboardData", "paste", data, "pasted.png"])[0]
    chat.attached(2)
    assert chat.page.locator("#attached span").all_text_contents() == ["dropped.png", "pasted.png"]


def test_copied_programs_send_the_same_request(chat, server, tmp_path):
    name = "it's $HOME.png"
    (tmp_path / name).write_bytes(scene(4))
    chat.attach(png(name, 4)).attached(1)
    chat.ask('Say `id` and $(id), "quoted" \\n, é 😀.\nSecond line.').finished(1)
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.click("Copy as curl or Python")
    run_copied(chat, ["sh"], tmp_path)
    chat.page.check("#as-python")
    printed = run_copied(chat, [sys.executable, "-"], tmp_path)
    asked, by_curl, by_python = server.requests
    assert by_curl == asked and by_python == asked and printed == "A red circle.\n"


def run_copied(chat: Chat, command: list[str], folder) -> str:
    """Copies the program that is shown, and runs it."""
    chat.click("Copy", exact=True)
    playwright.expect(chat.page.locator("#copied")).to_have_text("Copied")
    program = chat.page.evaluate("navigator.clipboard.readText()")
    return subprocess.run(command, input=program, cwd=folder, check=True, capture_output=True, text=True).stdout


UNLABELLED = """() => [...document.querySelectorAll("input, textarea, button, img, dialog, [role=log]")].filter((e) => {
  if (e.tagName === "IMG") return !e.hasAttribute("alt") || (!e.alt && !e.closest("button").textContent.trim());
  const label = e.ariaLabel || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  return !(label || e.labels?.[0]?.textContent || (e.tagName === "BUTTON" && e.textContent)).trim();
}).map((e) => e.outerHTML)"""


def test_controls_have_labels_and_images_have_texts(chat):
    chat.attach(png("a.png")).attached(1)
    assert chat.page.evaluate(UNLABELLED) == []
    chat.ask("What?").finished(1)
    chat.attach(png("b.png")).attached(1)
    assert chat.page.evaluate(UNLABELLED) == [] and chat.turn(0).get_by_role("img", name="Image: a.png").count() == 1
    ids = chat.page.evaluate("[...document.querySelectorAll('[id]')].map(({id}) => id)")
    assert len(ids) == len(set(ids))
    assert chat.page.get_attribute("#conversation", "aria-busy") == "false"
    chat.page.evaluate("document.querySelector('#attached img').removeAttribute('alt')")
    assert len(chat.page.evaluate(UNLABELLED)) == 1, "a missing text is not detected"


def test_the_page_fits_a_phone(chat, server):
    server.pieces = ["w" * 300]
    chat.page.set_viewport_size({"width": 375, "height": 667})
    chat.attach(png("n" * 200 + ".png"), png("b.png")).attached(2)
    chat.page.click("summary")
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 375
    chat.ask("q" * 300).finished(1)
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 375
    answer, composer = (chat.page.locator(name).bounding_box() for name in (".actions", "#composer"))
    assert answer["y"] + answer["height"] <= composer["y"] + 20, "the composer covers the answer"


def luminance(color: str) -> float:
    digits = color.removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_light_and_dark():
    style = (PAGE / "page.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#\w+);", part)) for part in style.split("@media")[:2])
    assert light.keys() == dark.keys() >= {"page", "text"}
    for colors in (light, dark):
        for text, background in [
            *((text, ground) for text in ("text", "muted") for ground in ("page", "surface", "sunken", "bad-soft")),
            ("text", "accent-soft"), ("on-accent", "accent"), ("accent", "surface"), ("warn", "page"), ("bad", "surface"),
        ]:  # fmt: skip
            low, high = sorted((luminance(colors[text]), luminance(colors[background])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)


def test_reduced_motion_stops_the_cursor(browser, server):
    server.delay = 0.2
    chat = Chat(browser, server, reduced_motion="reduce").is_ready()
    chat.ask("Hello?")
    cursor = "getComputedStyle(document.querySelector('.running [data-part=answer]'), '::after').animationName"
    assert chat.page.evaluate(cursor) == "none"
    chat.context.close()
