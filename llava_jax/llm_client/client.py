"""Sends requests to a chat API: OpenAI's, or any server with the same API (vLLM, llama.cpp, ...).

Every reply is paid for once, see `cache`. A request is tried up to TRIES times; failed requests are listed and do not
stop the others. The API key comes from an environment variable and is sent only to the server.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llava_jax.errors import ConfigError, UserError
from llava_jax.llm_client.cache import Reply, ReplyCache
from llava_jax.llm_client.response import import_openai, one_line, read_api_key, reply_of, retry_after
from llava_jax.llm_client.settings import LLMSettings, Messages, costs_so_far, deduplicate, estimate_cost
from llava_jax.output.interrupts import Interrupt, stop_signals

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds between tries
GIVE_UP_AFTER = 10  # failed requests in a row: the server does not work
RETRYABLE = (408, 409, 425, 429)  # the 4xx codes that may succeed later; all 5xx may too


class Unfinished(UserError):
    """The run stopped early. The replies so far are in the cache."""


@dataclasses.dataclass(frozen=True)
class LLMResult:
    """The result of `ask_llm`."""

    replies: dict[str, Reply]  # by request id, in the order of the requests
    failed: dict[str, str]  # reasons by request id
    new_count: int  # replies that were not cached
    spent: float  # US dollars for all replies
    lost: float  # US dollars that tries without a reply may have cost


def ask_llm(
    requests: Mapping[str, Messages],
    settings: LLMSettings,
    cache: Path,
    *,
    spent_before: float = 0.0,
    log: Callable[[str], None] = print,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LLMResult:
    """Sends the requests that are not in the cache; equal ones only once.

    spent_before: US dollars that other requests of the same run have cost, which count towards `settings.max_cost`.
    log: called with lines of text, first with the estimated cost before anything is sent. on_progress: called with the
    number of finished requests and their total.

    Raises Unfinished if `settings.max_cost` is reached or the server does not work; ConfigError for an unusable key,
    model, server or cache, and for requests that are in a batch; Interrupt for a stop signal.
    """
    keys, messages = deduplicate(requests, settings)
    with ReplyCache(cache) as reply_cache:
        for line in estimate_cost(requests, settings, reply_cache.replies):
            log(line)
        if reply_cache.ledger.torn:
            log(f"{cache}: ignored {reply_cache.ledger.torn} torn lines; their requests are sent again")
        cached = reply_cache.replies
        pending = {key: request for key, request in messages.items() if key not in cached}
        for batch in reply_cache.ledger.live_batches().values():
            if in_batch := pending.keys() & set(batch.keys):
                raise ConfigError(f"{cache}: {len(in_batch):,} of the requests are in a batch; pass --batch")
        spent, lost = costs_so_far(reply_cache.ledger, settings, messages)
        sender = _Sender(settings, reply_cache, spent, lost, spent_before)
        progress = lambda: f"{sum(key in cached for key in messages):,} of {len(messages):,} replies are in {cache}"  # noqa: E731
        try:
            if pending:
                asyncio.run(sender.run(pending, on_progress))
        except asyncio.CancelledError:
            log(f"stopped; {progress()}; run the same command again to resume")
            raise Interrupt(sender.signalled) from None
        if sender.stop_reason is not None:
            raise type(sender.stop_reason)(f"{sender.stop_reason}; {progress()}")
        replies = {name: cached[key] for name, key in keys.items() if key in cached}
        failed = {name: sender.failed[key] for name, key in keys.items() if key in sender.failed}
        return LLMResult(replies, failed, len(pending) - len(sender.failed), sender.spent, sender.lost)


def retry_delay(number: int, key: str, retry_after: float = 0.0) -> float:
    """Seconds before try `number` (2 and up) of the request `key`: doubled for each try, minus a jitter of up to half
    that depends on both; at least the server's `retry_after`, at most LONGEST_WAIT."""
    fraction = int.from_bytes(hashlib.sha256(f"{key} {number}".encode()).digest()[:4]) / 2**32
    return min(LONGEST_WAIT, max(FIRST_WAIT * 2 ** (number - 2) * (1 - fraction / 2), retry_after))


class _FailedTry(Exception):
    """A try without a reply. is_final: no further try or request can succeed. is_last: no further try of this request
    can. is_paid: the server may charge for it. wait: the server's Retry-After in seconds."""

    def __init__(self, message: str, *, is_final=False, is_last=False, is_paid=False, wait: float = 0.0):
        super().__init__(message)
        self.is_final, self.is_last, self.is_paid, self.wait = is_final, is_last, is_paid, wait


class _Sender:
    """Sends the requests of one run.

    stop_reason: if set, nothing more is sent; requests in flight are awaited, because they are paid for. signalled: the
    stop signal that cancelled `run`. In US dollars: spent: for replies. lost: maximum for tries without a reply.
    reserved: maximum for requests in flight.
    """

    def __init__(self, settings: LLMSettings, cache: ReplyCache, spent: float, lost: float, spent_before: float):
        self.settings, self.cache, self.spent_before = settings, cache, spent_before
        self.spent, self.lost, self.reserved = spent, lost, 0.0
        self.in_flight = self.done = self.failed_in_a_row = 0
        self.failed: dict[str, str] = {}
        self.signalled: int = signal.SIGTERM
        self.stop_reason: UserError | None = None
        self.stopped, self.try_ended = asyncio.Event(), asyncio.Event()

    async def run(self, pending: dict[str, Messages], on_progress: Callable[[int, int], None]) -> None:
        self.openai, self.key = import_openai(), read_api_key(self.settings)
        # A redirect could send the key to another server. The library's own retries would not be counted.
        self.client = self.openai.AsyncOpenAI(
            api_key=self.key, base_url=self.settings.url, timeout=self.settings.timeout, max_retries=0,
            http_client=self.openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )  # fmt: skip
        queue = iter(pending.items())  # shared by all workers
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(signum: int) -> None:  # not an exception: it could arrive in any task
            self.signalled = signum
            loop.call_soon_threadsafe(task.cancel)

        with stop_signals(stop):
            async with self.client, asyncio.TaskGroup() as workers:
                for _ in range(min(self.settings.concurrency, len(pending))):
                    workers.create_task(self._worker(queue, lambda: on_progress(self.done, len(pending))))

    async def _worker(self, queue: Iterator[tuple[str, Messages]], on_progress: Callable[[], None]) -> None:
        for key, messages in queue:
            try:
                await self._request(key, messages)
            except UserError as fault:  # cost limit, access, disk
                self._stop(fault)
            if self.stop_reason is not None:
                return
            self.done += 1
            on_progress()

    async def _request(self, key: str, messages: Messages) -> None:
        """Adds the reply to the cache, or the last error to `failed`. Raises UserError if the run must stop."""
        worst_cost = self.settings.worst_cost(messages)
        for number in range(1, TRIES + 1):
            await self._reserve(worst_cost)
            if self.stop_reason is not None:
                return
            try:
                self.cache.add_sent(key, messages[-1]["content"])
                reply = await self._try(messages)
                self.spent += self.settings.cost_of(reply, messages)
                self.failed_in_a_row = 0
                return self.cache.add(key, reply)
            except _FailedTry as e:
                fault = e
                if fault.is_paid:
                    self.lost += worst_cost
                else:
                    self.cache.add_unpaid(key, str(fault))
            finally:
                self.in_flight -= 1
                self.reserved = self.reserved - worst_cost if self.in_flight else 0.0  # 0.0: drops rounding errors
                self.try_ended.set()
            if fault.is_final:
                raise ConfigError(f"{self.settings.url}: {fault}")
            if fault.is_last:
                break
            if number < TRIES:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), retry_delay(number + 1, key, fault.wait))
        self.failed[key] = f"{fault} ({number} tries)" if number > 1 else str(fault)
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= GIVE_UP_AFTER:
            raise Unfinished(f"{self.settings.url}: {self.failed_in_a_row} requests in a row failed, the last: {fault}")

    async def _reserve(self, worst_cost: float) -> None:
        """Reserves the worst cost; waits for requests in flight if needed. Raises Unfinished at the limit."""
        limit = self.settings.max_cost
        so_far = lambda: self.spent_before + self.spent + self.lost  # noqa: E731
        exceeds_limit = lambda: limit is not None and so_far() + self.reserved + worst_cost > limit  # noqa: E731
        while exceeds_limit() and self.in_flight and self.stop_reason is None:
            self.try_ended.clear()
            await self.try_ended.wait()
        if exceeds_limit() and self.stop_reason is None:
            raise Unfinished(
                f"--max-cost ${limit:g}: ${so_far():.4f} are spent, and the next request may cost "
                f"${worst_cost:.4f}; run the same command with a larger --max-cost to resume"
            )
        if self.stop_reason is None:
            self.in_flight += 1
            self.reserved += worst_cost

    async def _try(self, messages: Messages) -> Reply:
        """Sends a request once. Raises _FailedTry, without the key in its message."""
        openai, settings = self.openai, self.settings
        try:
            async with asyncio.timeout(settings.timeout):  # the library's timeout is per read; a server may trickle
                completion = await self.client.chat.completions.create(
                    model=settings.model, messages=messages, **settings.parameters
                )
            return reply_of(completion, self.key)
        except openai.APIStatusError as e:
            body = e.body if isinstance(e.body, dict) else {"message": e.body}
            if body.get("code") == "content_filter":  # Azure's refusal
                return Reply("", "content_filter", True, settings.model, 0, 0)
            if e.status_code == 401:  # servers repeat parts of the key in this message
                raise _FailedTry(f"401, the key in {settings.key_variable} is not accepted", is_final=True) from None
            is_final = e.status_code < 500 and e.status_code not in RETRYABLE
            is_final = is_final or body.get("code") == "insufficient_quota"
            message = body.get("message") or ("redirects to another URL" if e.status_code < 400 else "")
            reason = f"{e.status_code} {one_line(message, self.key)}".strip()
            if body.get("code") == "context_length_exceeded":  # of this request; others may be shorter
                raise _FailedTry(reason, is_last=True) from None
            raise _FailedTry(reason, is_final=is_final, wait=retry_after(e.response.headers)) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _FailedTry(f"no answer within {settings.timeout:g} s", is_paid=True) from None
        except openai.APIConnectionError as e:
            cause = type(e.__cause__).__name__  # of httpx or httpx2, whichever the library uses
            raise _FailedTry(f"connection lost ({cause})", is_paid=cause != "ConnectError") from None
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as e:
            raise _FailedTry(f"not a chat API response ({type(e).__name__})", is_paid=True) from None

    def _stop(self, reason: UserError) -> None:
        self.stop_reason = self.stop_reason or reason
        self.stopped.set()
        self.try_ended.set()
