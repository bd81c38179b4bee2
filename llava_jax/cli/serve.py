"""python -m llava_jax serve MODEL: OpenAI's chat API and a chat page for a model."""

import contextlib
import ipaddress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from llava_jax.cli.flags import Flat, LoadFlags, read_key
from llava_jax.errors import ConfigError
from llava_jax.output.console import log
from llava_jax.output.interrupts import end_at_once
from llava_jax.runtime.compilation import compile_cache
from llava_jax.text.templates import find_template

EXAMPLES = 4
CACHE_HELP = (
    "Caches compiled programs in this folder for the next start. Only you may have write access, because the programs "
    "are executed."
)
KEY_HELP = (
    "A file with the API key, at least 16 characters. Every address but /healthz then needs it: as bearer token, or as "
    "the password in a browser, with any user name."
)
log_note = partial(log, to_stderr=True)


@dataclass(frozen=True)
class MeshFlags:
    """The device mesh, as in the config of a run; -1: all remaining devices."""

    data: int = 1
    """Copies of the weights; the slots are divided among them."""
    fsdp: int = -1
    """Devices that shard the weights, and among which the slots are divided."""
    tensor: int = 1
    """Devices that divide each layer's work."""


@dataclass(frozen=True)
class ServeFlags:
    """Where and how the model is served."""

    host: str = "127.0.0.1"
    """The address to listen on. Another than this machine's loopback needs --api-key-file or --insecure."""
    port: int = 8000
    """The port; 0: any free one."""
    slots: int = 8
    """Requests that are answered at a time."""
    length: int = 2048
    """Tokens of a slot: prompt, image tokens and answer. Limited by the model's positions."""
    queue: int = 64
    """Requests that may wait for a slot; further ones get status 429."""
    prefix_mib: int = 1024
    """MiB of device memory for the keys and values of earlier turns, so that no conversation is read twice."""
    api_key_file: Annotated[Path | None, tyro.conf.arg(help=KEY_HELP)] = None
    insecure: bool = False
    """Listens on another host than loopback without a key: everybody who reaches it can use it."""
    drain_seconds: float = 30.0
    """After a stop signal, answers that have begun may take this long."""
    served_model_name: str | None = None
    """The model's name in requests and answers. Default: the name of its folder."""
    compile_cache: Annotated[Path | None, tyro.conf.arg(help=CACHE_HELP)] = None

    def check(self) -> None:
        """Raises ConfigError for values out of range, and for a host that needs a key."""
        for flag, value, least, most in (
            ("--port", self.port, 0, 65_535),
            ("--slots", self.slots, 1, 1_024),
            ("--length", self.length, 16, 1 << 20),
            ("--queue", self.queue, 1, 10_000),
            ("--prefix-mib", self.prefix_mib, 0, 1 << 20),
            ("--drain-seconds", self.drain_seconds, 0, 3_600),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{flag} {value} is out of range: from {least} to {most}")
        if not (is_loopback(self.host) or self.api_key_file or self.insecure):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines; pass --api-key-file FILE, or --insecure to "
                "serve everybody without a key"
            )


def serve(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    *,
    serving: Flat[ServeFlags],
    mesh: MeshFlags = MeshFlags(),  # noqa: B008  (frozen)
    loading: Flat[LoadFlags],
) -> int:  # raises UserError for bad flags or a bad model
    """Serves a model: OpenAI's chat API under /v1, a chat page at /, /readyz, /metrics.

    A first stop signal (SIGTERM, Ctrl-C) refuses new requests and ends when the accepted ones are answered, a second
    one at once. Exit codes: 143 SIGTERM, 130 Ctrl-C, 1 the model failed, 2 bad usage, or the port is in use.

    Args:
        path: A LLaVA (a Hugging Face or original folder, or a run's workdir), a language model (a folder or GGUF), or
            tiny (built in).
    """
    serving.check()
    find_template(loading.template or "vicuna_v1")
    key = read_key(serving.api_key_file) if serving.api_key_file else None
    name = serving.served_model_name or path.absolute().name
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import sse_starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'llava_jax[serve]'") from None
    from llava_jax.serve.run import listen  # imports jax, which takes seconds

    with contextlib.closing(listen(serving.host, serving.port)) as sock:
        return _serve(sock, path, name, key, serving, mesh, loading)


def _serve(sock, path: Path, name: str, key: str | None, serving: ServeFlags, mesh: MeshFlags, loading: LoadFlags):
    from llava_jax.checkpoint.built_in import NOTE, built_in_model, model_location
    from llava_jax.serve.app import build_app
    from llava_jax.serve.examples import held_out_examples
    from llava_jax.serve.guard import LOOPBACK
    from llava_jax.serve.load import load_backend
    from llava_jax.serve.page_files import load_page
    from llava_jax.serve.run import run_server
    from llava_jax.serve.scheduler import Scheduler, Status

    path = model_location(path)
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    address = f"http://{host}:{sock.getsockname()[1]}"

    def load():
        folder = serving.compile_cache
        with compile_cache(folder, log_note) if folder else contextlib.nullcontext():
            return load_backend(
                path, mesh=(mesh.data, mesh.fsdp, mesh.tensor), slots=serving.slots, length=serving.length,
                prefix_bytes=serving.prefix_mib << 20, **loading.options(),
            )  # fmt: skip

    def on_ready() -> None:
        model, engine = scheduler.backend.model, scheduler.backend.engine
        step = "" if model.source_info.step is None else f", step {model.source_info.step}"
        log(f"serving {name}{step} at {address} ({serving.slots} slots of {engine.length} tokens)")

    scheduler = Scheduler(load, queue=serving.queue)
    # With a key, and where everybody is let in, any name may be used.
    hosts = (*LOOPBACK, host.lower()) if key is None and is_loopback(serving.host) else None
    page = load_page(held_out_examples(path, EXAMPLES), NOTE if path == built_in_model() else "")
    app = build_app(scheduler, name=name, key=key, hosts=hosts, page=page)
    log_note(f"loading {path}; {address}/readyz answers 200 when it is ready")
    signum = run_server(app, scheduler, sock, serving.drain_seconds, on_ready)
    if signum is not None:
        if scheduler.status is Status.DRAINING and not scheduler.stop(0.0):
            end_at_once(signum)  # the thread is still loading or compiling
        return 128 + signum
    raise scheduler.failure


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
