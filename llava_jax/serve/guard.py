"""What every request passes before the app: host, origin, key; and what every response carries.

Without the key nothing is answered but OPEN_PATHS, whether a route exists or not. The key is a bearer token, as
OpenAI's clients send it, or the password of Basic authentication with any user name, so that a browser can open the
page.
"""

import base64
import binascii
import contextlib
import hmac
import logging
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_jax.serve.refusal import Refusal

OPEN_PATHS = ("/healthz",)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
REQUEST_ID, CLEANUP = "llava_jax.request_id", "llava_jax.cleanup"  # keys of an ASGI scope


class Guard:
    """Wraps an ASGI app. Sets scope[REQUEST_ID], and scope[CLEANUP]: an ExitStack that is closed after the response,
    however that ends."""

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: tuple[str, ...] | None, on_response: Callable[[int], None]
    ):  # fmt: skip
        """key: None for no authentication. hosts: names by which the server may be addressed, None for any: a page of
        another site could otherwise reach a server on loopback under a name of its own (DNS rebinding)."""
        self.app, self.hosts, self.on_response = app, hosts, on_response
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # uvicorn refuses the upgrade
        request_id, is_started = f"req-{secrets.token_hex(8)}", False
        scope[REQUEST_ID] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                self.on_response(message["status"])
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        with contextlib.ExitStack() as cleanup:
            scope[CLEANUP] = cleanup
            try:
                self._check(scope)
                await self.app(scope, receive, send_with_headers)
            except Refusal as refusal:
                response = refused(refusal, request_id)
                if refusal.status == 401:
                    response.headers["WWW-Authenticate"] = _challenge(scope["path"])
                await response(scope, receive, send_with_headers)
            except ClientDisconnect:
                pass
            except Exception as error:  # a fault of ours: its text stays in the log
                logging.getLogger(__name__).error("request %s failed", request_id, exc_info=error)
                if not is_started:
                    refusal = Refusal(500, "the server failed to answer this request", code="internal_error")
                    await refused(refusal, request_id)(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = (host if host.endswith("]") else host.rpartition(":")[0] or host).lower()
        if self.hosts is not None and name not in self.hosts:
            raise Refusal(421, "the server has another name; address it as localhost", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refusal(403, "pages of other sites may not use this server", code="wrong_origin")
        if self._key is not None and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error, ValueError):
                given = base64.b64decode(given, validate=True).partition(b":")[2]
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self._key)


def _challenge(path: str) -> str:
    """How to send the key. For Basic a browser opens its own dialog, even over the page, which has one for the API."""
    return 'Bearer realm="llava_jax"' if path.startswith("/v1/") else 'Basic realm="llava_jax", charset="UTF-8"'


def refused(refusal: Refusal, request_id: str) -> JSONResponse:
    """The response to a refused request. The connection is closed where its body is not read."""
    headers = refusal.headers()
    if refusal.status in (401, 403, 408, 411, 413, 415, 421):
        headers["Connection"] = "close"
    return JSONResponse(refusal.body(request_id), refusal.status, headers)
