"""Reads the body of a request within limits of size, of time and of memory for all of them together."""

import asyncio
import contextlib
import time

from starlette.requests import ClientDisconnect, Request

from llava_jax.serve.refusal import Refusal

MAX_BODY = 32 << 20  # bytes: 8 images as base64, and text
MAX_BODIES = 128 << 20  # bytes of all bodies that are read or parsed at a time
PATIENCE = 5.0  # seconds that a body may take, and one more for every MIN_RATE bytes
MIN_RATE = 64 << 10
DISCARD_SECONDS = 0.5


class BodyReader:
    """Counts the bytes in memory."""

    def __init__(self, max_body: int = MAX_BODY, max_bodies: int = MAX_BODIES):
        self.max_body, self.max_bodies, self.held = max_body, max_bodies, 0

    async def read(self, request: Request, cleanup: contextlib.ExitStack) -> bytes:
        """Returns the body; its bytes count until `cleanup` is closed.

        Raises Refusal: 413 for one that is too large, 408 for one that is too slow, 429 if all take too much memory.
        """
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 12:
            raise Refusal(400, "the Content-Length is not a number", code="invalid_length")
        chunks, size, started = [], 0, time.monotonic()
        stream = request.stream()
        await self._check(int(length), int(length), stream)
        cleanup.callback(self._release, chunks)
        while True:
            patience = started + PATIENCE + size / MIN_RATE - time.monotonic()
            try:
                async with asyncio.timeout(patience):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise Refusal(408, "the body arrived too slowly", code="timeout") from None
            if chunk is None:
                return b"".join(chunks)
            size += len(chunk)
            await self._check(size, len(chunk), stream)
            chunks.append(chunk)
            self.held += len(chunk)

    async def _check(self, size: int, more: int, stream) -> None:
        if size > self.max_body:
            await _discard(stream)
            message = f"the body is larger than {self.max_body >> 20} MiB; send fewer or smaller images"
            raise Refusal(413, message, code="body_too_large")
        if self.held + more > self.max_bodies:
            await _discard(stream)
            raise Refusal(429, "too many requests are being read; try again later", code="busy", retry_after=1)

    def _release(self, chunks: list[bytes]) -> None:
        self.held -= sum(map(len, chunks))
        chunks.clear()


async def _discard(stream) -> None:
    """Reads the rest for a moment: a client that is still sending would not see the answer."""
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_SECONDS):
            async for _ in stream:
                pass
