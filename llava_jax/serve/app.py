"""The HTTP side: routes of OpenAI's chat API, of health and metrics, and of the page.

app = build_app(scheduler, name="llava", key=None, hosts=LOOPBACK)         # for uvicorn
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from llava_jax.serve.body import BodyReader
from llava_jax.serve.guard import CLEANUP, REQUEST_ID, Guard, refused
from llava_jax.serve.metrics import CONTENT_TYPE
from llava_jax.serve.page_files import INDEX, Page, load_page
from llava_jax.serve.prompts import prepare
from llava_jax.serve.refusal import Refusal
from llava_jax.serve.replies import ChatReply
from llava_jax.serve.scheduler import Failure, Scheduler, Status, Token
from llava_jax.serve.schema import ChatRequest, parse_chat

SEND_TIMEOUT = 60  # seconds for which a client may not read its stream
PREPARING = 2  # threads that decode images and encode text; each may need 300 MB for the largest image

T = TypeVar("T")


class _Server:
    """The handlers of the routes, and what they share."""

    def __init__(self, scheduler: Scheduler, name: str, page: Page, needs_key: bool):
        self.scheduler, self.name, self.page, self.needs_key = scheduler, name, page, needs_key
        self.bodies = BodyReader()
        self.pool = ThreadPoolExecutor(PREPARING, "prepare")

    async def chat_completions(self, request: Request) -> Response:
        cleanup = request.scope[CLEANUP]
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the Content-Type must be application/json", code="wrong_content_type")
        body = await self.bodies.read(request, cleanup)
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        job = self.scheduler.admit(lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        cleanup.callback(self.scheduler.release, job)

        async def begin() -> tuple[ChatRequest, int, Token]:
            chat = await loop.run_in_executor(self.pool, parse_chat, body, self.name)
            prompt, settings = await loop.run_in_executor(self.pool, prepare, self.scheduler.backend, chat)
            wants_logprobs = chat.top_logprobs is not None
            self.scheduler.submit(job, prompt, settings, chat.n, wants_logprobs)
            return chat, len(prompt.tokens), await next_token(events)

        chat, prompt_tokens, token = await unless_disconnected(request, begin())
        tokenizer = self.scheduler.backend.model.tokenizer
        reply = ChatReply(request.scope[REQUEST_ID][4:], self.name, tokenizer, chat.n, chat.top_logprobs)
        if chat.is_stream:
            stream = _stream(reply, token, events, prompt_tokens, chat.include_usage, request.scope[REQUEST_ID])
            return EventSourceResponse(stream, send_timeout=SEND_TIMEOUT)

        async def finish() -> None:
            reply.add(token)
            while not reply.is_complete:
                reply.add(await next_token(events))

        await unless_disconnected(request, finish())
        return JSONResponse(reply.completion(prompt_tokens))

    async def models(self) -> Response:
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "llava_jax"}
        return JSONResponse({"object": "list", "data": [card]})

    async def info(self) -> Response:
        """What the page shows of the model."""
        backend = self.scheduler.backend
        if backend is None:
            raise Refusal(503, self.scheduler.status.value, code="not_ready", retry_after=5)
        model = backend.model
        return JSONResponse({
            "model": self.name,
            "step": model.source_info.step,
            "template": model.template,
            "length": backend.engine.length,
            "takes_images": model.config.vision is not None,
            "needs_key": self.needs_key,
            "note": self.page.note,
            "examples": self.page.examples if model.config.vision else [],
        })  # fmt: skip

    async def healthz(self) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self) -> Response:
        status = self.scheduler.status
        return PlainTextResponse(f"{status.value}\n", 200 if status is Status.READY else 503)

    async def metrics(self) -> Response:
        return Response(self.scheduler.metrics.text(), media_type=CONTENT_TYPE)

    async def index(self) -> Response:
        return self._file(INDEX)

    async def static(self, name: str) -> Response:
        return self._file(name)

    def _file(self, name: str) -> Response:
        if name not in self.page.files:
            raise Refusal(404, "there is no such file", code="not_found")
        content, media_type = self.page.files[name]
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})


def build_app(
    scheduler: Scheduler, *, name: str, key: str | None, hosts: tuple[str, ...] | None, page: Page | None = None
) -> ASGIApp:  # fmt: skip
    """Returns the ASGI app of a server.

    name: of the model, in requests and answers. key, hosts: see `Guard`. page: None for the one of the package.
    """
    server = _Server(scheduler, name, page or load_page(), key is not None)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.post("/v1/chat/completions", response_model=None)(server.chat_completions)
    for path, handler in {
        "/v1/models": server.models, "/v1/llava_jax/info": server.info, "/healthz": server.healthz,
        "/health": server.healthz, "/readyz": server.readyz, "/metrics": server.metrics, "/": server.index,
        "/static/{name:path}": server.static,
    }.items():  # fmt: skip
        app.get(path, response_model=None)(handler)

    def http_error(request: Request, error: HTTPException) -> Response:
        text = {404: "there is no such address", 405: "this address has another method"}
        refusal = Refusal(error.status_code, text.get(error.status_code, "the request is not valid"))
        return refused(refusal, request.scope[REQUEST_ID])

    def unexpected(request: Request, error: Exception) -> Response:  # Guard logs it
        refusal = Refusal(500, "the server failed to answer this request", code="internal_error")
        return refused(refusal, request.scope[REQUEST_ID])

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Refusal, lambda request, error: refused(error, request.scope[REQUEST_ID]))
    app.add_exception_handler(Exception, unexpected)
    return Guard(app, key=key, hosts=hosts, on_response=scheduler.metrics.response)


async def next_token(events: asyncio.Queue) -> Token:
    """The next event of a job. Raises the Refusal of a Failure."""
    event = await events.get()
    if isinstance(event, Failure):
        raise event.refusal
    return event


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves. Raises ClientDisconnect then."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    reply: ChatReply, token: Token, events: asyncio.Queue, prompt_tokens: int, include_usage: bool, request_id: str
) -> AsyncIterator[dict[str, str]]:
    """The events of a stream, from its first token on."""
    pack = lambda chunk: {"data": json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))}  # noqa: E731
    for choice in range(len(reply.choices)):
        yield pack(reply.first_chunk(choice))
    try:
        while True:
            for chunk in reply.chunks(token):
                yield pack(chunk)
            if reply.is_complete:
                break
            token = await next_token(events)
    except Refusal as refusal:  # the status of the response is sent already
        yield pack(refusal.body(request_id))
        return
    if include_usage:
        yield pack(reply.usage_chunk(prompt_tokens))
    yield {"data": "[DONE]"}
