"""Decodes an image file and resizes it to uint8 pixels; they are normalised on the device.

Image files are not trusted. Only a few formats are read, size limits are checked in the header before decoding, and
every image is decoded in full (a truncated JPEG has a valid header).
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava_jax.errors import ConfigError, DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_SIDE = 8192
MAX_ASPECT = 200
MAX_PIXELS = 33_000_000
ASPECTS = ("crop", "pad")
PAD_COLOR = (122, 116, 104)  # floor(255 * CLIP's mean)
STRIP_ROWS = 64  # rows of the padded canvas held in memory at a time

_REPAIR_HINT = "Replace the file, or remove the sample that names it."


def load_image(source: Path | str | bytes | Image.Image, name: str) -> Image.Image:
    """Opens, checks and fully decodes an image (a path, file contents or a PIL image) -> PIL image in mode RGB.

    Colours are converted by `convert("RGB")`, as in the original: alpha is dropped (not blended), palettes and CMYK are
    converted. Only 16-bit grey differs: PIL would clip it to white, so the high byte is kept, as PIL does for 16-bit
    RGB. EXIF orientation is NOT applied, as in the original's training. Of an animation, the first frame is used.

    Raises DataError, starting with `name`, for a missing or unreadable file, a format other than `FORMATS`, a side
    above 8,192, an aspect ratio above 200, more than 33 million pixels, or pixels that do not decode.
    """
    try:
        if isinstance(source, Image.Image):
            return _decode(source, name)
        with Image.open(image_file(source, name), formats=FORMATS) as image:
            return _decode(image, name)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels. Scale the image down.", "extreme size") from None
    except UnidentifiedImageError:
        # PIL's message contains the memory address of the file object.
        formats = ", ".join(FORMATS)
        raise DataError(f"{name}: not in a supported image format ({formats}). {_REPAIR_HINT}", "wrong type") from None
    except Exception as fault:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        error_name = type(fault).__name__
        message = f"{name}: the image cannot be read ({error_name}); is it damaged or truncated? {_REPAIR_HINT}"
        raise DataError(message, "damaged") from None


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


def image_file(source: Path | str | bytes, name: str) -> Path | io.BytesIO:
    """Returns what PIL can open. Raises DataError, starting with `name`, if there is no such regular file."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not Path(source).is_file():  # a named pipe would block forever
        raise DataError(f"{name}: no such file. Check the image folder, or remove the sample that names it.", "missing")
    return Path(source)


def _decode(image: Image.Image, name: str) -> Image.Image:
    short, long = sorted(image.size)
    if short < 1 or long > MAX_SIDE or long > MAX_ASPECT * short or short * long > MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; the limits are {MAX_SIDE} pixels a side, an aspect ratio of "
            f"{MAX_ASPECT} and {MAX_PIXELS:,} pixels. Scale or crop the image.",
            "extreme size",
        )
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")
