"""The chat page's controls: files, keyboard, parameters, examples, key, labels, sizes, colours."""

import re

from playwright.sync_api import expect

from tests.serve.page.chat import MARKUP, data_uri, png
from tests.serve.page.page_server import PAGE, scene


def test_files_that_are_no_images_are_refused(chat, server):
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"not a PNG file"}
    text = {"name": f"{MARKUP}.txt", "mimeType": "text/plain", "buffer": b"hello"}
    drawing = {
        "name": "drawing.svg",
        "mimeType": "image/svg+xml",
        "buffer": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    chat.attach(broken, text, drawing, png("fine.png")).attached(1)
    chat.notice(
        "“broken.png” cannot be read as an image: the file is damaged, or its content is not PNG. "
        f"“{MARKUP}.txt” is not an image of a supported type (PNG, JPEG, WebP, GIF, BMP). "
        "“drawing.svg” is not an image of a supported type (PNG, JPEG, WebP, GIF, BMP)."
    )
    chat.ask("What is there?").finished(1)
    chat.notice("")
    assert len(server.requests[0]["messages"][0]["content"]) == 2


def test_the_page_waits_for_a_model_that_is_loading(loading_chat, server):
    chat = loading_chat
    message = "The server is not ready: loading the weights. Try again in 1 s."
    expect(chat.page.locator("#offline-message")).to_have_text(message)
    assert chat.page.locator("#send").is_disabled()
    server.is_loading = False
    chat.is_ready()
    assert not chat.page.locator("#offline").is_visible()


def test_a_key_is_asked_for_and_kept_in_the_tab(locked_chat, server):
    chat, server.info["needs_key"] = locked_chat, True
    dialog = chat.page.locator("#key-dialog")
    chat.page.fill("#key", "wrong")
    chat.page.keyboard.press("Enter")
    expect(dialog.locator("#key-error")).to_be_visible()
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
    expect(chat.turn(1).locator("[data-part=answer]")).to_have_text("A red circle.")


def test_programs_need_the_key_that_the_browser_itself_sends(chat, server):
    server.info["needs_key"] = True  # of a server whose key is the password of the browser's dialog
    chat.page.reload()
    chat.is_ready().ask("Hello?").finished(1)
    chat.click("Copy as curl or Python")
    assert "Bearer $LLAVA_JAX_KEY" in chat.page.locator("#code").text_content()
    assert chat.page.locator("#code-key").is_visible()


def test_the_note_of_the_model_is_above_the_question(chat, server):
    assert not chat.page.locator("#note").is_visible()
    server.info["note"] = MARKUP
    chat.page.reload()
    expect(chat.page.locator("#note")).to_have_text(MARKUP)
    note, field = (chat.page.locator(name).bounding_box() for name in ("#note", "#question"))
    assert note["y"] + note["height"] <= field["y"]


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
    expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("word")
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
    expect(chat.page.locator("#question")).to_be_focused()


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


UNLABELLED = """() => [...document.querySelectorAll("input, textarea, button, img, dialog, [role=log]")].filter((e) => {
  if (e.tagName === "IMG") return !e.hasAttribute("alt") || (!e.alt && !e.closest("button").textContent.trim());
  const label = e.ariaLabel || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  return !(label || e.labels?.[0]?.textContent || (e.tagName === "BUTTON" && e.textContent)).trim();
}).map((e) => e.outerHTML)"""


ENTER = 'document.querySelector("#question").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}))'


def test_no_question_is_sent_while_an_image_is_read(chat, server):
    chat.page.fill("#question", "What is there?")
    drop = f"(argument) => {{ ({TRANSFER})(argument); {ENTER}; return document.querySelector('#notice').textContent }}"
    notice = chat.page.evaluate(drop, ["dataTransfer", "drop", list(scene(1)), "late.png"])
    assert notice == "The images are still being read." and chat.page.locator(".turn").count() == 0
    chat.attached(1)
    chat.notice("")
    chat.page.press("#question", "Enter")
    chat.finished(1)
    assert server.requests[0]["messages"][0]["content"][0]["image_url"]["url"] == data_uri(1)


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
            ("text", "accent-soft"), ("on-accent", "accent"), ("accent", "surface"), ("warn", "page"),
            ("bad", "surface"),
        ]:  # fmt: skip
            low, high = sorted((luminance(colors[text]), luminance(colors[background])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)


def test_reduced_motion_stops_the_cursor(chat, server):
    server.hold = 0
    cursor = "getComputedStyle(document.querySelector('.running [data-part=answer]'), '::after').animationName"
    chat.ask("Hello?")
    expect(chat.page.locator(".turn.running")).to_have_count(1)
    assert chat.page.evaluate(cursor) == "blink"
    chat.page.emulate_media(reduced_motion="reduce")
    assert chat.page.evaluate(cursor) == "none"
    chat.page.emulate_media(reduced_motion="no-preference")
