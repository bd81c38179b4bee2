"""Which images are refused, and the exact bytes of preprocessed ones."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_jax.errors import ConfigError, DataError
from llava_jax.images import preprocess as images
from llava_jax.images.preprocess import PAD_COLOR, load_image, preprocess
from tests.fixtures.odd_images import REFUSED

SHAPES = [(640, 480), (480, 640), (224, 224), (225, 224), (100, 37), (37, 100), (1, 1), (1, 7), (500, 333), (3, 401)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int = 8, color: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG with any header; without `pixels` it is small, but would be large when decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


# --- preprocess ------------------------------------------------------------


def clip_bytes(image: Image.Image, size: int) -> np.ndarray:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_rescale=False, do_normalize=False
    )
    return np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)


# In 448x256, pixel borders of both sizes coincide; for the tall 336x823, Pillow 13 resizes the columns first.
@pytest.mark.parametrize("shape", [*SHAPES, (448, 256), (256, 448), (336, 823), (307, 640)])
@pytest.mark.parametrize("size", [48, 224, 336])
def test_crop_equals_clip_image_processor_byte_for_byte(shape, size):
    pixels = preprocess(noise(*shape), size, "crop")
    assert pixels.dtype == np.uint8 and pixels.shape == (size, size, 3)
    np.testing.assert_array_equal(pixels, clip_bytes(noise(*shape), size))


def pad_then_resize(image: Image.Image, size: int) -> np.ndarray:
    """The reference: the image in the centre of a uniform canvas, and one resize."""
    long = max(image.size)
    canvas = Image.new("RGB", (long, long), (122, 116, 104))
    canvas.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [*SHAPES, (448, 256), (256, 448), (1000, 64), (64, 1000), (1001, 63)])
@pytest.mark.parametrize("size", [48, 224, 336])
def test_pad_equals_padding_then_resizing_byte_for_byte(shape, size):
    np.testing.assert_array_equal(preprocess(noise(*shape), size, "pad"), pad_then_resize(noise(*shape), size))


def test_pad_equals_clip_image_processor_on_padded_image():
    image = noise(300, 200)
    canvas = Image.new("RGB", (300, 300), PAD_COLOR)
    canvas.paste(image, (0, 50))
    np.testing.assert_array_equal(preprocess(image, 224, "pad"), clip_bytes(canvas, 224))


def test_both_aspects_agree_on_a_square_and_differ_elsewhere():
    np.testing.assert_array_equal(preprocess(noise(90, 90), 64, "pad"), preprocess(noise(90, 90), 64, "crop"))
    assert (preprocess(noise(90, 80), 64, "pad") != preprocess(noise(90, 80), 64, "crop")).any()


def test_pad_color_is_clips_mean():
    mean = (0.48145466, 0.4578275, 0.40821073)
    assert PAD_COLOR == tuple(int(255 * m) for m in mean)
    assert tuple(preprocess(noise(100, 10), 50, "pad")[0, 0]) == PAD_COLOR


@pytest.mark.parametrize("shape", [(8192, 41), (41, 8192)])
@pytest.mark.parametrize(("aspect", "limit"), [("pad", 2_800_000), ("crop", 200 * 224**2)])
def test_memory_is_bounded_for_extreme_aspect_ratios(shape, aspect, limit, monkeypatch):
    """8192x41 has 0.3 megapixels, but 67 when padded to a square."""
    image, sizes = Image.new("RGB", shape), []
    new, resize = Image.new, Image.Image.resize
    monkeypatch.setattr(Image, "new", lambda mode, size, color=0: sizes.append(size) or new(mode, size, color))

    def record_and_resize(self, size, resample):
        sizes.append(size)
        return resize(self, size, resample)

    monkeypatch.setattr(Image.Image, "resize", record_and_resize)
    assert preprocess(image, 224, aspect).shape == (224, 224, 3)
    assert sizes and max(width * height for width, height in sizes) <= limit


def test_an_unknown_aspect_is_a_config_error():
    with pytest.raises(ConfigError, match="unknown image aspect 'square'; choose one of crop, pad"):
        preprocess(noise(4, 4), 4, "square")


# --- load_image: colours ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_colours_equal_convert_rgb(mode):
    image = noise(9, 7).convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9) * 4))
    data = encoded(image.convert(mode), "PNG")
    loaded = load_image(data, "a.png")
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_alpha_is_dropped_not_blended():
    assert load_image(Image.new("RGBA", (1, 1), (10, 20, 30, 0)), "clear").getpixel((0, 0)) == (10, 20, 30)


def test_a_transparent_palette_and_cmyk_load():
    data = encoded(noise(8, 8).quantize(16), "PNG", transparency=3)
    np.testing.assert_array_equal(load_image(data, "p"), Image.open(io.BytesIO(data)).convert("RGB"))
    cyan = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95), "c")
    assert np.abs(np.asarray(cyan, int) - (0, 255, 255)).max() <= 3


def test_16_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(grey), "PNG"), "g"))
    assert loaded[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    same_in_rgb = png(5, 1, bits=16, color=2, pixels=b"\0" + np.repeat(grey[0], 3).astype(">u2").tobytes())
    np.testing.assert_array_equal(loaded, np.asarray(load_image(same_in_rgb, "rgb")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_used(kind):
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert load_image(data, "moving").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_every_allowed_format_loads_from_path_and_bytes(kind, tmp_path):
    data = encoded(noise(16, 8), kind, **({"icc_profile": srgb()} if kind == "JPEG" else {}))
    (tmp_path / "a").write_bytes(data)
    np.testing.assert_array_equal(load_image(tmp_path / "a", "a"), load_image(data, "a"))


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# --- load_image: refusals ------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "allowed"),
    [
        (8192, 4028, True), (8193, 100, False), (100, 8193, False), (8192, 41, True), (200, 1, True), (201, 1, False),
        (1, 201, False), (20_000, 1, False), (5744, 5745, True), (5745, 5745, False), (9380, 9380, False),
        (14_000, 14_000, False), (2**31 - 1, 2**31 - 1, False),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limits_come_from_the_header(width, height, allowed, monkeypatch):
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self.size))
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: self)
    if allowed:
        load_image(png(width, height), "x.png")
        assert decoded
        return
    with pytest.raises(DataError, match=r"^x\.png: .*(pixels|cannot be read)"):
        load_image(png(width, height), "x.png")
    assert not decoded


@pytest.mark.parametrize("kind", images.FORMATS)
def test_truncated_file_is_refused(kind):
    data = encoded(noise(64, 64), kind)
    with pytest.raises(DataError, match=r"^half\.jpg: .*cannot be read: the file is truncated"):
        load_image(data[: len(data) // 2], "half.jpg")


def test_error_messages_contain_no_memory_address():
    jpeg = encoded(noise(64, 64), "JPEG")
    for data in [
        *(data for data, _, _ in REFUSED.values()),
        jpeg[:60],
        jpeg[:900],
        png(2, 2),
        png(9000, 1),
        jpeg[:300] + b"\xff" * 300,
    ]:
        with pytest.raises(DataError) as caught:
            load_image(data, "a.jpg")
        assert not re.search(r"0x[0-9a-f]{6}", str(caught.value))


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="no such file"):
            load_image(path, str(path))
