"""Decodes an image file and resizes it to uint8 pixels; they are normalised on the device.

Image files are not trusted. Only a few formats are read, size limits are checked in the header before decoding, and
every image is decoded in full (a truncated JPEG has a valid header).
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from llava_jax.errors import ConfigError, DataError
from llava_jax.images.faults import CHAT_HINT, FORMATS, MAX_PIXELS, REPAIR_HINT, image_fault
from llava_jax.images.metadata import TURNS, orientation, without_metadata
from llava_jax.images.names import missing_file

MAX_SIDE = 8192
MAX_ASPECT = 200
MAX_NAME = 300  # characters in a message; a `data:` URI is no path
LARGE_FILE = 128 << 20  # bytes; no allowed image needs more without much metadata
ASPECTS = ("crop", "pad")
PAD_COLOR = (122, 116, 104)  # floor(255 * CLIP's mean)
STRIP_ROWS = 64  # rows of the padded canvas held in memory at a time

T = TypeVar("T")


def load_image(
    source: Path | str | bytes | Image.Image, name: str, exif: str = "apply", hint: str = REPAIR_HINT
) -> Image.Image:
    """Opens, checks and fully decodes an image (a path, file contents or a PIL image) -> PIL image in mode RGB.

    exif: "apply" turns the image by its EXIF orientation, as people and transformers' pipelines see it; "ignore" keeps
    it as stored, as the original does in training. The result has no metadata, so it is never turned twice. hint: what
    errors advise to do; CHAT_HINT where no data set names the image.

    Colours are converted by `convert("RGB")`, as in the original: alpha is dropped (not blended), palettes and CMYK are
    converted, colour profiles are ignored. Only 16-bit grey differs: PIL would clip it to white, so the high byte is
    kept, as PIL does for 16-bit RGB. Of an animation, the first frame is used.

    Raises DataError, starting with `name`, for a missing or unreadable file, a format other than `FORMATS`, a side
    above 8,192, an aspect ratio above 200, more than 33 million pixels, or pixels that do not decode.
    """
    return read_image(source, name, lambda image: _decode(image, name, exif), hint)


def read_image(
    source: Path | str | bytes | Image.Image, name: str, read: Callable[[Image.Image], T], hint: str = REPAIR_HINT
) -> T:  # fmt: skip
    """Opens an image without decoding it and returns `read(image)`.

    If that fails, `read` is called again with a copy of the file without metadata (see `without_metadata`): limits and
    faults of colour profiles, texts or EXIF data are no faults of the pixels. Raises DataError, starting with `name`.
    """
    if isinstance(source, Image.Image):
        with _faults_named(name, io.BytesIO(), hint):
            return read(source)
    with _opened(source, name, hint) as file:
        if file.seek(0, io.SEEK_END) <= LARGE_FILE:
            try:
                return _read(file, read)
            except DataError:
                raise
            except Exception:  # perhaps of the metadata; a fault of the pixels is raised again below
                pass
        copy, info = without_metadata(file) or (file, {})
        with _faults_named(name, copy, hint):
            return _read(copy, read, info)


def preprocess(image: Image.Image, size: int, aspect: str) -> np.ndarray:
    """Resizes an RGB image -> uint8[size, size, 3], the output of CLIP's image processor before rescaling.

    - "crop" (the original's `square`, v0 and v1): resize the shorter side to `size`, bicubic, with the longer side
      rounded down, then crop the centre. Needs memory for up to MAX_ASPECT * size**2 pixels.
    - "pad" (the original's `pad`, v1.5): paste into the centre of a square canvas of the longer side, of colour
      (122, 116, 104), at floor((long - short) / 2), then resize to `size`. The result equals this recipe byte for byte,
      but the canvas (67 million pixels for 8192x41) is never allocated.

    >>> preprocess(Image.new("RGB", (640, 480)), 224, "crop").shape
    (224, 224, 3)

    Raises ConfigError for any other `aspect`.
    """
    if aspect == "crop":
        image = _crop(image, size)
    elif aspect == "pad":
        image = _pad(image, size)
    else:
        raise ConfigError(f"unknown image aspect {aspect!r}; choose one of {', '.join(ASPECTS)}")
    return np.array(image)


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    to_width, to_height = int(size * width / short), int(size * height / short)
    left, top = (to_width - size) // 2, (to_height - size) // 2
    if height > width:  # Pillow 13 resizes the columns of some tall images first, older ones do not: PIL decides
        return image.resize((size, to_height), Image.Resampling.BICUBIC).crop((0, top, size, top + size))
    # PIL resizes all rows to the new width, rounds to bytes, then resizes the columns. The same in two calls resizes
    # little that the crop removes.
    x = _resized_span(left * width // to_width, -(-size * width // to_width), to_width, width)
    rows = image.crop((x.source_start, 0, x.source_stop, height))
    rows = rows.resize((x.stop - x.start, height), Image.Resampling.BICUBIC)
    rows = rows.crop((left - x.start, 0, left - x.start + size, height))
    return rows.resize((size, size), Image.Resampling.BICUBIC)


def _pad(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    long = max(width, height)
    left, top = (long - width) // 2, (long - height) // 2
    x, y = _resized_span(left, width, size, long), _resized_span(top, height, size, long)
    # PIL resizes all rows to the new width, rounds to bytes, then resizes the columns. Only pixels that the image
    # influences are resized here; the rest is padding, which resizing does not change.
    columns = Image.new("RGB", (x.stop - x.start, y.source_stop - y.source_start), PAD_COLOR)
    if width == long:
        columns.paste(image.resize((size, height), Image.Resampling.BICUBIC), (0, top - y.source_start))
    else:  # in strips, because the canvas of a narrow image may be large; rows are independent
        for row in range(0, height, STRIP_ROWS):
            strip = Image.new("RGB", (x.source_stop - x.source_start, min(STRIP_ROWS, height - row)), PAD_COLOR)
            strip.paste(image.crop((0, row, width, row + strip.height)), (left - x.source_start, 0))
            resized = strip.resize((columns.width, strip.height), Image.Resampling.BICUBIC)
            columns.paste(resized, (0, top - y.source_start + row))
    square = Image.new("RGB", (size, size), PAD_COLOR)
    resized = columns.resize((columns.width, y.stop - y.start), Image.Resampling.BICUBIC)
    square.paste(resized, (x.start, y.start))
    return square


class _Span(NamedTuple):
    """Pixels start..stop of a resized axis cover exactly the pixels source_start..source_stop of the source axis."""

    start: int
    stop: int
    source_start: int
    source_stop: int


def _resized_span(first: int, count: int, size: int, long: int) -> _Span:
    """Returns a part of an axis, resized from `long` to `size`, that covers all influence of first..first + count.

    It starts and ends where pixel borders of both sizes coincide, so that resizing it alone uses the same weights, to
    the last bit, as resizing the whole axis.
    """
    period = size // math.gcd(size, long)
    radius = 2 * max(1.0, long / size) + 1  # of the bicubic filter; applied twice, so that its inputs are complete too
    start = math.floor((first - 2 * radius) * size / long / period) * period
    stop = math.ceil((first + count + 2 * radius) * size / long / period) * period
    start, stop = max(start, 0), min(stop, size)
    return _Span(start, stop, start * long // size, stop * long // size)


@contextlib.contextmanager
def _opened(source: Path | str | bytes, name: str, hint: str) -> Iterator[BinaryIO]:
    """Yields the file. Raises DataError if there is no such regular file; a named pipe would block forever."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if not os.path.isfile(source):
        name, missing = name if len(name) < MAX_NAME else f"{name[:MAX_NAME]}...", missing_file(source)
        in_data = "Check the image folder, or remove the sample that names it."
        advice = "Check the path." if hint == CHAT_HINT else in_data
        raise DataError(f"{name}: {missing} {advice}", "missing")
    with _faults_named(name, io.BytesIO(), hint), open(source, "rb") as file:
        yield file


@contextlib.contextmanager
def _faults_named(name: str, file: BinaryIO, hint: str) -> Iterator[None]:
    """Replaces what opening or decoding `file` raises by the DataError that `image_fault` returns."""
    try:
        yield
    except DataError:
        raise
    except Exception as fault:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise image_fault(fault, name, file, hint) from None


def _read(file: BinaryIO, read: Callable[[Image.Image], T], info: Mapping = MappingProxyType({})) -> T:
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        image.info.update(info)
        return read(image)


def _decode(image: Image.Image, name: str, exif: str) -> Image.Image:
    short, long = sorted(image.size)
    if short < 1 or long > MAX_SIDE or long > MAX_ASPECT * short or short * long > MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; the limits are {MAX_SIDE} pixels a side, an aspect ratio of "
            f"{MAX_ASPECT} and {MAX_PIXELS:,} pixels. Scale or crop the image.",
            "extreme size",
        )
    image.load()
    turn = TURNS.get(orientation(image)) if exif == "apply" else None
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    image = image.convert("RGB")  # a copy
    image.info.clear()
    return image if turn is None else image.transpose(turn)
