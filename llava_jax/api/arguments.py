"""Checks the arguments of the API: each wrong one is named, with what it got and what it takes."""

import math
import operator
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from llava_jax.errors import ConfigError, DataError, harmless

DTYPE_NAMES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
INTEGERS = "max_new_tokens", "top_k", "seed"
NUMBERS = "temperature", "top_p"


def dtype_name(dtype: Any) -> Any:
    """The name of a dtype given by name, by a frequent other name (fp16), or as an object of NumPy, JAX or torch. What
    is none of these is returned as it is, for a check of the allowed names."""
    if dtype is None:
        return None
    if not isinstance(dtype, str):
        try:
            dtype = str(dtype) if str(dtype).startswith("torch.") else np.dtype(dtype).name
        except TypeError:
            return repr(dtype)
    name = dtype.strip().lower().removeprefix("torch.").removeprefix("jnp.").removeprefix("np.")
    return DTYPE_NAMES.get(name, name)


def check_path(value: Any, name: str) -> None:
    """Raises ConfigError unless `value` is a path or a text that is not empty."""
    if not isinstance(value, str | PathLike) or not str(value):
        raise ConfigError(f"{name}={brief_repr(value)} is not a path; pass a str or Path")


def sampling_options(stop: Any, stream: Any, **numbers: Any) -> tuple[tuple[str, ...], dict[str, int | float]]:
    """Returns (stop strings, numbers as int and float). numbers: those named in `INTEGERS` and `NUMBERS`; NumPy's are
    accepted. Raises ConfigError for other types. Ranges are checked by `GenerationConfig`."""
    if not isinstance(stream, bool | np.bool_):
        raise ConfigError(f"stream={brief_repr(stream)} is not True or False")
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(text, str) for text in stops):
        raise ConfigError(f"stop={brief_repr(stop)} is not a list of texts")
    return tuple(stops), {name: _number(name, value) for name, value in numbers.items()}


def _number(name: str, value: Any) -> int | float:
    if name in INTEGERS:
        try:
            return operator.index(None if isinstance(value, bool | np.bool_) else value)
        except TypeError:
            raise ConfigError(f"{name}={brief_repr(value)} is not an integer") from None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ConfigError(f"{name}={brief_repr(value)} is not a number")
    if math.isnan(value):
        raise ConfigError(f"{name} is not a number (NaN)")
    return float(value)


def token_arrays(input_ids: Any, attention_mask: Any, vocab_size: int, image_ids: set[int]):
    """Returns (ids int[B, T], bool[B, T]: which are no padding). image_ids: allowed beyond the vocabulary.

    Raises DataError that names the argument: a wrong type or shape, an id that the model does not have, a mask that is
    not of 0 and 1, has a gap or a row without tokens.
    """
    ids = _array(input_ids, "input_ids", "iu")
    if ids.ndim != 2 or 0 in ids.shape:
        raise DataError(f"input_ids has shape {ids.shape}; it must be [rows, tokens], both at least 1")
    is_token = np.ones(ids.shape, bool)
    if attention_mask is not None:
        mask = _array(attention_mask, "attention_mask", "iub")
        if mask.shape != ids.shape:
            raise DataError(f"attention_mask has shape {mask.shape}, input_ids has {ids.shape}; they must be equal")
        if not np.isin(mask, (0, 1)).all():
            raise DataError("attention_mask has other values than 0 (padding) and 1")
        is_token = mask > 0
        edges = np.diff(is_token, axis=1, prepend=False, append=False).sum(axis=1)
        if (edges != 2).any():
            row = int(np.flatnonzero(edges != 2)[0])
            raise DataError(f"row {row} of attention_mask has no tokens, or padding between them; pad on either side")
    wrong = is_token & ((ids < 0) | (ids >= vocab_size)) & ~np.isin(ids, list(image_ids))
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        raise DataError(
            f"input_ids[{row}, {column}] is {ids[row, column]}, but the model has the tokens 0 to {vocab_size - 1}"
        )
    return ids, is_token


def pixel_array(pixel_values: Any, size: int) -> np.ndarray:
    """Returns float32[N, H, W, 3] of pixel_values float[N, 3, H, W]. Raises DataError for anything else."""
    pixels = _array(pixel_values, "pixel_values", "f")
    if pixels.shape[1:] != (3, size, size):
        raise DataError(
            f"pixel_values has shape {pixels.shape}; it must be [images, 3, height, width], and the tower needs "
            f"{(size, size)}"
        )
    if not np.isfinite(pixels).all():
        raise DataError("pixel_values has values that are not finite")
    return pixels.transpose(0, 2, 3, 1)


def _array(value: Any, name: str, kinds: str) -> np.ndarray:
    """`value` as an array of a kind in `kinds`, as NumPy writes them; float32 for "f"."""
    if isinstance(value, Mapping):
        raise DataError(f"{name} is a {type(value).__name__}; pass its entry {name}")
    try:
        array = np.asarray(value)
        if kinds == "f" and array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
    except Exception as error:  # ragged lists, tensors on another device: each library raises its own
        raise DataError(f"{name} cannot become a NumPy array ({str(error)[:120]})") from error
    if array.dtype.kind not in kinds:
        wanted = "floating-point numbers, normalised" if kinds == "f" else "integers"
        raise DataError(f"{name} holds {array.dtype} in an array of shape {array.shape}, not {wanted}")
    return array.astype(np.float32) if kinds == "f" else array


def brief_repr(value: Any) -> str:
    """`repr(value)` for a message: at most 60 characters, none of which can manipulate a terminal."""
    text = harmless(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
