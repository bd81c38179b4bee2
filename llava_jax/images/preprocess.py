"""From an image file to the uint8 pixels a row carries. Normalisation happens on the device.

A file from the outside is trusted with nothing: few formats, limits read from the header before a pixel is decoded,
then a full decode (a JPEG cut in half still has a perfect header).
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
STRIP_ROWS = 64  # rows of the padded canvas that exist at one time

_REPAIR_HINT = "Replace the file, or remove the sample that names it."


def load_image(source: Path | str | bytes | Image.Image, name: str) -> Image.Image:
    """Opens, checks and fully decodes one image: a file, the bytes of one, or a PIL image -> PIL image in mode RGB.

    Colours are converted as the original loader does, by `convert("RGB")`: alpha is dropped (not blended), palette and
    CMYK are resolved. The exception is 16-bit grey, which PIL would clip to white: its high byte is kept, which is also
    what PIL does with 16-bit RGB. An EXIF orientation is NOT applied, because the original does not and was trained
    that way. Of an animation the first frame counts.

    Raises DataError that names `name`, for a file that is missing or unreadable, another format than `FORMATS`, a side
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
        # PIL's own text holds the memory address of the file object.
        formats = ", ".join(FORMATS)
        raise DataError(f"{name}: not an image of a known format ({formats}). {_REPAIR_HINT}", "wrong type") from None
    except Exception as fault:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        error_name = type(fault).__name__
        message = f"{name}: the image cannot be read ({error_name}); is it damaged or cut off? {_REPAIR_HINT}"
        raise DataError(message, "damaged") from None


def preprocess(image: Image.Image, size: int, aspect: str) -> np.ndarray:
    """RGB image -> uint8[size, size, 3], what CLIP's image processor makes of it before it rescales and normalises.

    - "crop" (the original's `square`, v0 and v1): shortest edge to `size`, bicubic, long edge rounded down; then the
      centre. Needs memory for at most MAX_ASPECT * size**2 pixels.
    - "pad" (the original's `pad`, v1.5): as if pasted in the middle of a square canvas of the longer side, colour
      (122, 116, 104), offset floor((long - short) / 2), and resized to `size`. The bytes are those of that recipe, but
      the canvas (67 million pixels for 8192x41) never exists.

    >>> preprocess(Image.new("RGB", (640, 480)), 224, "crop").shape
    (224, 224, 3)

    Raises ConfigError for another aspect.
    """
    if aspect == "crop":
        image = _crop(image, size)
    elif aspect == "pad":
        image = _pad(image, size)
    else:
        raise ConfigError(f"image aspect {aspect!r} is unknown; choose one of {', '.join(ASPECTS)}")
    return np.array(image)


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    to_width, to_height = int(size * width / short), int(size * height / short)
    left, top = (to_width - size) // 2, (to_height - size) // 2
    if height > width:  # Pillow 13 resizes the columns of some tall images first, older ones do not: leave it to them
        return image.resize((size, to_height), Image.Resampling.BICUBIC).crop((0, top, size, top + size))
    # PIL resizes all rows to the new width, rounds to bytes, then resizes the columns. Done one by one, little is
    # resized that the crop leaves out.
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
    # PIL resizes all rows to the new width, rounds to bytes, then resizes the columns. Here only what an image's pixel
    # reaches is resized; the rest is padding, which resizing leaves as it is.
    columns = Image.new("RGB", (x.stop - x.start, y.source_stop - y.source_start), PAD_COLOR)
    if width == long:
        columns.paste(image.resize((size, height), Image.Resampling.BICUBIC), (0, top - y.source_start))
    else:  # strip by strip, for a canvas around a narrow image may be large; rows are independent of each other
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
    """Pixels start..stop of a resized axis are exactly the pixels from_start..from_stop of the axis before."""

    start: int
    stop: int
    source_start: int
    source_stop: int


def _resized_span(first: int, count: int, size: int, long: int) -> _Span:
    """The part of an axis, resized from `long` to `size`, that can see the pixels first..first + count, and more.

    It begins and ends where borders of pixels of both sizes fall together, so that resized alone it gets the weights,
    to the last bit, that it has within the whole.
    """
    period = size // math.gcd(size, long)
    radius = 2 * max(1.0, long / size) + 1  # of a bicubic filter; twice, for what is seen must not be cut off either
    start = math.floor((first - 2 * radius) * size / long / period) * period
    stop = math.ceil((first + count + 2 * radius) * size / long / period) * period
    start, stop = max(start, 0), min(stop, size)
    return _Span(start, stop, start * long // size, stop * long // size)


def image_file(source: Path | str | bytes, name: str) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not Path(source).is_file():  # a named pipe would block for ever
        raise DataError(f"{name}: no such file. Check the image folder, or remove the sample that names it.", "missing")
    return Path(source)


def _decode(image: Image.Image, name: str) -> Image.Image:
    short, long = sorted(image.size)
    if short < 1 or long > MAX_SIDE or long > MAX_ASPECT * short or short * long > MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; allowed are sides up to {MAX_SIDE}, an aspect ratio up to "
            f"{MAX_ASPECT} and {MAX_PIXELS:,} pixels. Scale or crop the image.",
            "extreme size",
        )
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")
