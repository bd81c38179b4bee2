"""Whom to ask, how, and for how much: the settings of a chat API, and what requests cost."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from llava_jax.errors import ConfigError
from llava_jax.llm_client.cache import Reply, cache_key

Messages = Sequence[Mapping[str, str]]  # of {"role": system | user | assistant, "content": text}

OPENAI_URL = "https://api.openai.com/v1"
URL = r"(?a)https?://[\w.:\[\]-]+(/[\w./~-]*)?"  # neither user and password nor a query: no place for a key
CHARS_PER_TOKEN = 4  # a token, roughly, in English; the tokenizers of these models are not at hand
TOKENS_PER_MESSAGE = 16  # tokens, at most, for the role and what separates messages


@dataclasses.dataclass(frozen=True)
class LLMSettings:
    """Raises ConfigError for values that make no sense.

    Args:
        model: The model, as the server calls it.
        base_url: The server's, up to and with /v1. Default: $OPENAI_BASE_URL, else OpenAI's.
        key_variable: The environment variable that has the key. For a server that needs none it may hold any word.
        temperature: 0 for the likeliest answer.
        max_tokens: An answer's length at most.
        reasoning: For models that think before they answer: sends max_completion_tokens, which counts the thoughts too
            (--max-tokens must be larger then), and no temperature.
        concurrency: Requests at a time.
        timeout: Seconds until an answer that did not come is asked for again.
        input_price: US dollars per million input tokens.
        output_price: US dollars per million output tokens.
        max_cost: US dollars. No request is sent that could cost more than what is left of them. What was paid for
            answers in the cache counts too.
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
        # The first two do not repeat the value: it may be a key in the wrong place.
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            raise ConfigError("--key-variable must be the name of an environment variable, in capitals, not a key")
        try:
            is_plain = re.fullmatch(URL, self.url) and urlsplit(self.url).port != 0
        except ValueError:  # of a port or an address that cannot be
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
        """What is sent beside the messages."""
        if self.reasoning:
            return {"max_completion_tokens": self.max_tokens}
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    @property
    def prices(self) -> tuple[float, float]:
        return self.input_price or 0.0, self.output_price or 0.0

    def cache_key(self, messages: Messages) -> str:
        """By which the cache knows the reply."""
        return cache_key(self.model, messages, self.parameters)

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars; 0 where the prices are not known."""
        return (self.prices[0] * input_tokens + self.prices[1] * output_tokens) / 1e6

    def worst_cost(self, messages: Messages) -> float:
        """US dollars at most: a tokenizer makes no more tokens of a text than it has bytes."""
        return self.cost(sum(len(m["content"].encode()) + TOKENS_PER_MESSAGE for m in messages), self.max_tokens)

    def cost_of(self, reply: Reply, messages: Messages) -> float:
        """US dollars; the most they can be where the server did not count."""
        if reply.input_tokens is None or reply.output_tokens is None:
            return self.worst_cost(messages)
        return self.cost(reply.input_tokens, reply.output_tokens)


def deduplicate(requests: Mapping[str, Messages], settings: LLMSettings) -> tuple[dict[str, str], dict[str, Messages]]:
    """(the keys by the ids of the requests, the messages by key), as they are sent: a lone surrogate is no text."""
    keys, messages = {}, {}
    for name, request in requests.items():
        request = [{**turn, "content": turn["content"].encode("utf-8", "replace").decode()} for turn in request]
        keys[name] = settings.cache_key(request)
        messages[keys[name]] = request
    return keys, messages


def estimate_cost(requests: Mapping[str, Messages], settings: LLMSettings, replies: Mapping[str, Reply]) -> list[str]:
    """What is to be asked and what it may cost, in words. `replies`: by key, what is there already."""
    keys, messages = deduplicate(requests, settings)
    new = [request for key, request in messages.items() if key not in replies]
    turns = [turn for request in new for turn in request]
    inputs = sum(-(-len(turn["content"]) // CHARS_PER_TOKEN) + TOKENS_PER_MESSAGE // 2 for turn in turns)
    outputs = len(new) * settings.max_tokens
    lines = [f"{len(keys):,} requests to {settings.model} at {settings.url}: {len(new):,} to send"]
    if duplicates := len(keys) - len(messages):
        lines[0] += f", {duplicates:,} equal to another"
    if cached := len(messages) - len(new):
        lines[0] += f", {cached:,} answered in the cache"
    if new:
        lines.append(
            f"about {inputs:,} input tokens ({CHARS_PER_TOKEN} characters each), at most {outputs:,} output tokens: "
        )
        if settings.input_price is None:
            lines[1] += "cost unknown, for want of --input-price and --output-price"
        else:
            lines[1] += f"about ${settings.cost(inputs, 0):.4f} and at most ${settings.cost(0, outputs):.4f}"
    return lines
