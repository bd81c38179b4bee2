"""OpenAI's chat completion request: what is accepted, what is refused, and within which limits.

    chat = parse_chat(body, model="llava", slots=8)

Unlike OpenAI's, a request without `temperature` is answered greedily, as everywhere in this project.
"""

import dataclasses
import re
import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from llava_jax.inference.slots import TOP
from llava_jax.serve.refusal import Refusal
from llava_jax.text.templates import IMAGE_MARKER

MAX_ITEMS = 100_000  # values in the JSON of a request; each takes some hundred bytes of memory
MAX_MESSAGES = 1_000
MAX_TEXT = 200_000  # characters of all messages together
MAX_IMAGES = 8
MAX_IMAGE_CHARACTERS = 14 << 20  # of a data URI, 10.5 MiB of file
MAX_TOKENS = 1 << 17  # far beyond a slot, which limits the answer anyway: clients send their model's maximum
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MESSAGE_KEYS = {"role", "content", "name"}  # others must be null or empty
# Fields of OpenAI's and vLLM's requests that change nothing, with their values that ask for nothing.
IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
NEUTRAL = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "min_p": (0,), "min_tokens": (0,), "best_of": (1,), "use_beam_search": (False,), "ignore_eos": (False,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "stop_token_ids": ([],),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "echo": (False,), "add_generation_prompt": (True,),
}  # fmt: skip

Stop = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # ours has none


class _Body(BaseModel):
    """The fields that matter, with their ranges."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[int, Field(ge=1, le=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # vLLM's: -1 and 0 for all
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request within the limits."""

    messages: list[dict]  # for `parse_messages`; images are data URIs
    literal_marker: str  # stands for `<image>` in texts of the user, where it is ordinary text
    sampling: dict[str, int | float]  # fields of GenerationConfig
    stop: tuple[str, ...]
    n: int
    is_stream: bool
    include_usage: bool
    top_logprobs: int | None  # None: no log-probabilities


def parse_chat(body: bytes, model: str) -> ChatRequest:
    """Returns the request in a body of JSON. model: the name of the one that is served.

    Raises Refusal: 404 for another model, 400 with the field at fault for anything that is invalid or not supported.
    """
    fields = _read_json(body)
    for name in [name for name, value in fields.items() if value is None or name in IGNORED]:
        del fields[name]
    for name in NEUTRAL.keys() & fields.keys():
        if not any(fields[name] == neutral for neutral in NEUTRAL[name]):
            raise Refusal(400, f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
        del fields[name]
    try:
        given = _Body.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None
    if given.model not in (None, model):
        message = f"there is no such model here; the one that is served is {model!r}"
        raise Refusal(404, message, param="model", code="model_not_found")
    if given.top_logprobs is not None and not given.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    literal_marker = f"<{secrets.token_hex(8)}>"  # a text cannot contain it, because nobody knows it
    sampling = {
        "temperature": given.temperature or 0.0,
        "top_p": 1.0 if given.top_p is None else given.top_p,
        "top_k": max(given.top_k or 0, 0),
        "seed": secrets.randbits(32) if given.seed is None else given.seed % 2**32,
        "max_new_tokens": given.max_completion_tokens or given.max_tokens or MAX_TOKENS,
    }
    return ChatRequest(
        _messages(given.messages, literal_marker), literal_marker, sampling,
        stop=(given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ()),
        n=given.n or 1,
        is_stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        top_logprobs=(given.top_logprobs or 0) if given.logprobs else None,
    )  # fmt: skip


def _read_json(body: bytes) -> dict[str, Any]:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_ITEMS:
        raise Refusal(400, f"the request has more than {MAX_ITEMS:,} values")
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Refusal(400, "the body is not valid JSON, or nested too deeply; NaN and Infinity are none") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object")
    return fields


def _invalid(error: ValidationError) -> Refusal:
    """The first fault, named by its field."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = [str(x) for x in first["loc"] if isinstance(x, int) or x in _Body.model_fields]
    name = ".".join(path) or str(first["loc"][0])[:60]
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
    return Refusal(400, f"{name}: {first['msg']}", param=name, code="invalid_value")


def _messages(messages: list[dict[str, Any]], literal_marker: str) -> list[dict]:
    """The messages for `parse_messages`, in which nothing but an image part is an image."""
    checked, characters, images = [], 0, 0
    for i, message in enumerate(messages):
        for key, value in message.items():
            if key not in MESSAGE_KEYS and value not in (None, [], {}):
                raise Refusal(400, f"{key[:60]} is not supported; leave it out", param=f"messages.{i}.{key[:60]}")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(ROLES)
            raise Refusal(400, f"message {i} has no supported role; known are {known}", param=f"messages.{i}.role")
        content = message.get("content")
        parts = []
        for j, part in enumerate(content if isinstance(content, list) else [content]):
            name = f"messages.{i}.content" + (f".{j}" if isinstance(content, list) else "")
            text, url = _part(part, name)
            characters += len(text or "")
            images += url is not None
            if url is not None and role != "user":
                raise Refusal(400, f"message {i} of the role {role} has an image; only a user's can", param=name)
            if url is not None:
                parts.append({"type": "image_url", "image_url": {"url": url}})
            elif parts and parts[-1]["type"] == "text":  # two parts could hold a marker together
                parts[-1]["text"] += text
            else:
                parts.append({"type": "text", "text": text})
        for part in parts if role == "user" else ():
            if part["type"] == "text":
                part["text"] = part["text"].replace(IMAGE_MARKER, literal_marker)
        checked.append({"role": ROLES[role], "content": parts})
    if characters > MAX_TEXT:
        raise Refusal(400, f"the messages have {characters:,} characters, the limit is {MAX_TEXT:,}", param="messages")
    if images > MAX_IMAGES:
        raise Refusal(400, f"the messages have {images} images, the limit is {MAX_IMAGES}", param="messages")
    return checked


def _part(part: Any, name: str) -> tuple[str | None, str | None]:
    """(text, None) or (None, data URI) of a part of a message."""
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            return text, None
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            if len(url) > MAX_IMAGE_CHARACTERS:
                limit = f"{MAX_IMAGE_CHARACTERS >> 20} MiB of base64"
                raise Refusal(
                    400, f"an image is larger than {limit}; scale it down", param=name, code="image_too_large"
                )
            if not re.match(r"data:image/", url, re.IGNORECASE):
                message = "an image must be a data URI (data:image/png;base64,...); nothing is fetched or opened here"
                raise Refusal(400, message, param=name, code="invalid_image_url")
            return None, url
        case {"type": str(kind)} if kind not in ("text", "image_url"):
            raise Refusal(400, "only parts of the types text and image_url are supported", param=name)
    raise Refusal(400, "content must be a text, or a list of text and image_url parts", param=name)
