"""The settings of a chat API, and the cost of requests."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from llava_jax.errors import ConfigError
from llava_jax.llm_client.cache import Ledger, Reply, cache_key

Messages = Sequence[Mapping[str, str]]  # of {"role": system | user | assistant, "content": text}

OPENAI_URL = "https://api.openai.com/v1"
URL = r"(?a)https?://[\w.:\[\]-]+(/[\w./~-]*)?"  # without user, password and query, which may contain a key
CHARS_PER_TOKEN = 4  # roughly, in English; the tokenizers of these models are not available
BATCH_PRICE = 0.5  # of OpenAI's Batch API, as a share of the price of direct requests
TOKENS_PER_MESSAGE = 16  # upper bound, for the role and separators


@dataclasses.dataclass(frozen=True)
class LLMSettings:
    """The settings of a chat API. Raises ConfigError for values out of range.

    Args:
        model: The model's name on the server.
        base_url: The URL of the server, including /v1. Default: $OPENAI_BASE_URL, else OpenAI's.
        key_variable: The environment variable with the API key. For a server without keys any value will do.
        temperature: The sampling temperature; 0: greedy.
        max_tokens: The maximum number of tokens of an answer.
        reasoning: For reasoning models (raise --max-tokens): sends max_completion_tokens, no temperature.
        concurrency: The number of concurrent requests.
        timeout: Seconds until a request without an answer is retried.
        input_price: US dollars per million input tokens.
        output_price: US dollars per million output tokens.
        max_cost: The limit in US dollars, cached replies included. No request is sent whose worst case exceeds it.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512
    reasoning: bool = False
    concurrency: int = 8
    timeout: float = 120.0
    input_price: float | None = None
    output_price: float | None = None
    max_cost: float | None = None

    def __post_init__(self):
        # The first two messages do not repeat the value, which may be an API key passed by mistake.
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            raise ConfigError("--key-variable must be the upper-case name of an environment variable, not a key")
        try:
            is_plain = re.fullmatch(URL, self.url) and urlsplit(self.url).port != 0
        except ValueError:  # invalid port or address
            is_plain = False
        if not is_plain:
            raise ConfigError("--base-url must be http(s)://HOST[:PORT]/PATH, without user, password or query")
        if self.max_tokens < 1 or self.concurrency < 1 or not 0 < self.timeout < math.inf:
            raise ConfigError("--max-tokens and --concurrency must be at least 1, --timeout more than 0")
        if not 0 <= self.temperature <= 2:
            raise ConfigError("--temperature must be from 0 to 2")
        if not all(0 <= amount < math.inf for amount in (*self.prices, self.max_cost or 0)):
            raise ConfigError("--input-price, --output-price and --max-cost must be US dollars, 0 or more")
        if (self.input_price is None) != (self.output_price is None):
            raise ConfigError("--input-price and --output-price go together")
        if self.max_cost is not None and self.input_price is None:
            raise ConfigError("--max-cost needs --input-price and --output-price")

    @property
    def url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that are sent with the messages."""
        if self.reasoning:
            return {"max_completion_tokens": self.max_tokens}
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    @property
    def prices(self) -> tuple[float, float]:
        return self.input_price or 0.0, self.output_price or 0.0

    def cache_key(self, messages: Messages) -> str:
        """The key of the reply in the cache."""
        return cache_key(self.model, messages, self.parameters)

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars; 0 if no prices are given."""
        return (self.prices[0] * input_tokens + self.prices[1] * output_tokens) / 1e6

    def worst_cost(self, messages: Messages) -> float:
        """The maximum cost in US dollars: a text has at most as many tokens as bytes."""
        return self.cost(sum(len(m["content"].encode()) + TOKENS_PER_MESSAGE for m in messages), self.max_tokens)

    def cost_of(self, reply: Reply, messages: Messages) -> float:
        """The cost in US dollars; the worst case if the server returned no usage."""
        share = BATCH_PRICE if reply.is_batch else 1.0
        if reply.input_tokens is None or reply.output_tokens is None:
            return share * self.worst_cost(messages)
        return share * self.cost(reply.input_tokens, reply.output_tokens)


def deduplicate(requests: Mapping[str, Messages], settings: LLMSettings) -> tuple[dict[str, str], dict[str, Messages]]:
    """(keys by request id, messages by key), as they are sent: lone surrogates become question marks."""
    keys, messages = {}, {}
    for name, request in requests.items():
        request = [_encodable(turn) for turn in request]
        keys[name] = settings.cache_key(request)
        messages[keys[name]] = request
    return keys, messages


def _encodable(turn: Mapping[str, str]) -> Mapping[str, str]:
    """The message itself if it can be sent: turns that requests share, such as solved examples, are not copied."""
    content = turn["content"].encode("utf-8", "replace").decode()
    return turn if content == turn["content"] else {**turn, "content": content}


def costs_so_far(ledger: Ledger, settings: LLMSettings, messages: Mapping[str, Messages]) -> tuple[float, float]:
    """US dollars that these requests (by key) have cost so far: (for replies, maximum for tries without an outcome)."""
    spent = sum(settings.cost_of(ledger.replies[key], messages[key]) for key in messages if key in ledger.replies)
    open_tries = {key: count for key in messages if (count := ledger.open_tries.get(key, 0))}
    return spent, sum(count * settings.worst_cost(messages[key]) for key, count in open_tries.items())


def estimate_cost(
    requests: Mapping[str, Messages], settings: LLMSettings, replies: Mapping[str, Reply], is_batch: bool = False
) -> list[str]:
    """Lines about the requests and their estimated cost. replies: the cached ones by key. is_batch: they are sent
    through the Batch API."""
    keys, messages = deduplicate(requests, settings)
    new = [request for key, request in messages.items() if key not in replies]
    turns = [turn for request in new for turn in request]
    inputs = sum(-(-len(turn["content"]) // CHARS_PER_TOKEN) + TOKENS_PER_MESSAGE // 2 for turn in turns)
    outputs = len(new) * settings.max_tokens
    lines = [f"{len(keys):,} requests to {settings.model} at {settings.url}: {len(new):,} to send"]
    if duplicates := len(keys) - len(messages):
        lines[0] += f", {duplicates:,} equal to another"
    if cached := len(messages) - len(new):
        lines[0] += f", {cached:,} in the cache"
    if new:
        lines.append(
            f"about {inputs:,} input tokens ({CHARS_PER_TOKEN} characters each), up to {outputs:,} output tokens: "
        )
        if settings.input_price is None:
            lines[1] += "cost unknown without --input-price and --output-price"
        else:
            share, note = (BATCH_PRICE, ", at the price of the Batch API") if is_batch else (1.0, "")
            costs = share * settings.cost(inputs, 0), share * settings.cost(0, outputs)
            lines[1] += f"about ${costs[0]:.4f} and up to ${costs[1]:.4f}{note}"
    return lines
