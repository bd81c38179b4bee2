"""A conversation with a running server of OpenAI's chat API, for the verb `chat`: streams, images, no further library.

server = ChatServer("http://127.0.0.1:8000")
for text in server.stream([{"role": "user", "content": "hello"}], max_tokens=64):
    ...
"""

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from llava_jax.errors import ConfigError, DataError, TooLong, harmless
from llava_jax.llm_client.settings import URL

TIMEOUT = 600  # seconds without a byte; a request may wait in a queue
MAX_LINE = 1 << 20  # bytes of an event
MAX_REASON = 500  # characters of a server's message


class ChatServer:
    """The server at a URL, which may end in /v1. The key is sent to it only, and never to where it redirects."""

    def __init__(self, url: str, key: str | None = None):
        """Raises ConfigError for a URL that is none of http or https, or that holds a user, password or query."""
        try:
            parts = urlsplit(url)
            is_plain = re.fullmatch(URL, url) and parts.port != 0
        except ValueError:
            is_plain = False
        if not is_plain:
            raise ConfigError("--server must be http(s)://HOST[:PORT][/v1], without user, password or query")
        self.url, self._parts, self._key = url, parts, key
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"

    def model(self) -> tuple[str, bool]:
        """(name of the served model, whether it takes images). Raises DataError if the server does not answer so."""
        with self._response("GET", "/models") as response:
            models = _parsed(response.read(MAX_LINE))
        try:
            name = models["data"][0]["id"]
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{self.url} lists no model at /v1/models; is it a server of OpenAI's chat API?") from None
        try:
            with self._response("GET", "/llava_jax/info") as response:
                return name, bool(_parsed(response.read(MAX_LINE)).get("takes_images", True))
        except DataError:  # a server of another project
            return name, True

    def stream(self, messages: list[dict], **fields: Any) -> "RemoteText":
        """Requests an answer. fields: others of the request. Iterating raises DataError for a failure, TooLong for a
        conversation that the model has no room for."""
        return RemoteText(self, {"messages": messages, "stream": True, **fields})

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: dict | None = None) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname, self._parts.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            connection.request(method, self._path + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _failure(response.status, response.read(MAX_LINE))
            yield response
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(f"{self.url} does not answer ({reason}); is the server running?") from None
        finally:
            connection.close()


class RemoteText:
    """Pieces of the text of an answer. tokens: of the whole answer as the server counts them, 0 until it ends."""

    def __init__(self, server: ChatServer, request: dict):
        self.tokens = 0
        self._pieces = self._read(server, request | {"stream_options": {"include_usage": True}})

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _read(self, server: ChatServer, request: dict) -> Iterator[str]:
        with server._response("POST", "/chat/completions", request) as response:
            while line := response.readline(MAX_LINE):
                data = line.strip().removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if not line.startswith(b"data:"):
                    continue
                event = _parsed(data)
                if "error" in event:
                    raise _failure(500, data)
                self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
                for choice in event.get("choices", ()):
                    if text := (choice.get("delta") or {}).get("content"):
                        yield text
        raise DataError(f"{server.url} ended the answer early")


def _parsed(data: bytes) -> dict:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(data), dict):
            return value
    raise DataError("the server's answer is not JSON; is it a server of OpenAI's chat API?")


def _failure(status: int, data: bytes) -> DataError:
    """What the server's error means."""
    message, code = f"status {status}", None
    with contextlib.suppress(DataError, KeyError, TypeError):
        error = _parsed(data)["error"]
        message, code = harmless(error["message"])[:MAX_REASON], error.get("code")
    if code == "context_length_exceeded":
        return TooLong(message)
    hint = "; pass --api-key-file" if status == 401 else ""
    return DataError(f"the server refused: {message}{hint}")
