"""A server for the chat page, with scripted answers; it records its requests.

`python -m tests.serve.page.page_server` serves the page on a free port until Ctrl+C, to look at it in a browser.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llava_jax.data.sources.scene_world import draw_scene, render_scene
from tests.fixtures.images import encoded
from tests.fixtures.package_source import ROOT

PAGE = ROOT / "llava_jax" / "serve" / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
QUESTIONS = ("What is in the image?", "How many objects are there?", "Is there a red square?", "Describe the picture.")
SPLIT, LONG_SPLIT = 0.005, 0.2  # seconds between the halves of an event, and of one that is split in a character
FAULTS = {400: "the image of message 0 is damaged", 429: "32 requests are waiting", 500: "internal error"}


def scene(index: int, size: int = 96) -> bytes:
    """A PNG file of a synthetic scene."""
    return encoded(render_scene(draw_scene(seed=0, index=index, held_out=False), size), "PNG")


class PageServer:
    """Serves the page and answers each chat request with `pieces`. Attributes may change between requests.

    delay: seconds before each piece. hold: index of a piece that waits until `released` is set. key: what requests
    must send, "" for none. is_loading: whether the model is not ready. faults: statuses of the next chat requests, 200
    for an answer; `cut` closes the connection in the middle of an answer, `stream` sends an error there.
    """

    def __init__(self):
        self.pieces, self.delay, self.finish = ["A red ", "circle."], 0.0, "stop"
        self.hold, self.released = None, threading.Event()
        self.key, self.faults, self.info = "", [], info()
        self.is_loading = False
        self.requests, self.origins, self.disconnected = [], set(), threading.Event()
        page_server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                answer_get(page_server, self)

            def do_POST(self):
                answer_post(page_server, self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def has_key(self, handler: BaseHTTPRequestHandler) -> bool:
        return not self.key or handler.headers["Authorization"] == f"Bearer {self.key}"


def info() -> dict:
    examples = [{"image": f"/static/examples/scene-{i}.png", "question": text} for i, text in enumerate(QUESTIONS)]
    facts = {"model": "tiny", "step": 1200, "template": "vicuna_v1", "length": 2048, "takes_images": True}
    return facts | {"needs_key": False, "note": "", "examples": examples}


HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Request-Id": "req-7",
}


def send(handler: BaseHTTPRequestHandler, content: bytes, kind: str = "application/json", status=200, **headers: str):
    handler.send_response(status)
    headers |= HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def send_error(handler: BaseHTTPRequestHandler, status: int, message: str, **headers: str):
    error = {"message": f"{message} (request req-7)", "type": "error", "param": None, "code": None}
    send(handler, json.dumps({"error": error}).encode(), status=status, **headers)


def answer_get(server: PageServer, handler: BaseHTTPRequestHandler):
    file = PAGE / ("index.html" if handler.path == "/" else handler.path.removeprefix("/static/"))
    if file.parent == PAGE and file.is_file():
        send(handler, file.read_bytes(), KINDS[file.suffix])
    elif not server.has_key(handler):
        send_error(handler, 401, "wrong key")
    elif handler.path == "/v1/llava_jax/info":
        if server.is_loading:
            send_error(handler, 503, "loading the weights", Retry_After="1")
        else:
            send(handler, json.dumps(server.info).encode())
    elif file.stem.startswith("scene-"):
        send(handler, scene(int(file.stem.removeprefix("scene-"))), "image/png")
    else:
        send_error(handler, 404, "no such file")


def answer_post(server: PageServer, handler: BaseHTTPRequestHandler):
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    if not server.has_key(handler):
        return send_error(handler, 401, "wrong key")
    server.requests.append(body)
    server.origins.add(handler.headers["Origin"])
    fault = server.faults.pop(0) if server.faults else 200
    if isinstance(fault, int) and fault != 200:
        wait = {"Retry_After": "3"} if fault == 429 else {}
        return send_error(handler, fault, FAULTS[fault], **wait)
    try:
        stream(server, handler, body, fault)
    except OSError:
        server.disconnected.set()
    handler.close_connection = True


def stream(server: PageServer, handler: BaseHTTPRequestHandler, body: dict, fault: int | str):
    """Sends the answer as server-sent events, which end with the connection."""
    handler.send_response(200)
    for name, value in (("Content-Type", "text/event-stream"), ("X-Request-Id", "req-7"), ("Connection", "close")):
        handler.send_header(name, value)
    handler.end_headers()

    def event(choices: list, **fields):
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        write(f"data: {json.dumps(chunk | {'choices': choices} | fields, ensure_ascii=False)}\r\n\r\n")

    def write(text: str):
        data = text.encode()
        middle = next((i + 1 for i, byte in enumerate(data) if byte > 127), len(data) // 2)  # within a character
        for part in (data[:middle], data[middle:]):
            handler.wfile.write(part)
            time.sleep(SPLIT if text.isascii() else LONG_SPLIT)

    def choice(finish: str | None = None, **delta) -> dict:
        return {"index": 0, "delta": delta, "finish_reason": finish}

    event([choice(role="assistant", content="")])
    for index, piece in enumerate(server.pieces):
        if fault == "cut" and index == 1:
            return
        if fault == "stream" and index == 1:
            return write('data: {"error": {"message": "NaN in the logits (request req-7)"}}\r\n\r\n')
        time.sleep(server.delay)
        if index == server.hold:
            server.released.wait()
        write(": ping\r\n\r\n")
        event([choice(content=piece)])
    event([choice(server.finish)])
    count = len(server.pieces)
    event([], usage={"prompt_tokens": 40, "completion_tokens": count, "total_tokens": 40 + count})
    write("data: [DONE]\r\n\r\n")


if __name__ == "__main__":
    with PageServer() as demo:
        demo.delay, demo.pieces = 0.05, [f"word {n} " for n in range(60)]
        print(demo.url, flush=True)
        threading.Event().wait()
