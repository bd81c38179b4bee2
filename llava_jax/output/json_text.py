"""Parses JSON from files of others: every text that is not plain JSON raises one kind of error."""

import json
import math
from typing import Any, NoReturn

from llava_jax.errors import harmless

DIGITS = 4300  # of an integer; Python itself refuses longer ones, because converting them takes quadratic time


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {harmless(next(k for k in keys if keys.count(k) > 1))!r} occurs twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON; write null for a missing value")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer has {len(digits):,} digits")
    return int(digits)


STRICT = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse, parse_float=_finite, parse_int=_integer
)  # raises RecursionError for deep nesting


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text; a byte order mark is skipped, bytes may be UTF-8, UTF-16 or UTF-32.

    Stricter than Python's parser, which accepts or fails differently: refused are NaN and Infinity (JSON has neither),
    numbers too large for a float, integers of more than 4,300 digits, a key that occurs twice in an object (Python
    keeps the last one silently), and nesting too deep for the parser. Raises ValueError that says what is wrong.
    """
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text))
    try:
        return STRICT.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
