"""Routes, keys, hosts, headers of every response, and the running of the program."""

import base64
import json
import logging
import os
import signal
import threading
import time

import pytest
from starlette.routing import Route

from llava_jax.errors import ConfigError, DataError
from llava_jax.serve.app import build_app
from llava_jax.serve.guard import LOOPBACK, OPEN_PATHS
from llava_jax.serve.page_files import load_page
from llava_jax.serve.run import listen, run_server
from llava_jax.serve.scheduler import Scheduler, Status
from tests.serve.conftest import NAME, make_backend, question, running_site
from tests.serve.http_requests import assert_tells_nothing, post, request

KEY = "k3y-" + "x" * 28
PATHS = ("/", "/healthz", "/health", "/readyz", "/metrics", "/v1/models", "/v1/llava_jax/info", "/static/index.html")


@pytest.fixture(scope="module")
def locked(scheduler):
    with running_site(scheduler, KEY, hosts=None) as site:
        yield site


def routes(scheduler) -> list[tuple[str, str]]:
    """(method, path) of every route of the app."""
    app = build_app(scheduler, name=NAME, key=KEY, hosts=None).app
    assert all(isinstance(route, Route) for route in app.routes)
    return [(method, route.path) for route in app.routes for method in route.methods]


def test_every_route_but_healthz_needs_the_key(locked, scheduler):
    registered = routes(scheduler)
    assert len(registered) >= 9
    for method, path in [*registered, ("GET", "/nowhere"), ("PUT", "/"), ("OPTIONS", "/v1/models"), ("GET", "/docs")]:
        path = path.replace("{name:path}", "index.html")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Digest {KEY}"}):
            status, body, answer_headers = request(locked, method, path, b"{}", **headers)
            assert status == (200 if path in OPEN_PATHS else 401), (method, path)
            if status == 401 and method != "HEAD":
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
                # For Basic a browser opens its own dialog, over the one of the page.
                scheme = "Bearer" if path.startswith("/v1/") else "Basic"
                assert answer_headers["www-authenticate"].startswith(scheme), path


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Basic"])
def test_key_is_a_bearer_token_or_a_password(locked, scheme):
    value = base64.b64encode(f"anyone:{KEY}".encode()).decode() if scheme == "Basic" else KEY
    for path in PATHS:
        assert request(locked, "GET", path, Authorization=f"{scheme} {value}")[0] == 200, path
    assert request(locked, "GET", "/", Authorization=f"{scheme} {value}x")[0] == 401


def test_client_without_the_key_gets_its_exception(locked):
    import openai

    with pytest.raises(openai.AuthenticationError):
        locked.client("sk-wrong").models.list()
    assert [model.id for model in locked.client(KEY).models.list()] == [NAME]


def test_key_is_never_logged_or_answered(locked, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    for value in (KEY, KEY[:-1], "é"):
        headers = {"Authorization": f"Bearer {value}".encode().decode("latin-1")}
        for method, path in (("GET", "/readyz"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")):
            _, body, answer_headers = request(locked, method, path, b"{", **headers)
            assert KEY[:-1] not in f"{body}{answer_headers}"
    assert KEY[:-1] not in caplog.text + "".join(capfd.readouterr())


def test_every_response_has_the_security_headers(site):
    for method, path in [("GET", path) for path in (*PATHS, "/nowhere", "/static/x")] + [("PUT", "/")]:
        status, body, headers = request(site, method, path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["x-request-id"].startswith("req-") and headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in headers and not [name for name in headers if name.startswith("access-control")]
        if status >= 400:
            assert headers["x-request-id"] in json.loads(body)["error"]["message"]
            assert_tells_nothing(body.decode())


@pytest.mark.parametrize(
    "name", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "", "examples/", "index.html/"]
)
def test_static_files_are_those_of_the_list(site, name):
    assert request(site, "GET", f"/static/{name}")[0] == 404


def test_page_is_served_whole(site):
    page = load_page()
    assert "index.html" in page.files
    for name, (content, media_type) in page.files.items():
        status, body, headers = request(site, "GET", f"/static/{name}")
        assert (status, body, headers["content-type"]) == (200, content, media_type)
    assert request(site, "GET", "/")[1] == page.files["index.html"][0]
    assert all(example["image"].removeprefix("/static/") in page.files for example in page.examples)


def test_own_examples_replace_those_of_the_package():
    page = load_page([(b"png", "what is it ?")])
    assert page.examples == [{"image": "/static/examples/held-out-0.png", "question": "what is it ?"}]
    assert page.files["examples/held-out-0.png"] == (b"png", "image/png")


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("LOCALHOST", 200),
    ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421),
    ("localhost@evil", 421),
])  # fmt: skip
def test_host_of_another_name_is_refused_on_loopback(site, host, status):
    assert request(site, "GET", "/readyz", Host=host)[0] == status


@pytest.mark.parametrize("origin, status", [
    ("http://localhost", 200), ("http://evil.example", 403), ("null", 403), ("http://localhost:99", 403),
])  # fmt: skip
def test_pages_of_other_sites_may_not_ask(site, origin, status):
    assert request(site, "GET", "/readyz", Origin=origin)[0] == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_forms_of_other_sites_are_refused(site, kind):
    body = json.dumps({"messages": question("x")}).encode()
    assert request(site, "POST", "/v1/chat/completions", body, Content_Type=kind)[0] == 415


def test_script_in_an_answer_stays_text_in_json(site):
    status, answer, headers = post(site, question("<script>alert(1)</script>"), max_tokens=2)
    assert status == 200 and headers["content-type"] == "application/json"


def test_info_describes_the_model_and_whether_a_key_is_needed(site, locked):
    info = json.loads(request(site, "GET", "/v1/llava_jax/info")[1])
    assert info["model"] == NAME and info["step"] is None and info["takes_images"] and info["length"] == 128
    assert info["needs_key"] is False and info["note"] == ""
    info = json.loads(request(locked, "GET", "/v1/llava_jax/info", Authorization=f"Bearer {KEY}")[1])
    assert info["needs_key"] is True and KEY not in json.dumps(info)


def test_unexpected_error_is_500_without_its_text(site, monkeypatch, caplog):
    monkeypatch.setattr("llava_jax.serve.app.parse_chat", lambda body, name: 1 / 0)
    status, answer, headers = post(site, question("x"))
    assert status == 500 and headers["x-request-id"] in answer["error"]["message"]
    assert "division" not in json.dumps(answer)
    end = time.monotonic() + 5
    while "ZeroDivisionError" not in caplog.text and time.monotonic() < end:  # logged after the response
        time.sleep(0.01)
    assert headers["x-request-id"] in caplog.text
    monkeypatch.undo()
    assert post(site, question("x"), max_tokens=2)[0] == 200


def test_fault_in_a_stream_is_an_error_event(site, monkeypatch):
    import openai

    stream = site.client().chat.completions.create(
        model=NAME, messages=question("hello"), max_tokens=100, temperature=1.5, stream=True, seed=2
    )
    next(iter(stream))
    monkeypatch.setattr(site.engine, "advance", lambda: 1 / 0)
    with pytest.raises(openai.APIError, match="the model failed"):
        list(stream)
    monkeypatch.undo()
    site.wait_until_idle()


def test_not_ready_server_refuses_with_the_reason():
    loading, failure = threading.Event(), threading.Event()

    def load():
        loading.wait(10)
        raise DataError("/secret/path has no weights")

    scheduler = Scheduler(load, queue=1)
    scheduler.start(failure.set)
    with running_site(scheduler) as site:
        status, body, _ = request(site, "GET", "/readyz")
        assert status == 503 and b"being loaded" in body and request(site, "GET", "/healthz")[0] == 200
        status, answer, headers = post(site, question("x"))
        assert (status, answer["error"]["code"]) == (503, "not_ready") and headers["retry-after"]
        assert request(site, "GET", "/v1/llava_jax/info")[0] == 503
        loading.set()
        assert failure.wait(10)
        status, body, _ = request(site, "GET", "/readyz")
        assert status == 503 and b"cannot be loaded" in body and b"secret" not in body


def test_port_in_use_is_a_usage_error(site):
    with pytest.raises(ConfigError, match=f"port {site.port}: Address already in use"):
        listen("127.0.0.1", site.port)
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen("no such host", 80)


def test_sigterm_answers_the_accepted_and_refuses_the_rest():
    backend = make_backend()
    sock = listen("127.0.0.1", 0)
    scheduler = Scheduler(lambda: backend, queue=8)
    app = build_app(scheduler, name=NAME, key=None, hosts=LOOPBACK)
    results, is_ready = {}, threading.Event()

    class Port:
        port = sock.getsockname()[1]

    def clients():
        is_ready.wait(10)
        threads = [threading.Thread(target=lambda i=i: results.update({i: ask()})) for i in range(6)]
        for thread in threads:
            thread.start()
        while len(scheduler._jobs) < 6:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        while scheduler.status is not Status.DRAINING:
            time.sleep(0.001)
        results["late"] = ask()
        for thread in threads:
            thread.join(20)

    ask = lambda: post(Port, question("hello"), max_tokens=60, temperature=1.5, seed=3)  # noqa: E731
    thread = threading.Thread(target=clients)
    thread.start()
    assert run_server(app, scheduler, sock, 20, is_ready.set) == signal.SIGTERM
    thread.join(20)
    assert results.pop("late")[0] == 503
    assert [status for status, _, _ in results.values()] == [200] * 6
    assert not scheduler._thread.is_alive() and backend.engine.free_slots == 4


def test_server_ends_when_the_model_does_not_load():
    def load():
        raise DataError("no weights")

    sock, scheduler = listen("127.0.0.1", 0), Scheduler(load, queue=8)
    app = build_app(scheduler, name=NAME, key=None, hosts=LOOPBACK)
    assert run_server(app, scheduler, sock, 1, lambda: None) is None
    assert isinstance(scheduler.failure, DataError)
