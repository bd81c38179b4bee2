"""A tiny model with a compiled engine, and a running server of it, once for all tests of the folder."""

import base64
import contextlib
import io
import socket
import threading
import time

import jax
import openai
import pytest
from PIL import Image

from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.inference.answer_memory import AnswerMemory
from llava_jax.inference.decode import decode_view
from llava_jax.inference.slot_engine import SlotEngine
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.runtime.mesh import make_mesh
from llava_jax.serve.app import build_app
from llava_jax.serve.guard import LOOPBACK
from llava_jax.serve.run import listen, make_server
from llava_jax.serve.scheduler import Backend, Scheduler, Status
from tests.fixtures.tiny_models import random_params, uneven

SLOTS, LENGTH, QUEUE, NAME = 4, 128, 8, "tiny-llava"
CONFIG = uneven(llm=dict(vocab_size=512, max_positions=LENGTH))


def make_backend(params: dict | None = None) -> Backend:
    """A backend with random parameters. Its programs are compiled when they are first needed."""
    params = random_params(CONFIG, std=0.2) if params is None else params
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    model = LlavaModel(CONFIG, params, mesh, open_tokenizer("tiny"), "vicuna_v1", "pad", 511)
    view = decode_view(nested({path: jax.numpy.asarray(x) for path, x in params.items()}))
    engine = SlotEngine(Llava(CONFIG), view, mesh, slots=SLOTS, length=LENGTH)
    return Backend(model, engine, AnswerMemory(model.tokenizer))


@contextlib.contextmanager
def running_scheduler(backend: Backend, queue: int = QUEUE):
    """A scheduler that is ready, and ends with the context."""
    scheduler, is_ready = Scheduler(lambda: backend, queue=queue), threading.Event()
    scheduler.start(is_ready.set)
    assert is_ready.wait(10) and scheduler.status is Status.READY
    try:
        yield scheduler
    finally:
        assert scheduler.stop(10)


class Site:
    """A running server."""

    def __init__(self, scheduler: Scheduler, port: int):
        self.scheduler, self.port, self.url = scheduler, port, f"http://127.0.0.1:{port}"

    @property
    def engine(self) -> SlotEngine:
        return self.scheduler.backend.engine

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def wait_until_idle(self, seconds: float = 5.0) -> None:
        """Raises AssertionError if a slot or a place in the queue is still in use after `seconds`."""
        end = time.monotonic() + seconds
        while self.scheduler._jobs or self.engine.free_slots < SLOTS:
            assert time.monotonic() < end, "a job or a slot is left"
            time.sleep(0.01)


@contextlib.contextmanager
def running_site(scheduler: Scheduler, key: str | None = None, hosts=LOOPBACK):
    """The server of a scheduler, in a thread of its own."""
    sock = listen("127.0.0.1", 0)
    server = make_server(build_app(scheduler, name=NAME, key=key, hosts=hosts))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    try:
        yield Site(scheduler, sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def backend() -> Backend:
    return make_backend()


@pytest.fixture(scope="session")
def scheduler(backend):
    with running_scheduler(backend) as scheduler:
        yield scheduler


@pytest.fixture(scope="session")
def site(scheduler):
    with running_site(scheduler) as site:
        yield site


@pytest.fixture
def client(site) -> openai.OpenAI:
    return site.client()


def data_uri(color: tuple[int, int, int] = (200, 30, 30), kind: str = "PNG") -> str:
    """An image of one color."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def question(text: str, *images: str) -> list[dict]:
    """Messages with one question."""
    pictures = [{"type": "image_url", "image_url": {"url": image, "detail": "low"}} for image in images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def send_raw(port: int, data: bytes, seconds: float = 5.0) -> bytes:
    """What the server answers to bytes, until it closes the connection or is silent for `seconds`."""
    with socket.socket() as connection:
        connection.settimeout(seconds)
        connection.connect(("127.0.0.1", port))
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
    return answer
