"""Runs the engine in a thread of its own: requests wait for slots in the order of their arrival, and each one ends.

    scheduler = Scheduler(load, queue=64)         # load() -> Backend, called in the thread
    scheduler.start()
    job = scheduler.admit(deliver)                # Refusal: not ready, the queue is full, or the server ends
    scheduler.submit(job, prompt, settings, n=2)
    ...                                           # deliver(event) is called in the thread
    scheduler.release(job)                        # always: it frees the slots of a job that has not ended

A job's last event is the last finished Token of its choices, or one Failure.
"""

import collections
import contextlib
import dataclasses
import enum
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llava_jax.api.model import LlavaModel
from llava_jax.errors import UserError
from llava_jax.inference.answer_memory import AnswerMemory
from llava_jax.inference.engine import GeneratedPiece, GenerationConfig, PieceWriter, Prompt, answer_limit
from llava_jax.inference.slot_engine import SlotEngine, SlotToken
from llava_jax.serve.metrics import Metrics
from llava_jax.serve.refusal import Refusal

FAULT = "the model failed to answer this request; others are not affected"
ENDING = "the server is shutting down"


class Status(enum.Enum):
    """What the scheduler does."""

    LOADING = "the model is being loaded and compiled"
    READY = "ready"
    DRAINING = ENDING
    FAILED = "the model cannot be loaded, or failed; see the server's log"


@dataclasses.dataclass(frozen=True, eq=False)
class Backend:
    """A loaded model with a compiled engine. memory: of earlier answers, shared with whoever makes the prompts."""

    model: LlavaModel
    engine: SlotEngine
    memory: AnswerMemory


class Token(NamedTuple):
    """A token of one choice of a job."""

    choice: int
    piece: GeneratedPiece
    logprob: float  # this and `top` as in SlotToken
    top: tuple[tuple[int, float], ...]
    cached_tokens: int  # of the prompt, which the engine knew already


class Failure(NamedTuple):
    """The end of a job without an answer."""

    refusal: Refusal


Deliver = Callable[[Token | Failure], None]


@dataclasses.dataclass(eq=False)
class Job:
    """An admitted request."""

    deliver: Deliver
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    prompt: Prompt | None = None
    settings: GenerationConfig | None = None
    wants_logprobs: bool = False
    open_choices: int = 0  # those without an end
    first_token: float | None = None  # time.monotonic()
    is_ended: bool = False


@dataclasses.dataclass(eq=False)
class _Choice:
    """One of the answers to a job, in a slot or waiting for one."""

    job: Job
    index: int
    writer: PieceWriter
    ids: list[int] = dataclasses.field(default_factory=list)
    cached_tokens: int = 0
    last_token: float = 0.0  # time.monotonic()


class Scheduler:
    """Use it from any thread. `status`, `backend` and `failure` are set by its own."""

    def __init__(self, load: Callable[[], Backend], *, queue: int, metrics: Metrics | None = None):
        """queue: jobs that may wait for a slot, those whose prompt is being prepared included."""
        self.status, self.backend, self.failure = Status.LOADING, None, None
        self.metrics = metrics or Metrics()
        self._load, self._queue_limit = load, queue
        self._changed = threading.Condition()  # guards the next four
        self._jobs: set[Job] = set()  # admitted and not released
        self._waiting: set[Job] = set()  # those of them without a slot
        self._inbox: list[Callable[[], None]] = []  # work for the thread
        self._is_stopping = False
        self._choices: collections.deque[_Choice] = collections.deque()  # without a slot; only the thread uses it
        self._running: dict[int, _Choice] = {}  # by slot; only the thread uses it
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.metrics.watch_queue(lambda: len(self._jobs) - len(self._waiting), lambda: len(self._waiting))

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Starts the thread, which loads the model. on_change: called in the thread when `status` becomes READY or
        FAILED, where `failure` is the reason."""
        self._on_change = on_change
        self._thread.start()

    def admit(self, deliver: Deliver) -> Job:
        """A place in the queue. Raises Refusal: 503 while the server is not ready, 429 if the queue is full."""
        with self._changed:
            if self.status is not Status.READY:
                raise Refusal(503, self.status.value, code="not_ready", retry_after=5)
            if len(self._waiting) >= self._queue_limit:
                seconds = 1 + len(self._waiting) // len(self.backend.engine.conversations)
                message = f"{len(self._waiting)} requests are waiting, which is the limit; try again later"
                raise Refusal(429, message, code="queue_full", retry_after=seconds)
            job = Job(deliver)
            self._jobs.add(job)
            self._waiting.add(job)
            return job

    def submit(
        self, job: Job, prompt: Prompt, settings: GenerationConfig, n: int = 1, wants_logprobs: bool = False
    ) -> None:
        """Queues a job with `n` answers to its prompt. Raises as `answer_limit`."""
        engine, tokenizer = self.backend.engine, self.backend.model.tokenizer
        limit = answer_limit(engine.model.config, "the prompt", prompt, settings.max_new_tokens, engine.length)
        choices = [_Choice(job, i, PieceWriter(settings, tokenizer, limit)) for i in range(n)]
        job.prompt, job.settings, job.wants_logprobs, job.open_choices = prompt, settings, wants_logprobs, n
        self._send(lambda: self._choices.extend([] if job.is_ended else choices))

    def release(self, job: Job) -> None:
        """Frees what the job still holds: its place in the queue, and its slots within one step."""
        with self._changed:
            self._jobs.discard(job)
            self._waiting.discard(job)
            self._changed.notify_all()
        self._send(lambda: self._abort(job))

    def drain(self, seconds: float) -> bool:
        """Refuses new jobs, and returns when all have ended, or after `seconds`. Returns whether all have."""
        with self._changed:
            if self.status is not Status.FAILED:
                self.status = Status.DRAINING
            return self._changed.wait_for(lambda: not self._jobs, seconds)

    def stop(self, seconds: float = 5.0) -> bool:
        """Ends the thread; jobs that have not ended get a Failure. Returns whether it has ended within `seconds`."""
        with self._changed:
            if self.status is not Status.FAILED:
                self.status = Status.DRAINING
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _send(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(work)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self.backend = self._load()
        except Exception as error:
            self._fail(error)
            return
        self.metrics.watch_engine(self.backend.engine)
        with self._changed:
            if self.status is Status.LOADING:
                self.status = Status.READY
        self._on_change()
        work: collections.deque[Callable[[], None]] = collections.deque()
        is_usable = True
        while is_usable:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._inbox or work or self._running or self._choices or self._is_stopping
                )
                work.extend(self._inbox)
                self._inbox.clear()
                if self._is_stopping:
                    break
            is_usable = self._step(work)
        self._end_all(Refusal(503, ENDING, code="shutting_down"))

    def _step(self, work: collections.deque[Callable[[], None]]) -> bool:
        """Does the work, fills free slots and advances the engine. Returns False if the engine cannot be used again."""
        engine = self.backend.engine
        try:
            while work:
                work.popleft()()
            self._fill_slots()
            for token in engine.advance():
                if token.slot in self._running:  # not one of a choice that has just failed
                    self._deliver(token)
            return True
        except Exception as error:  # a fault of the engine that it could not attribute to a request
            logging.getLogger(__name__).error("the engine failed", exc_info=error)
        try:
            for job in {choice.job for choice in self._running.values()}:
                self._end(job, Refusal(500, FAULT, code="engine_fault"))
            for slot in [slot for slot, conversation in enumerate(engine.conversations) if conversation]:
                engine.close(slot)
            return True
        except Exception as error:
            self._fail(error)
            return False

    def _fill_slots(self) -> None:
        """Further choices of a job wait for the first token of its first one: then their prompt is cached."""
        engine = self.backend.engine
        while self._choices and engine.free_slots:
            choice = self._choices[0]
            job = choice.job
            if choice.index and job.first_token is None and any(c.job is job for c in self._running.values()):
                return
            self._choices.popleft()
            with self._changed:
                self._waiting.discard(job)
            try:
                slot = engine.open(job.prompt._replace(row=choice.index), job.settings, job.wants_logprobs)
            except Exception:
                self._end(job, Refusal(500, FAULT, code="engine_fault"))
                raise
            choice.cached_tokens = engine.conversations[slot].read
            self._running[slot] = choice

    def _deliver(self, token: SlotToken) -> None:
        choice = self._running[token.slot]
        job, now = choice.job, time.monotonic()
        if token.fault:
            logging.getLogger(__name__).error("a request failed: %s", token.fault)
            self._end(job, Refusal(500, FAULT, code="engine_fault"))
            return
        if job.first_token is None:
            job.first_token = now
            self.metrics.first_token(now - job.arrived, len(job.prompt.tokens))
        self.metrics.token(now - choice.last_token if choice.ids else None)
        choice.ids.append(token.id)
        choice.last_token = now
        piece = choice.writer.piece(token.id)
        if piece.finish:
            self._close(token.slot)
            job.open_choices -= 1
            job.is_ended = job.open_choices == 0
            if token.id in job.settings.stop_ids:
                self.backend.memory.add(np.asarray(job.prompt.tokens), choice.ids)
            self.metrics.choice_end(piece.finish)
            if job.is_ended:
                self.metrics.job_end(now - job.arrived)
        self._notify(job, Token(choice.index, piece, token.logprob, token.top, choice.cached_tokens))

    @staticmethod
    def _notify(job: Job, event: Token | Failure) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop of the receiver has ended
            job.deliver(event)

    def _close(self, slot: int) -> None:
        del self._running[slot]
        self.backend.engine.close(slot)

    def _abort(self, job: Job) -> None:
        """Ends a released job without an event: nobody listens."""
        if not job.is_ended:
            job.is_ended = True
            self.metrics.choice_end("abort")
            self._remove(job)

    def _end(self, job: Job, refusal: Refusal) -> None:
        """Ends a job by a Failure."""
        if not job.is_ended:
            job.is_ended = True
            self.metrics.choice_end("error")
            self._notify(job, Failure(refusal))
            self._remove(job)

    def _remove(self, job: Job) -> None:
        self._choices = collections.deque(choice for choice in self._choices if choice.job is not job)
        for slot in [slot for slot, choice in self._running.items() if choice.job is job]:
            self._close(slot)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, UserError):
            logging.getLogger(__name__).error("the model cannot be used", exc_info=error)
        with self._changed:
            self.status, self.failure = Status.FAILED, error
            self._changed.notify_all()
        self._running.clear()
        self._end_all(Refusal(503, Status.FAILED.value, code="engine_fault"))
        self._on_change()

    def _end_all(self, refusal: Refusal) -> None:
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            self._end(job, refusal)
