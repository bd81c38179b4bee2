"""The client against a local server with all kinds of failures."""

import email.utils
import sys
import time

import pytest

from llava_jax.errors import ConfigError
from llava_jax.llm_client import client as module
from llava_jax.llm_client.client import Unfinished, ask_llm, retry_delay
from llava_jax.llm_client.settings import LLMSettings, estimate_cost
from tests.fixtures.fake_llm_server import FakeServer

KEY = "sk-unique-0123456789abcdef"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT", 0.002)


def requests(count: int) -> dict[str, list[dict[str, str]]]:
    return {str(i): [{"role": "user", "content": f"q{i}"}] for i in range(count)}


def run(server: FakeServer, cache, requests, **settings):
    return ask_llm(requests, LLMSettings("m", server.url, **settings), cache, log=lambda line: None)


def echo(call):
    call.reply(f"re {call.text}")


def test_replies_are_keyed_by_id_and_requested_once(tmp_path):
    questions = requests(20) | {"twin": requests(1)["0"]}
    done = []
    with FakeServer(echo) as server:
        settings = LLMSettings("m", server.url, max_tokens=7)
        for round in range(2):
            result = ask_llm(
                questions, settings, tmp_path / "c", log=lambda line: None, on_progress=lambda *n: done.append(n)
            )
            assert {name: reply.text for name, reply in result.replies.items()} == {
                name: f"re {messages[0]['content']}" for name, messages in questions.items()
            }
            assert list(result.replies) == list(questions) and result.new_count == (20, 0)[round] and not result.failed
        assert set(server.times.values()) == {1} and len(server.calls) == 20
        assert done == [(n, 20) for n in range(1, 21)]
        call = server.calls[0]
        assert call.key == KEY and call.handler.path == "/v1/chat/completions"
        assert call.body == {"model": "m", "messages": call.body["messages"], "temperature": 0.0, "max_tokens": 7}
        run(server, tmp_path / "c", {"a": [{"role": "user", "content": "\ud83d?"}]}, reasoning=True)
        assert server.calls[-1].text == "??" and server.calls[-1].body.keys() == {
            "model", "messages", "max_completion_tokens"
        }  # fmt: skip


def cut_inside(call):
    call.send(b'{"id": "1", "choices"', length=500)


TRANSIENT = {
    "429": lambda call: call.fail(429, "slow down"),
    "500": lambda call: call.fail(500, "oh"),
    "503, a page": lambda call: call.send(b"<html>later</html>", 503, kind="text/html"),
    "408": lambda call: call.fail(408),
    "cut": lambda call: call.cut(),
    "cut inside": cut_inside,
    "a page": lambda call: call.send(b"<html>hello</html>", kind="text/html"),
    "broken JSON": lambda call: call.send(b'{"choices": ['),
    "no UTF-8": lambda call: call.send(b'"\xff"'),
    "deep": lambda call: call.send(b"[" * 100_000),
    "an error as an answer": lambda call: call.send(b'{"error": {"message": "no"}}'),
    "no choices": lambda call: call.send(b'{"choices": []}'),
    "null": lambda call: call.send(b"null"),
    "a number": lambda call: call.send(b'{"choices": [{"message": {"content": 5}}]}'),
    "no message": lambda call: call.send(b'{"choices": [{"message": null}]}'),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_transient_errors_are_retried_up_to_five_times(tmp_path, fault):
    """q0 always fails and q1 fails twice; the others are not delayed, and all but q0 get a reply."""

    def behave(call):
        if call.text == "q0" or call.text == "q1" and call.times <= 2:
            TRANSIENT[fault](call)
        else:
            echo(call)

    with FakeServer(behave) as server:
        result = run(server, tmp_path / "c", requests(5), concurrency=2)
        assert server.times == {"q0": 5, "q1": 3, "q2": 1, "q3": 1, "q4": 1}
        assert list(result.replies) == ["1", "2", "3", "4"] and result.new_count == 4
        assert list(result.failed) == ["0"] and result.failed["0"].endswith(" (5 tries)")
        server.behave = echo
        again = run(server, tmp_path / "c", requests(5))
        assert again.new_count == 1 and len(again.replies) == 5 and len(server.calls) == 12


def test_timeout_covers_silent_and_trickling_servers(tmp_path):
    def behave(call):
        if call.text == "q0":
            server.hang(call)
        call.handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(100):  # one byte at a time
            call.handler.wfile.write(b"x")
            if server.closing.wait(0.1):
                return

    began = time.monotonic()
    with FakeServer(behave) as server:
        result = run(server, tmp_path / "c", requests(2), timeout=0.2)
        assert server.times == {"q0": 5, "q1": 5} and time.monotonic() - began < 9
        assert result.failed["0"] == "no answer within 0.2 s (5 tries)"


REFUSALS = {
    "refusal": lambda call: call.reply(None, refusal="I will not."),
    "filter": lambda call: call.reply("", "content_filter"),
    "filter, half": lambda call: call.reply("Well, ", "content_filter"),
    "empty": lambda call: call.reply(" \n"),
    "none": lambda call: call.reply(None),
    "Azure": lambda call: call.fail(400, "filtered", code="content_filter"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusal_is_a_cached_reply(tmp_path, kind):
    with FakeServer(lambda call: REFUSALS[kind](call) if call.text == "q0" else echo(call)) as server:
        for _ in range(2):
            result = run(server, tmp_path / "c", requests(2))
            assert [reply.is_refused for reply in result.replies.values()] == [True, False] and not result.failed
        assert server.times == {"q0": 1, "q1": 1}
        assert result.replies["0"].text == {"refusal": "I will not.", "filter, half": "Well, ", "empty": " \n"}.get(
            kind, ""
        )


@pytest.mark.parametrize(
    "status, code, message",
    [
        (400, None, "400 no such parameter"), (401, None, "401, the key in OPENAI_API_KEY is not accepted"),
        (403, None, "403 no"), (404, None, "404 no such model"), (422, None, "422 no"),
        (307, None, "307 redirects to another URL"), (429, "insufficient_quota", "429 pay first"),
    ],
)  # fmt: skip
def test_permanent_errors_stop_the_run_at_once(tmp_path, status, code, message):
    """The message is one line without the key, although the server's message contains it."""

    def behave(call):
        if call.text == "q3":
            call.fail(status, f"{message[4:]}\n {call.key}" * (status != 307), code, Location=f"{server.url}/elsewhere")
        else:
            echo(call)

    with FakeServer(behave) as server:
        with pytest.raises(ConfigError) as caught:
            run(server, tmp_path / "c", requests(9), concurrency=1)
        assert [call.text for call in server.calls] == ["q0", "q1", "q2", "q3"]
        error = str(caught.value)
        assert error.startswith(f"{server.url}: {message}") and "\n" not in error and KEY not in error
        assert "3 of 9 replies are in" in error and KEY[:12] not in error
        server.behave = echo
        assert run(server, tmp_path / "c", requests(9)).new_count == 6 and max(server.times.values()) == 2


def test_request_that_is_too_long_fails_alone_and_once(tmp_path):
    def behave(call):
        call.fail(400, "too many tokens", "context_length_exceeded") if call.text == "q1" else echo(call)

    with FakeServer(behave) as server:
        result = run(server, tmp_path / "c", requests(4), concurrency=1)
        assert list(result.replies) == ["0", "2", "3"] and result.failed == {"1": "400 too many tokens"}
        assert set(server.times.values()) == {1}
        with pytest.raises(Unfinished, match="10 requests in a row failed, the last: 400 too long"):
            server.behave = lambda call: call.fail(400, "too long", "context_length_exceeded")
            run(server, tmp_path / "d", requests(99), concurrency=1)


def test_requests_in_flight_are_cached_when_the_run_stops(tmp_path, monkeypatch):
    """A request that waits for its next try stops waiting."""
    monkeypatch.setattr(module, "FIRST_WAIT", 60.0)

    def behave(call):
        if call.text == "q0":
            time.sleep(0.2)
            echo(call)
        elif call.text == "q1":
            call.fail(500)
        else:
            time.sleep(0.1)
            call.fail(403, "no")

    began = time.monotonic()
    with FakeServer(behave) as server, pytest.raises(ConfigError, match="403 no; 1 of 9 replies"):
        run(server, tmp_path / "c", requests(9), concurrency=3)
    assert server.times == {"q0": 1, "q1": 1, "q2": 1} and time.monotonic() - began < 20


def test_concurrency_is_limited(tmp_path):
    def behave(call):
        while server.together < 4 and time.monotonic() - call.at < 5:
            time.sleep(0.01)
        time.sleep(0.02)
        echo(call)

    with FakeServer(behave) as server:
        run(server, tmp_path / "c", requests(12), concurrency=4)
        assert server.together == 4


def test_retry_delays_double_with_jitter_and_a_bound(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 2.0)
    for number in range(2, 6):
        waits = [retry_delay(number, f"key {i}") for i in range(100)]
        most = 2.0 ** (number - 1)
        assert most / 2 <= min(waits) < 0.55 * most and 0.95 * most < max(waits) <= most and len(set(waits)) == 100
        assert waits == [retry_delay(number, f"key {i}") for i in range(100)]
    assert retry_delay(2, "key", 7.5) == 7.5 and retry_delay(2, "key", 1e9) == 60 == retry_delay(50, "key")


@pytest.mark.parametrize(
    "retry_after, wait", [("0.3", 0.3), ("3600", 0.4), ("date", 0.4), ("soon", 0), ("-5", 0), ("nan", 0)]
)
def test_retry_after_is_respected_within_bounds(tmp_path, monkeypatch, retry_after, wait):
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.4)
    value = email.utils.formatdate(time.time() + 3600, usegmt=True) if retry_after == "date" else retry_after
    with FakeServer(lambda call: echo(call) if call.times > 1 else call.fail(429, Retry_After=value)) as server:
        run(server, tmp_path / "c", requests(1))
        first, second = server.calls
        assert wait <= second.at - first.at < wait + 3  # + 3: for a busy machine


def test_run_stops_after_ten_failures_in_a_row(tmp_path):
    with FakeServer(lambda call: call.fail(500)) as server:
        with pytest.raises(Unfinished, match="10 requests in a row failed, the last: 500; 0 of 99 replies"):
            run(server, tmp_path / "c", requests(99), concurrency=3)
        assert 50 <= len(server.calls) <= 65
    with pytest.raises(Unfinished, match="in a row failed, the last: connection lost .ConnectError"):
        run(server, tmp_path / "c", requests(99), input_price=1.0, output_price=1.0, max_cost=0.001)


def test_failures_not_in_a_row_do_not_stop_the_run(tmp_path):
    with FakeServer(lambda call: call.fail(500) if int(call.text[1:]) % 2 else echo(call)) as server:
        result = run(server, tmp_path / "c", requests(30), concurrency=1)
    assert len(result.failed) == len(result.replies) == 15


def test_estimated_cost_is_logged_before_any_request(tmp_path):
    lines = []
    with FakeServer(echo) as server:
        settings = LLMSettings("m", server.url, max_tokens=50, input_price=1.0, output_price=100.0)
        questions = {str(i): [{"role": "user", "content": f"q{i:399}"}] for i in range(10)}
        ask_llm(
            questions | {"twin": questions["3"]},
            settings,
            tmp_path / "c",
            log=lambda line: lines.append((len(server.calls), line)),
        )
    first = f"11 requests to m at {server.url}: 10 to send, 1 equal to another"
    second = "about 1,080 input tokens (4 characters each), up to 500 output tokens: "
    assert lines == [(0, first), (0, f"{second}about $0.0011 and up to $0.0500")]
    assert "cost unknown" in estimate_cost(questions, LLMSettings("m"), {})[1]


@pytest.mark.parametrize("value", ["", " \n", f"{KEY} {KEY}", f"{KEY}\nX: y", f"{KEY}é"])
def test_invalid_api_key_is_rejected_without_printing_it(tmp_path, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with (
        FakeServer(echo) as server,
        pytest.raises(ConfigError, match="not a key" if value.strip() else "no key: set") as caught,
    ):
        run(server, tmp_path / "c", requests(1))
    assert KEY not in str(caught.value) and not server.calls


def test_key_variable_is_read_and_stripped(tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "other-key\n")
    with FakeServer(echo) as server:
        run(server, tmp_path / "c", requests(1), key_variable="OTHER_KEY")
        assert server.calls[0].key == "other-key"


def test_key_in_a_reply_is_redacted(tmp_path):
    with FakeServer(lambda call: call.reply(f"Your key is {call.key}.")) as server:
        result = run(server, tmp_path / "c", requests(1))
    assert result.replies["0"].text == "Your key is [key]." and KEY.encode() not in (tmp_path / "c").read_bytes()


def test_missing_openai_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with FakeServer(echo) as server, pytest.raises(ConfigError, match=r"pip install 'llava_jax\[judge\]'"):
        run(server, tmp_path / "c", requests(1))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(key_variable=KEY), dict(key_variable="a_key"), dict(base_url=f"https://me:{KEY}@host/v1"),
        dict(base_url=f"https://host/v1?key={KEY}"), dict(base_url=f"https://{KEY}@host"), dict(base_url="host/v1"),
        dict(base_url="file:///etc"), dict(base_url="http://ho st"), dict(base_url="http://[::1"),
        dict(base_url="http://host:99999/v1"), dict(max_tokens=0), dict(concurrency=0), dict(timeout=0.0),
        dict(timeout=float("nan")), dict(temperature=-1.0), dict(temperature=float("nan")), dict(max_cost=1.0),
        dict(input_price=1.0), dict(input_price=-1.0, output_price=1.0),
        dict(input_price=1.0, output_price=float("inf")),
        dict(input_price=1.0, output_price=1.0, max_cost=float("nan")),
    ],
)  # fmt: skip
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(ConfigError) as caught:
        LLMSettings("m", **wrong)
    assert KEY not in str(caught.value)


def test_base_url_comes_from_flag_environment_or_default(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://[::1]:8000/v1")
    assert LLMSettings("m").url == "http://[::1]:8000/v1" and LLMSettings("m", "https://host").url == "https://host"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert LLMSettings("m").url == "https://api.openai.com/v1"
