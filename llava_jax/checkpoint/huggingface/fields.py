"""Reads typed values from JSON settings that others wrote: config.json, preprocessor_config.json, adapter_config.json.

A value of another type is accepted where it can mean only one thing: a number as text ("500"), an integral float
(4096.0), a boolean as text ("true") or as 0 or 1, a list of one such value, another spelling of an activation. Anything
else raises DataError that names the file and the key.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from llava_jax.errors import DataError

Reader = Callable[[object, str], Any]  # (value, "FILE: key" for messages) -> the value with its type
# transformers' `activations.py`: the names of one function each. Clipped and other functions are not listed.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu",
    "gelu_tanh": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d{1,40}(\.\d{0,40})?([eE][+-]?\d{1,3})?", re.ASCII)


def number(value: object, name: str) -> float:
    """Returns a finite number. Raises DataError otherwise."""
    plain = _single(value)
    if isinstance(plain, str) and _NUMBER.fullmatch(plain.strip()):
        plain = float(plain)
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise DataError(f"{name}={_shown(value)} is not a number")
    return float(plain)


def positive(value: object, name: str) -> float:
    """Returns a number above 0. Raises DataError otherwise."""
    if (x := number(value, name)) <= 0:
        raise DataError(f"{name}={_shown(value)} is not above 0")
    return x


def integer(value: object, name: str, least: int | None = None) -> int:
    """Returns an integer, of at least `least` if it is given. Raises DataError otherwise."""
    if not (x := number(value, name)).is_integer():
        raise DataError(f"{name}={_shown(value)} is not an integer")
    if least is not None and x < least:
        raise DataError(f"{name}={_shown(value)} is below {least}")
    return int(x)


def count(value: object, name: str) -> int:
    """Returns an integer above 0. Raises DataError otherwise."""
    return integer(value, name, 1)


def flag(value: object, name: str) -> bool:
    """Returns a boolean. Raises DataError otherwise."""
    plain = _single(value)
    if isinstance(plain, str):
        plain = {"true": True, "false": False}.get(plain.strip().lower(), plain)
    if not isinstance(plain, bool | int | float) or plain not in (0, 1):
        raise DataError(f"{name}={_shown(value)} is not true or false")
    return bool(plain)


def text(value: object, name: str) -> str:
    """Returns a text. Raises DataError otherwise."""
    plain = _single(value)
    if not isinstance(plain, str):
        raise DataError(f"{name}={_shown(value)} is not a text")
    return plain


def act(value: object, name: str) -> str:
    """Returns an activation's name in our spelling. Raises DataError for one that our models lack."""
    if (key := text(value, name).lower()) not in ACTIVATIONS:
        raise DataError(f"{name}={_shown(value)} is not supported, only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[key]


def optional(reader: Reader) -> Reader:
    """Returns a reader that passes null on."""
    return lambda value, name: None if value is None else reader(value, name)


def group(config: dict, key: str, where: str) -> dict:
    """Returns the nested settings `key`, {} if absent or null. Raises DataError if they are not a dict."""
    settings = config.get(key) or {}
    if not isinstance(settings, dict):
        raise DataError(f"{where}: {key}={_shown(settings)} is not a group of settings")
    return settings


def read_fields(config: dict, fields: dict[str, tuple[Reader, Any]], where: str) -> dict[str, Any]:
    """Returns key -> typed value for every key of `fields`: key -> (reader, default). Raises DataError naming `where`
    and the key for a value that its reader does not accept."""
    return {
        key: reader(config[key], f"{where}: {key}") if key in config else default
        for key, (reader, default) in fields.items()
    }


def refuse_others(config: dict, only: dict[str, tuple], where: str) -> None:
    """Raises DataError if a key of `only` is present with a value other than those listed: it would change the result,
    and we do not compute it."""
    for key, values in only.items():
        if key in config and config[key] not in values:
            raise DataError(f"{where}: {key}={_shown(config[key])} is not supported")


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _shown(value: object) -> str:
    return f"{value!r:.80}"
