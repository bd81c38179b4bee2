"""Asks a chat model behind OpenAI's interface: OpenAI's own, or any server that speaks it (vLLM, llama.cpp, ...).

Every reply is paid for once, see `cache`. A request is tried TRIES times at most; one that was tried in vain is listed
and does not end the others. The key comes from an environment variable and goes nowhere but to the server.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llava_jax.errors import ConfigError, UserError, harmless
from llava_jax.llm_client.cache import Reply, ReplyCache
from llava_jax.llm_client.settings import LLMSettings, Messages, by_key, estimate_cost

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds between tries
GIVE_UP_AFTER = 10  # requests in a row that were tried in vain: there is no server, or it does not work
LATER = (408, 409, 425, 429)  # of the 4xx, those that may go well another time; as may every 5xx
SECRET = 8  # characters from which on a key is one, and not the word that a server without keys takes


class Unfinished(UserError):
    """Not all was asked. What was answered is in the cache."""


@dataclasses.dataclass(frozen=True)
class LLMResult:
    """`replies`: by the ids of the requests, in their order; `failed`: why those were tried in vain. `sent`: how many
    replies are new. `spent`: US dollars for all of them; `lost`: what tries without a reply may have cost besides."""

    replies: dict[str, Reply]
    failed: dict[str, str]
    sent: int
    spent: float
    lost: float


def ask_llm(
    requests: Mapping[str, Messages],
    terms: LLMSettings,
    cache: Path,
    *,
    say: Callable[[str], None] = print,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> LLMResult:
    """Asks for what is not in the cache. Equal requests are sent once and have one reply.

    say: told what it may cost before anything is sent. each: told how many requests of how many are done.

    Raises Unfinished where `terms.max_cost`, or a server that does not work, ended it; ConfigError for a key, model or
    server that cannot be used and for a cache that cannot be written; SystemExit(143) for SIGTERM; KeyboardInterrupt.
    """
    keys, messages = by_key(requests, terms)
    with ReplyCache(cache) as opened:
        for line in estimate_cost(requests, terms, opened.replies):
            say(line)
        if opened.torn:
            say(f"{cache}: {opened.torn} of its lines were cut off; what they answered is asked again")
        spent = sum(terms.cost_of(opened.replies[key], messages[key]) for key in messages if key in opened.replies)
        pending = {key: request for key, request in messages.items() if key not in opened.replies}
        asker = _Asker(terms, opened, spent)
        kept = lambda: f"{sum(k in opened.replies for k in messages):,} of {len(messages):,} replies are in {cache}"  # noqa: E731
        try:
            if pending:
                asyncio.run(asker.ask_all(pending, each))
        except asyncio.CancelledError:
            say(f"terminated; {kept()}; the same command continues")
            raise SystemExit(143) from None
        except KeyboardInterrupt:
            say(f"stopped; {kept()}; the same command continues")
            raise
        if asker.end is not None:
            raise type(asker.end)(f"{asker.end}; {kept()}")
        replies = {name: opened.replies[key] for name, key in keys.items() if key in opened.replies}
        failed = {name: asker.failed[key] for name, key in keys.items() if key in asker.failed}
        return LLMResult(replies, failed, len(pending) - len(asker.failed), asker.spent, asker.lost)


def read_key(terms: LLMSettings) -> str:
    """Raises ConfigError, which does not say the key, where there is none or it cannot be one."""
    key = os.environ.get(terms.key_variable, "").strip()
    if not key:
        raise ConfigError(f"no key: set the environment variable {terms.key_variable}, or another by --key-variable")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the environment variable {terms.key_variable} has spaces or special characters: not a key")
    return key


def seconds_before(number: int, key: str, asked_for: float = 0.0) -> float:
    """How long to wait before try `number` (2 and up) of the request `key`: twice as long each time, less up to a half,
    which the key and the number decide so that not all come back together; as long as the server asks for; but never
    longer than LONGEST_WAIT."""
    share = int.from_bytes(hashlib.sha256(f"{key} {number}".encode()).digest()[:4]) / 2**32
    return min(LONGEST_WAIT, max(FIRST_WAIT * 2 ** (number - 2) * (1 - share / 2), asked_for))


class _Fault(Exception):
    """A try without a reply. `is_final`: no other try or request would do better. `is_paid`: the server may have
    answered, and charge for it. `wait`: seconds that it asks for."""

    def __init__(self, why: str, *, is_final: bool = False, is_paid: bool = False, wait: float = 0.0):
        super().__init__(why)
        self.is_final, self.is_paid, self.wait = is_final, is_paid, wait


class _Asker:
    """One run. `end`: why nothing more is sent; what is under way then is waited for, as it is paid for.

    US dollars: `spent` for replies, `lost` at most for tries without one, `reserved` at most for those under way.
    """

    def __init__(self, terms: LLMSettings, cache: ReplyCache, spent: float):
        self.terms, self.cache = terms, cache
        self.spent, self.lost, self.reserved = spent, 0.0, 0.0
        self.under_way = self.done = self.failed_in_a_row = 0
        self.failed: dict[str, str] = {}
        self.end: UserError | None = None
        self.ended, self.returned = asyncio.Event(), asyncio.Event()

    async def ask_all(self, pending: dict[str, Messages], each: Callable[[int, int], None]) -> None:
        self.openai, self.key = _openai(), read_key(self.terms)
        with contextlib.suppress(ValueError, RuntimeError):  # raised where this is not the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        # Redirects could take the key elsewhere. Tries of the library's own would not be counted.
        self.client = self.openai.AsyncOpenAI(
            api_key=self.key, base_url=self.terms.url, timeout=self.terms.timeout, max_retries=0,
            http_client=self.openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )  # fmt: skip
        queue = iter(pending.items())  # each worker takes the next
        async with self.client, asyncio.TaskGroup() as workers:
            for _ in range(min(self.terms.concurrency, len(pending))):
                workers.create_task(self._work(queue, lambda: each(self.done, len(pending))))

    async def _work(self, queue: Iterator[tuple[str, Messages]], each: Callable[[], None]) -> None:
        for key, messages in queue:
            try:
                await self._answer(key, messages)
            except UserError as fault:  # no money, no access, no disk
                self._stop(fault)
            if self.end is not None:
                return
            self.done += 1
            each()

    async def _answer(self, key: str, messages: Messages) -> None:
        """Puts the reply into the cache, or the last fault into `failed`. Raises UserError for what ends everything."""
        worst = self.terms.worst_cost(messages)
        for number in range(1, TRIES + 1):
            await self._reserve(worst)
            if self.end is not None:
                return
            try:
                reply = await self._try(messages)
                self.spent += self.terms.cost_of(reply, messages)
                self.failed_in_a_row = 0
                return self.cache.add(key, reply)
            except _Fault as e:
                fault = e
                self.lost += worst if fault.is_paid else 0.0
            finally:
                self.under_way -= 1
                self.reserved = self.reserved - worst if self.under_way else 0.0  # 0.0: no error of rounding stays
                self.returned.set()
            if fault.is_final:
                raise ConfigError(f"{self.terms.url}: {fault}")
            if number < TRIES:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), seconds_before(number + 1, key, fault.wait))
        self.failed[key] = f"{fault} ({TRIES} tries)"
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= GIVE_UP_AFTER:
            raise Unfinished(f"{self.terms.url}: {self.failed_in_a_row} requests in a row failed, the last: {fault}")

    async def _reserve(self, worst: float) -> None:
        """Waits for replies that may turn out cheaper than feared. Raises Unfinished where there is not enough left."""
        cap = self.terms.max_cost
        is_too_much = lambda: cap is not None and self.spent + self.lost + self.reserved + worst > cap  # noqa: E731
        while is_too_much() and self.under_way and self.end is None:
            self.returned.clear()
            await self.returned.wait()
        if is_too_much() and self.end is None:
            raise Unfinished(
                f"--max-cost ${cap:g}: ${self.spent + self.lost:.4f} are spent, and the next request may cost "
                f"${worst:.4f}; the same command with a larger --max-cost continues"
            )
        if self.end is None:
            self.under_way += 1
            self.reserved += worst

    async def _try(self, messages: Messages) -> Reply:
        """Raises _Fault, whose words do not have the key."""
        openai, terms = self.openai, self.terms
        try:
            async with asyncio.timeout(terms.timeout):  # the library's is for each read, and a server may trickle
                completion = await self.client.chat.completions.create(
                    model=terms.model, messages=messages, **terms.parameters
                )
            return self._reply(completion)
        except openai.APIStatusError as e:
            body = e.body if isinstance(e.body, dict) else {"message": e.body}
            if body.get("code") == "content_filter":  # as Azure says that it does not answer this
                return Reply("", "content_filter", True, terms.model, 0, 0)
            if e.status_code == 401:  # servers repeat parts of the key here
                raise _Fault(f"401, the key in {terms.key_variable} is not accepted", is_final=True) from None
            is_final = e.status_code < 500 and e.status_code not in LATER or body.get("code") == "insufficient_quota"
            said = body.get("message") or ("redirects elsewhere" if e.status_code < 400 else "")
            why = f"{e.status_code} {self._shown(said)}".strip()
            raise _Fault(why, is_final=is_final, wait=_wait_asked_for(e.response.headers)) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _Fault(f"no answer within {terms.timeout:g} s", is_paid=True) from None
        except openai.APIConnectionError as e:
            cause = type(e.__cause__).__name__  # httpx's or httpx2's, as the library has it
            raise _Fault(f"connection lost ({cause})", is_paid=cause != "ConnectError") from None
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as e:
            raise _Fault(f"not an answer of a chat API ({type(e).__name__})", is_paid=True) from None

    def _reply(self, completion) -> Reply:
        """Raises what comes of a body that is not as it should be: the library does not check it."""
        choice, usage = completion.choices[0], completion.usage
        said, refusal = choice.message.content or "", getattr(choice.message, "refusal", None) or ""
        if not isinstance(said, str) or not isinstance(refusal, str):
            raise TypeError("no text")
        finish, counts = str(choice.finish_reason or ""), ("prompt_tokens", "completion_tokens")
        tokens = [n if type(n := getattr(usage, name, None)) is int and n >= 0 else None for name in counts]
        is_refused = bool(refusal) or finish == "content_filter" or not said.strip()
        return Reply(self._without_key(said or refusal), finish, is_refused, self._shown(completion.model), *tokens)

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "[key]") if len(self.key) >= SECRET else text

    def _shown(self, text: object) -> str:
        """What a server said, in one short line."""
        return " ".join(harmless(self._without_key(str(text))).split())[:200]

    def _stop(self, why: UserError) -> None:
        self.end = self.end or why
        self.ended.set()
        self.returned.set()


def _openai():
    try:
        import openai
    except ImportError:
        raise ConfigError("asking a chat API needs a package: pip install 'llava_jax[judge]'") from None
    return openai


def _wait_asked_for(headers: Mapping[str, str]) -> float:
    """Seconds; 0 for no Retry-After, or one that makes no sense."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0
