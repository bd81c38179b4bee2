"""EXIF orientation: images are turned as people see them, or kept as stored; it never makes an image unreadable."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_jax.images.metadata import TURNS, orientation
from llava_jax.images.preprocess import load_image
from tests.fixtures.images import encoded, noise
from tests.fixtures.odd_images import JPEG, PHOTOSHOP, PICTURE, chunk, exif, jpeg, png, segment, text, tiff

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def with_orientation(kind: str, value: int) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(noise(20, 12), kind, exif=b"Exif\0\0" + exif(value), **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(10))
def test_image_is_turned_as_exif_transpose_does(kind, value):
    data = with_orientation(kind, value)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(load_image(data, "x", "apply"), expected)
    stored = np.asarray(load_image(data, "x", "ignore"))
    assert (stored.shape == expected.size[::-1] + (3,)) == (value < 5 or value == 9)
    np.testing.assert_array_equal(stored, Image.open(io.BytesIO(data)).convert("RGB"))


def upright(data: bytes) -> np.ndarray:
    """The pixels of a file that is turned by orientation 6."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").transpose(TURNS[6]))


EXIF_6, RAW = b"Exif\0\0" + exif(6), "\nexif\n      38\n" + (b"Exif\0\0" + exif(6)).hex() + "\n"
TURNED = {
    "png, after the pixels": png(after=chunk(b"eXIf", exif(6))),
    "png, XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "png, as a text of ImageMagick": png(chunk(b"tEXt", b"Raw profile type exif\0" + RAW.encode())),
    "jpeg, XMP": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "jpeg, two segments": jpeg(segment(0xE1, EXIF_6[:20]), segment(0xE1, b"Exif\0\0" + EXIF_6[20:])),
    "jpeg, big-endian": jpeg(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")),
    "jpeg, as a rational": jpeg(segment(0xE1, b"Exif\0\0" + tiff((0x0112, 5, 1, 26)) + b"\6\0\0\0\1\0\0\0")),
    "jpeg, first of three values": jpeg(segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 3, 26)) + b"\6\0\1\0\1\0")),
    "webp, XMP": encoded(PICTURE, "WEBP", lossless=True, xmp=XMP),
    # With another block that PIL cannot read:
    "png, long profile": png(text(5 << 20, b"iCCP"), chunk(b"eXIf", exif(6))),
    "png, long text before XMP": png(text(5 << 20), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "png, long text before ImageMagick's": png(
        text(5 << 20), chunk(b"tEXt", b"Raw profile type exif\0" + RAW.encode())
    ),
    "jpeg, broken Photoshop block": jpeg(segment(0xED, PHOTOSHOP), segment(0xE1, EXIF_6)),
    "jpeg, broken Photoshop block and XMP": jpeg(
        segment(0xED, PHOTOSHOP), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    ),
    "jpeg, broken Photoshop block and two segments": jpeg(
        segment(0xED, PHOTOSHOP), segment(0xE1, EXIF_6[:20]), segment(0xE1, b"Exif\0\0" + EXIF_6[20:])
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_read_wherever_it_is_stored(name):
    pixels = JPEG if name.startswith("jpeg") else png()
    np.testing.assert_array_equal(load_image(TURNED[name], "x"), upright(pixels))


NOT_TURNED = {
    "no EXIF": JPEG,
    "broken": jpeg(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "as text": jpeg(segment(0xE1, b"Exif\0\0" + tiff((0x0112, 2, 2, 54)))),
    "wrong checksum beside a long text": png(text(5 << 20), chunk(b"eXIf", exif(6), 7)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", NOT_TURNED)
def test_orientation_that_cannot_be_read_turns_nothing(name):
    np.testing.assert_array_equal(load_image(NOT_TURNED[name], "x"), load_image(NOT_TURNED[name], "x", "ignore"))


def test_an_image_object_is_turned_once_and_stays_unchanged():
    opened = Image.open(io.BytesIO(with_orientation("JPEG", 6)))
    loaded = load_image(opened, "x")
    assert loaded.size == (12, 20) and opened.size == (20, 12) and orientation(opened) == 6
    assert load_image(loaded, "x").size == (12, 20) and orientation(loaded) == 1 and not loaded.info


def test_a_decoded_copy_that_kept_its_exif_is_turned():
    copy = Image.open(io.BytesIO(with_orientation("PNG", 8))).convert("L")
    assert load_image(copy, "x").size == (12, 20) and load_image(copy, "x", "ignore").size == (20, 12)
