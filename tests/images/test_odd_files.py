"""Odd image files: those that every viewer shows load, the others are refused with what is wrong."""

import io
import os
import re
import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from llava_jax.errors import DataError
from llava_jax.images import preprocess
from llava_jax.images.faults import CHAT_HINT
from llava_jax.images.preprocess import load_image, read_image
from tests.fixtures.odd_images import PIXELS, PNG, REFUSED, VALID, chunk, decoded, png, text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.mark.parametrize("name", VALID)
def test_odd_but_valid_file_loads(name):
    data, pixels = VALID[name]
    pixels = decoded(data) if pixels is None else pixels
    loaded = np.asarray(load_image(data, "x.jpg"))
    np.testing.assert_array_equal(loaded, np.broadcast_to(pixels, loaded.shape))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_file_is_named_for_what_it_is(name, tmp_path):
    data, kind, message = REFUSED[name]
    (tmp_path / "x.jpg").write_bytes(data)
    for source in (data, tmp_path / "x.jpg"):
        with pytest.raises(DataError, match=f"^x.jpg.*{message}") as caught:
            load_image(source, "x.jpg")
        assert caught.value.kind == kind and not re.search(r"0x[0-9a-f]{6}", str(caught.value))


def test_advice_is_for_who_named_the_image(tmp_path):
    for source in (PNG[:60], tmp_path / "gone.png"):
        with pytest.raises(DataError, match="remove the sample that names it"):
            load_image(source, "x.png")
        with pytest.raises(DataError, match="x.png: .*(Use another image|Check the path)") as caught:
            load_image(source, "x.png", hint=CHAT_HINT)
        assert "sample" not in str(caught.value)


def peak_memory(source) -> int:
    """Bytes of Python objects that loading PICTURE with odd metadata takes."""
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(load_image(source, "x.png"), PIXELS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_texts_that_unpack_to_much_are_not_unpacked():
    data = png(text(32 << 20), text(32 << 20, b"iTXt"), text(32 << 20, b"iCCP"), after=text(32 << 20, b"iTXt"))
    assert len(data) < 1 << 20 and peak_memory(data) < 8 << 20


def test_long_texts_of_a_large_file_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_FILE", 1000)
    (tmp_path / "x.png").write_bytes(png(chunk(b"tEXt", b"key\0" + bytes(8 << 20))))
    assert peak_memory(tmp_path / "x.png") < 4 << 20


def test_limits_hold_for_pixels_without_metadata():
    wide = PNG[:8] + chunk(b"IHDR", (9000).to_bytes(4, "big") + PNG[20:29]) + text(5 << 20) + PNG[33:]
    with pytest.raises(DataError, match=r"^x: 9000x12 pixels; the limits are") as caught:
        load_image(wide, "x")
    assert caught.value.kind == "extreme size"


def test_unreadable_file_and_full_memory_are_no_damage(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(PNG)

    for fault, kind, message in (
        (PermissionError(13, "Permission denied"), "missing", r"cannot be read \(Permission denied\)"),
        (OSError(5, "Input/output error"), "missing", r"cannot be read \(Input/output error\)"),
        (MemoryError(), "unusable", "too little memory"),
    ):
        monkeypatch.setattr(Image, "open", Mock(side_effect=fault))
        with pytest.raises(DataError, match=f"^x: .*{message}") as caught:
            load_image(tmp_path / "x.png", "x")
        assert caught.value.kind == kind


def test_names_that_no_file_can_have_are_missing(tmp_path):
    for name in ("a" * 5000, "a\0b", "\ud83d.png", ""):
        with pytest.raises(DataError, match="no such file") as caught:
            load_image(os.path.join(tmp_path, name), "x")
        assert caught.value.kind == "missing"


def test_a_broken_image_object_is_a_data_error():
    with pytest.raises(DataError, match="^image 1: the image cannot be read: the file is truncated"):
        load_image(Image.open(io.BytesIO(PNG[:300])), "image 1")


def test_reading_an_image_does_not_decode_it(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for data in (PNG, png(text(5 << 20))):
        assert read_image(data, "x", lambda image: image.size) == (16, 12)
