"""Reads the responses of a chat API, and the key that must appear in none of what is written."""

import email.utils
import os
import time
from collections.abc import Mapping
from typing import Any

from llava_jax.errors import ConfigError, harmless
from llava_jax.llm_client.cache import Reply
from llava_jax.llm_client.settings import LLMSettings

MIN_KEY_LENGTH = 8  # a shorter key is a dummy for a server that needs none; it is not redacted


def read_api_key(settings: LLMSettings) -> str:
    """The API key. Raises ConfigError, without the key in it, if the key is missing or invalid."""
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise ConfigError(f"no key: set the environment variable {settings.key_variable}, or pass --key-variable")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the value of {settings.key_variable} has spaces or special characters: not a key")
    return key


def reply_of(completion: Any, key: str, is_batch: bool = False) -> Reply:
    """Parses a completion of the openai package. The library does not validate it, so an invalid one raises one of
    ValueError, TypeError, AttributeError, LookupError, RecursionError. Repetitions of the key are removed."""
    choice, usage = completion.choices[0], completion.usage
    text, refusal = choice.message.content or "", getattr(choice.message, "refusal", None) or ""
    if not isinstance(text, str) or not isinstance(refusal, str):
        raise TypeError("no text")
    finish, counts = str(choice.finish_reason or ""), ("prompt_tokens", "completion_tokens")
    tokens = [n if type(n := getattr(usage, name, None)) is int and n >= 0 else None for name in counts]
    is_refused = bool(refusal) or finish == "content_filter" or not text.strip()
    text, model = without_key(text or refusal, key), one_line(completion.model, key)
    return Reply(text, finish, is_refused, model, *tokens, is_batch)


def without_key(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= MIN_KEY_LENGTH else text


def one_line(text: object, key: str) -> str:
    """Text of the server as one short line without the key."""
    return " ".join(harmless(without_key(str(text), key)).split())[:200]


def import_openai():
    """The openai package. Raises ConfigError if it is not installed."""
    try:
        import openai
    except ImportError:
        raise ConfigError("a chat API needs a package: pip install 'llava_jax[judge]'") from None
    return openai


def retry_after(headers: Mapping[str, str]) -> float:
    """The Retry-After header in seconds; 0 if it is missing or invalid."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0
