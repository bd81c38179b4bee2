"""Runs the app under uvicorn: its socket, limits of connections, and what stop signals do."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava_jax.errors import ConfigError
from llava_jax.output.interrupts import stop_signals
from llava_jax.serve.scheduler import Scheduler, Status

HEAD_SECONDS = 10  # for the head of a request
MAX_HEAD = 32 << 10  # bytes
MAX_CONNECTIONS = 500  # below the usual limit of 1,024 open files
CLOSE_SECONDS = 5  # for responses that are being written when all jobs have ended


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError for a port that is in use, and for a host that this machine is not."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) and error.errno > 0 else error
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from None


def run_server(
    app: ASGIApp, scheduler: Scheduler, sock: socket.socket, drain_seconds: float, on_ready: Callable[[], None]
) -> int | None:  # fmt: skip
    """Starts the scheduler and serves until a stop signal comes or the model fails. Returns the signal's number, None
    after a failure.

    After the signal, new requests get 503, and those that were accepted are answered for up to `drain_seconds`; the
    rest then fails with 503. A second signal ends the process at once. on_ready: called when the model is loaded.
    """
    return asyncio.run(_run(app, scheduler, sock, drain_seconds, on_ready))


def make_server(app: ASGIApp) -> uvicorn.Server:
    """uvicorn with our limits of connections; it handles no signals."""
    return _Server(
        uvicorn.Config(
            app, http=_Connection, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="error",
            access_log=False, server_header=False, proxy_headers=False, h11_max_incomplete_event_size=MAX_HEAD,
            limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )  # fmt: skip


async def _run(app, scheduler, sock, drain_seconds, on_ready) -> int | None:
    loop, is_ended, received = asyncio.get_running_loop(), asyncio.Event(), []

    def on_change() -> None:
        if scheduler.status is Status.FAILED:
            loop.call_soon_threadsafe(is_ended.set)
        else:
            on_ready()

    def on_signal(signum: int) -> None:
        received.append(signum)
        loop.call_soon_threadsafe(is_ended.set)

    server = make_server(app)
    with stop_signals(on_signal):
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        scheduler.start(on_change)
        ending = asyncio.create_task(is_ended.wait())
        await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
        if received:
            await asyncio.to_thread(scheduler.drain, drain_seconds)
        await asyncio.to_thread(scheduler.stop, 0.0 if scheduler.backend is None else CLOSE_SECONDS)
        server.should_exit = True
        await serving
        ending.cancel()
    return received[0] if received else None


class _Server(uvicorn.Server):
    """Leaves signals to `run_server`: uvicorn's own handlers would close the socket before the answers have ended."""

    def capture_signals(self):
        return contextlib.nullcontext()


class _Connection(H11Protocol):
    """Closes a connection whose request has no complete head within HEAD_SECONDS, or a head beyond MAX_HEAD."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close_if_headless)

    def data_received(self, data: bytes) -> None:
        # h11 checks the size of heads that are incomplete; one that arrives at once would pass, and cost a second.
        if self.conn.their_state is h11.IDLE and len(data.partition(b"\r\n\r\n")[0]) > MAX_HEAD:
            self.send_400_response("The head of the request is too large.")
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._close_if_headless)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_if_headless(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
