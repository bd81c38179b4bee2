"""Sends requests through OpenAI's Batch API: half the price, replies within 24 hours, in any order.

Every batch is in the ledger before it is sent (see `cache`) and carries its name there as metadata. So a killed run
finds a batch again whose id it could not store, and sends nothing twice that the server may still answer. A batch that
expires or is cancelled bills what it has finished: these replies are kept, and only the others are sent again.
"""

import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_jax.errors import ConfigError
from llava_jax.llm_client.cache import BatchRecord, Reply, ReplyCache
from llava_jax.llm_client.client import RETRYABLE, TRIES, LLMResult, Unfinished, retry_delay
from llava_jax.llm_client.response import import_openai, one_line, read_api_key, reply_of
from llava_jax.llm_client.settings import (
    BATCH_PRICE,
    LLMSettings,
    Messages,
    costs_so_far,
    deduplicate,
    estimate_cost,
)

MAX_LINES, MAX_BYTES = 50_000, 200_000_000  # of the file of a batch
POLL = 30.0  # seconds between two questions about the live batches
FAILED_BATCHES = 3  # in a row: the server refuses what is sent
ENDED = ("completed", "failed", "expired", "cancelled")
NAME = "llava_jax"  # the key of a batch's name in its metadata


def ask_batches(
    requests: Mapping[str, Messages],
    settings: LLMSettings,
    cache: Path,
    *,
    spent_before: float = 0.0,
    log: Callable[[str], None] = print,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LLMResult:
    """Sends the requests that are not in the cache in batches, waits for them, and sends again what has no reply, up to
    TRIES times. Arguments, result and errors are those of `ask_llm`.

    A stop signal leaves the batches running; the next call with the same cache waits for them.
    """
    keys, messages = deduplicate(requests, settings)
    with ReplyCache(cache) as reply_cache:
        for line in estimate_cost(requests, settings, reply_cache.replies, is_batch=True):
            log(line)
        new = [key for key in messages if key not in reply_cache.replies]
        run = _BatchRun(settings, reply_cache, messages, spent_before, log, on_progress)
        if new:
            run.finish()
        spent, lost = costs_so_far(reply_cache.ledger, settings, messages)
        replies = {name: reply_cache.replies[key] for name, key in keys.items() if key in reply_cache.replies}
        failed = {name: run.reasons[key] for name, key in keys.items() if key not in reply_cache.replies}
        return LLMResult(replies, failed, sum(key in reply_cache.replies for key in new), spent, lost)


class _BatchRun:
    """The batches of one call. failures: by key, tries that gave no reply. reasons: of the last of them."""

    def __init__(
        self,
        settings: LLMSettings,
        cache: ReplyCache,
        messages: dict[str, Messages],
        spent_before: float,
        log: Callable[[str], None],
        on_progress: Callable[[int, int], None],
    ):
        self.settings, self.cache, self.messages, self.spent_before = settings, cache, messages, spent_before
        self.log, self.on_progress = log, on_progress
        self.failures: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.failed_in_a_row = 0

    def finish(self) -> None:
        """Returns when every request has a reply or has failed. Raises as `ask_batches` does."""
        self.openai, self.key = import_openai(), read_api_key(self.settings)
        client = self.openai.OpenAI(
            api_key=self.key, base_url=self.settings.url, timeout=self.settings.timeout, max_retries=0,
            http_client=self.openai.DefaultHttpxClient(follow_redirects=False),  # the key stays with the server
        )  # fmt: skip
        with client as self.client:
            self._adopt()
            try:
                while True:
                    self._submit_pending()
                    if not (live := self._live()):
                        return
                    if not any([self._collect(name, batch) for name, batch in live.items()]):
                        time.sleep(POLL)
            except KeyboardInterrupt:
                batches = len(self._live())
                self.log(f"stopped; {batches} batches are at the server; run the same command again to collect them")
                raise

    def _live(self) -> dict[str, BatchRecord]:
        """The batches at the server that hold requests of this call."""
        live = self.cache.ledger.live_batches()
        return {name: batch for name, batch in live.items() if any(key in self.messages for key in batch.keys)}

    def _adopt(self) -> None:
        """Finds batches whose id is not in the ledger, because the process was killed while it sent them."""
        for name, batch in self._live().items():
            if batch.id is None:
                self._set_id(name, self._id_of(name))

    def _set_id(self, name: str, batch_id: str | None) -> None:
        change = {"batch_ended": "not accepted"} if batch_id is None else {"batch_id": batch_id}
        self.cache.set_batch(name, **change)

    def _id_of(self, name: str) -> str | None:
        """The id of the batch with this name in its metadata; None if the server has none."""
        batches = self._call("the list of batches", lambda: list(self.client.batches.list(limit=100)))
        return next((batch.id for batch in batches if (batch.metadata or {}).get(NAME) == name), None)

    # --------------------------------------------------------------------------------------------- sending

    def _submit_pending(self) -> None:
        waiting = {key for batch in self._live().values() for key in batch.keys}
        pending = [
            key
            for key in self.messages
            if key not in self.cache.replies and key not in waiting and self.failures[key] < TRIES
        ]
        while pending:
            if not (lines := dict(self._lines_within_limits(pending))):
                if self._live():  # their replies will cost less than reserved
                    return
                cost = BATCH_PRICE * self.settings.worst_cost(self.messages[pending[0]])
                raise Unfinished(
                    f"--max-cost ${self.settings.max_cost:g}: ${self._spent():.4f} are spent, and the next request may "
                    f"cost ${cost:.4f}; run the same command with a larger --max-cost to resume; "
                    f"{sum(key in self.cache.replies for key in self.messages):,} of {len(self.messages):,} replies "
                    f"are in {self.cache.path}"
                )
            self._submit(lines)
            pending = pending[len(lines) :]

    def _spent(self) -> float:
        return self.spent_before + sum(costs_so_far(self.cache.ledger, self.settings, self.messages))

    def _lines_within_limits(self, pending: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """(key, line of the file) for the first requests that fit into a batch and below the cost limit."""
        settings = self.settings
        worst = lambda key: BATCH_PRICE * settings.worst_cost(self.messages[key])  # noqa: E731
        reserved = sum(worst(key) for batch in self._live().values() for key in batch.keys if key in self.messages)
        cost, size = self._spent() + reserved, 0
        for key in pending[:MAX_LINES]:
            body = {"model": settings.model, "messages": list(self.messages[key]), **settings.parameters}
            request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            line = json.dumps(request).encode() + b"\n"
            cost, size = cost + worst(key), size + len(line)
            if size > MAX_BYTES or settings.max_cost is not None and cost > settings.max_cost:
                return
            yield key, line

    def _submit(self, lines: Mapping[str, bytes]) -> None:
        name = secrets.token_hex(8)
        upload = (f"{name}.jsonl", b"".join(lines.values()))
        file = self._call("an upload", lambda: self.client.files.create(file=upload, purpose="batch"))
        self.cache.add_batch(name, {key: self.messages[key][-1]["content"] for key in lines})
        batch_id = self._call("a batch", lambda: self._create(file.id, name), on_retry=lambda: self._id_of(name))
        self._set_id(name, batch_id)
        self.log(f"batch {batch_id}: {len(lines):,} requests sent")

    def _create(self, file_id: str, name: str) -> str:
        return self.client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata={NAME: name}
        ).id

    def _call(self, purpose: str, request: Callable[[], Any], on_retry: Callable[[], Any] = lambda: None) -> Any:
        """The result of a request that costs nothing, tried up to TRIES times. on_retry: called before another try; its
        result is used if it is not None: a try without an answer may have worked."""
        openai = self.openai
        for number in range(1, TRIES + 1):
            if number > 1:
                time.sleep(retry_delay(number, purpose))
                if (result := on_retry()) is not None:
                    return result
            try:
                return request()
            except openai.APIStatusError as e:
                if e.status_code == 401:
                    reason = f"401, the key in {self.settings.key_variable} is not accepted"
                    raise ConfigError(f"{self.settings.url}: {reason}") from None
                body = e.body if isinstance(e.body, dict) else {"message": e.body}
                fault = f"{e.status_code} {one_line(body.get('message') or '', self.key)}".strip()
                if e.status_code < 500 and e.status_code not in RETRYABLE:
                    raise ConfigError(f"{self.settings.url}: {purpose}: {fault}") from None
            except (openai.APIError, ValueError, TypeError, AttributeError) as e:
                fault = type(e).__name__
        raise Unfinished(f"{self.settings.url}: {purpose}: {fault} ({TRIES} tries); run the same command to resume")

    # --------------------------------------------------------------------------------------------- collecting

    def _collect(self, name: str, record: BatchRecord) -> bool:
        """Stores the replies of a batch if it has ended. Returns whether it has. Raises Unfinished if batches fail."""
        batch = self._call(f"batch {record.id}", lambda: self.client.batches.retrieve(record.id))
        if batch.status not in ENDED:
            done = sum(key in self.cache.replies for key in self.messages)
            self.on_progress(done + getattr(batch.request_counts, "completed", 0), len(self.messages))
            return False
        reasons = dict.fromkeys(record.keys, f"batch {batch.status}")
        if batch.status == "failed":
            data = getattr(batch.errors, "data", None) or []
            message = one_line(data[0].message if data else "no reason given", self.key)
            reasons = dict.fromkeys(record.keys, f"batch failed: {message}")
        replies, unparsed = {}, []
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = self._call("a result file", lambda file_id=file_id: self.client.files.content(file_id).read())
            for line in content.split(b"\n"):
                if (result := self._parse_line(line, reasons)) is not None:
                    key, reply = result
                    replies |= {} if reply is None else {key: reply}
                    unparsed += [key] if reply is None else []
        self.cache.add_batch_replies({key: reply for key, reply in replies.items() if key not in self.cache.replies})
        for key in unparsed:  # answered, and so charged, with something that cannot be read
            self.cache.add_sent(key, "")
        self.cache.set_batch(name, batch_ended=batch.status)
        missing = [key for key in record.keys if key not in self.cache.replies]
        for key in missing:
            self.failures[key] += 1
            self.reasons[key] = f"{reasons[key]} ({self.failures[key]} tries)"
        again = f", {len(missing):,} to send again" if missing else ""
        self.log(f"batch {batch.id}: {batch.status}, {len(replies):,} replies{again}")
        self._count_failed(batch.status == "failed", next(iter(reasons.values())))
        self.on_progress(sum(key in self.cache.replies for key in self.messages), len(self.messages))
        return True

    def _count_failed(self, is_failed: bool, reason: str) -> None:
        """Waits after a failed batch: the server may have too many requests. Raises Unfinished after several."""
        self.failed_in_a_row = self.failed_in_a_row + 1 if is_failed else 0
        if self.failed_in_a_row >= FAILED_BATCHES:
            raise Unfinished(f"{self.settings.url}: {self.failed_in_a_row} batches in a row failed, the last: {reason}")
        if is_failed:
            time.sleep(POLL)

    def _parse_line(self, line: bytes, reasons: dict[str, str]) -> tuple[str, Reply | None] | None:
        """(key, reply) of a line of a result file; (key, None) for a response that cannot be read. None for a request
        without a response: its reason is stored in `reasons`."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
            result = json.loads(line)
            key, response = result["custom_id"], result.get("response") or {}
            if key not in reasons:
                return None
            body = response.get("body") or {}
            error = result.get("error") or body.get("error") or {}
            if error.get("code") == "content_filter":
                return key, Reply("", "content_filter", True, self.settings.model, 0, 0, True)
            if response.get("status_code") != 200:
                reasons[key] = one_line(f"{response.get('status_code') or ''} {error.get('message') or ''}", self.key)
                return None
            try:
                return key, reply_of(self.openai.types.chat.ChatCompletion.construct(**body), self.key, is_batch=True)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                reasons[key] = "not a chat API response"
                return key, None
        return None
