"""The chat page's conversation: answers, Stop, regenerate, edit, errors, text that looks like markup."""

import re
import subprocess
import sys

from playwright.sync_api import expect

from tests.serve.page.chat import MARKUP, Chat, data_uri, png
from tests.serve.page.page_server import scene


def test_an_answer_about_an_image_is_streamed(chat, server):
    server.delay, server.hold = 0.1, 2
    server.pieces = ["A red ", "circle ✓", "."]
    chat.attach(png("a.png")).attached(1)
    chat.ask("What is there?")
    expect(chat.turn(0).locator("[data-part=answer]")).to_have_text("A red circle ✓")
    assert "running" in chat.turn(0).get_attribute("class")
    server.released.set()
    assert chat.finished(1) == ["A red circle ✓."]
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
    assert 0 < speed <= 10 and metadata[4] == "finish reason: stop"  # 2 tokens in 0.2 s or more
    assert chat.page.locator("#attached li").count() == 0 and chat.page.input_value("#question") == ""


def test_a_second_question_sends_the_whole_conversation(chat, server):
    chat.attach(png("a.png", 1), png("b.png", 2)).attached(2)
    chat.click("Remove a.png")
    chat.attach(png("c.png", 3)).attached(2)
    chat.ask("Compare.").finished(1)
    server.finish, server.pieces = "length", ["Yes."]
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
    metadata = chat.turn(1).locator(".meta li").all_text_contents()
    assert metadata[1] == "1 token" and re.fullmatch(r"[\d.]+ tokens/s \(prompt included\)", metadata[2])
    assert "cut at the token limit" in chat.turn(1).locator(".meta .cut").inner_text()


def test_stop_closes_the_request_and_keeps_the_text(chat, server):
    server.delay, server.pieces = 0.05, [f"{n} " for n in range(1000)]
    chat.ask("Count.")
    expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("0 1")
    chat.click("Stop")
    (text,) = chat.finished(1)
    assert server.disconnected.wait(5)
    expect(chat.page.locator("#question")).to_be_focused()  # not the hidden button
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
    expect(chat.turn(1).locator("[data-part=answer]")).to_have_text("Other.")
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
    expect(chat.turn(0).locator("[data-part=answer]")).to_contain_text("word")
    chat.click("New chat")
    assert server.disconnected.wait(5)
    server.delay, server.pieces = 0, ["Fine."]
    assert chat.ask("Two?").finished(1) == ["Fine."]
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Two?"}]


ERRORS = {
    400: "The image of message 0 is damaged.",
    429: "The server is busy: 32 requests are waiting. Try again in 3 s.",
    500: "The server failed on this request: internal error.",
    "stream": "The server failed on this request: NaN in the logits.",
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
    expect(chat.turn(4).locator("[data-part=answer]")).to_have_text("A red circle.")
    assert not chat.turn(4).locator("[data-part=error]").is_visible()


def test_an_unreachable_server_is_reported(chat, server):
    chat.page.route("**/v1/**", lambda route: route.abort())
    chat.ask("Hello?").finished(1)
    chat.page.unroute_all()
    assert chat.turn(0).locator("[data-part=error-message]").inner_text().startswith("The server cannot be reached.")
    chat.click("Try again")
    expect(chat.turn(0).locator("[data-part=answer]")).to_have_text("A red circle.")
    assert len(server.requests) == 1 and server.origins == {server.url}
    assert "net::ERR_FAILED" in chat.log.pop()


def test_markup_in_answers_and_names_stays_text(chat, server):
    server.pieces = [MARKUP[:20], MARKUP[20:]]
    chat.attach(png(f"{MARKUP}.png".replace("/", "-"))).attached(1)
    assert chat.ask(MARKUP).finished(1) == [MARKUP]
    assert chat.turn(0).locator("[data-part=question]").text_content() == MARKUP
    chat.click("Copy as curl or Python")
    assert "<script>document.title='owned'</script>" in chat.page.locator("#code").text_content()
    assert chat.page.title() == "tiny – llava_jax" and chat.page.locator("img[src=x], main script").count() == 0


def test_an_inline_script_is_blocked_by_the_policy(chat):
    chat.page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror='document.title=1'>`)")
    chat.page.wait_for_timeout(100)
    assert chat.page.title() == "tiny – llava_jax" and "Content Security Policy" in chat.log.pop()


def test_copied_programs_send_the_same_request(chat, server, tmp_path):
    name = "it's $HOME.png"
    (tmp_path / name).write_bytes(scene(4))
    chat.attach(png(name, 4)).attached(1)
    chat.ask('Say `id` and $(id), "quoted" \\n, é 😀.\nSecond line.').finished(1)
    chat.click("Copy as curl or Python")
    run_copied(chat, ["sh"], tmp_path)
    chat.page.check("#as-python")
    printed = run_copied(chat, [sys.executable, "-"], tmp_path)
    by_page, by_curl, by_python = server.requests
    assert by_curl == by_page and by_python == by_page and printed == "A red circle.\n"


def run_copied(chat: Chat, command: list[str], folder) -> str:
    """Copies the program that is shown, and runs it."""
    chat.click("Copy", exact=True)
    expect(chat.page.locator("#copied")).to_have_text("Copied")
    program = chat.page.evaluate("navigator.clipboard.readText()")
    return subprocess.run(command, input=program, cwd=folder, check=True, capture_output=True, text=True).stdout
