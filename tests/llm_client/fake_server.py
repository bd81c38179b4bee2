"""A chat API on loopback that does what a test wants, and remembers what it was asked."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


class Call:
    """One request. `times`: how often the same text was asked, this time included."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: dict):
        self.handler, self.body, self.at, self.times = handler, body, time.monotonic(), 0
        self.key = handler.headers["Authorization"].removeprefix("Bearer ")
        self.text = body["messages"][-1]["content"]

    def send(self, content: bytes, status: int = 200, *, length: int | None = None, kind="application/json", **headers):
        """length: what Content-Length says, if not the truth; the connection then ends too soon."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Content-Length", str(len(content) if length is None else length))
        self.handler.end_headers()
        self.handler.wfile.write(content)
        self.handler.close_connection = length is not None

    def say(self, content: str | None, finish="stop", usage=USAGE, **message):
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | message}
        self.send(json.dumps({"id": "1", "model": "fake-1", "choices": [choice], "usage": usage}).encode())

    def fail(self, status: int, message: str = "", code: str | None = None, **headers):
        self.send(json.dumps({"error": {"message": message, "code": code}}).encode(), status, **headers)

    def cut(self):
        self.handler.close_connection = True


class FakeServer:
    """`behave` answers each call, in a thread of its own. `together`: how many calls were there at a time, at most."""

    def __init__(self, behave):
        self.behave, self.calls, self.together, self.closing = behave, [], 0, threading.Event()
        lock, asked, now = threading.Lock(), Counter(), Counter()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler):
                call = Call(handler, json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
                with lock:
                    asked[call.text] += 1
                    call.times = asked[call.text]
                    now["calls"] += 1
                    self.together = max(self.together, now["calls"])
                    self.calls.append(call)
                try:
                    self.behave(call)
                except OSError:  # it did not wait for the answer
                    handler.close_connection = True
                finally:
                    with lock:
                        now["calls"] -= 1

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def times(self) -> Counter:
        """How often each text was asked."""
        return Counter(call.text for call in self.calls)

    def hang(self, call: Call):
        """Until the test is over."""
        self.closing.wait()
