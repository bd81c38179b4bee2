"""Every usual form of messages and images works, and every other one is refused by name."""

import base64
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from llava_jax.api.messages import parse_messages
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4
PICTURE = Image.fromarray(PIXELS)


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{BASE64}"


@pytest.fixture(autouse=True)
def picture_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.png").write_bytes(PNG)
    return tmp_path / "p.png"


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def pixels_of(sources) -> list[np.ndarray]:
    return [np.asarray(load_image(source, name)) for source, name in sources]


class Odd:
    """A tensor that cannot leave its device."""

    ndim = 3

    def __array__(self, *_, **__):
        raise RuntimeError("on another device")


SOURCES = {
    "path as text": "p.png",
    "Path": Path("p.png"),
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "PIL": PICTURE,
    "array": PIXELS,
    "reversed array": PIXELS[:, ::-1][:, ::-1],
    "jax": jnp.asarray(PIXELS),
    "torch": torch.tensor(PIXELS),
    "data URI": URI,
    "data URI with a parameter": URI.replace(";base64", ";name=p.png;base64"),
    "data URI without a type": f"data:;base64,{BASE64}",
    "data URI in capitals": f"DATA:image/PNG;BASE64,{BASE64}",
    "data URI with line breaks": f"data:image/png;base64,{BASE64[:20]}\n{BASE64[20:]}",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pixels_in_every_place(kind):
    source, text = SOURCES[kind], {"type": "text", "text": "What is it?"}
    forms = [
        parse_messages(user({"type": "image"}, text), [source]),
        parse_messages(user({"type": "image", "image": source}, text)),
        parse_messages([{"role": "user", "content": "What is it?"}], (source,)),
        parse_messages({"role": "user", "content": "<image>\nWhat is it?"}, source),
        parse_messages("What is it?", source),
    ]
    if isinstance(source, str):
        forms += [
            parse_messages(user({"type": "image_url", "image_url": {"url": source, "detail": "low"}}, text)),
            parse_messages(user({"type": "image_url", "image_url": source}, text)),
            parse_messages(user({"type": "image", "url": source}, text)),
            parse_messages(user({"type": "image", "path": source}, "What is it?")),
        ]
    for turns, sources in forms:
        assert turns == [("human", "<image>\nWhat is it?")]
        (pixels,) = pixels_of(sources)
        assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_pil_images_of_every_mode_work(mode):
    image = Image.new("L", (3, 2), 200) if mode in ("I;16", "PA", "F") else PICTURE
    _, sources = parse_messages("a", image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode))
    assert pixels_of(sources)[0].shape == (*image.size[::-1], 3)


def test_arrays_of_one_and_four_channels_work():
    for array in (PIXELS[..., 0], PIXELS[..., :1], np.dstack([PIXELS, PIXELS[..., 0]])):
        _, sources = parse_messages("a", array)
        assert pixels_of(sources)[0].shape == (4, 5, 3)
    _, sources = parse_messages("a", np.stack([PIXELS, 255 - PIXELS]))
    assert [pixels[0, 0, 0] for pixels in pixels_of(sources)] == [0, 255]


def test_images_keep_the_order_of_their_parts():
    """Those with a source and those of the argument, over several messages."""
    shades = [Image.new("RGB", (2, 2), (i,) * 3) for i in range(5)]
    messages = [
        {"role": "user", "content": ["a ", {"type": "image"}, {"type": "image", "image": shades[1]}, "<image> b"]},
        {"role": "assistant", "content": [{"type": "text", "text": "an <image>"}]},
        {"role": "user", "content": [{"type": "image", "image": shades[3]}, {"type": "image"}], "name": "x"},
    ]
    turns, sources = parse_messages(tuple(messages), [shades[0], shades[2], shades[4]])
    assert turns == [("human", "a <image>\n<image>\n<image> b"), ("gpt", "an <image>"), ("human", "<image>\n<image>\n")]
    assert [int(pixels[0, 0, 0]) for pixels in pixels_of(sources)] == [0, 1, 2, 3, 4]
    system = [{"role": "system", "content": "See <image>."}, {"role": "user", "content": "a"}]
    assert parse_messages(system, shades[0])[0] == [("system", "See <image>."), ("human", "<image>\na")]
    assert parse_messages("a", None) == parse_messages("a", []) == ([("human", "a")], [])


QUESTION = "What is it?"
REFUSED = {
    "no messages": ([], (), "the last message must have the role 'user'"),
    "answer last": ([{"role": "assistant", "content": "a"}], (), "the last message must have the role 'user'"),
    "None": (None, (), "messages is of type NoneType; pass"),
    "number": (3, (), "messages is of type int"),
    "list of texts": (["hello"], (), "message 0 is of type str, not a dict"),
    "list of lists": ([[{"role": "user", "content": "a"}]], (), "message 0 is of type list, not a dict"),
    "LLaVA's keys": ([{"from": "human", "value": "a"}], (), "message 0 has no content and no role, only .* .from"),
    "role of LLaVA": ([{"role": "human", "content": "a"}], (), "message 0 has the role 'human', not user or assistant"),
    "role in capitals": ([{"role": "User", "content": "a"}], (), "message 0 has the role 'User'"),
    "role is a list": ([{"role": ["user"], "content": "a"}], (), r"message 0 has the role \['user'\]"),
    "content is None": ([{"role": "user", "content": None}], (), "the content of message 0 is None"),
    "content is a number": ([{"role": "user", "content": 3}], (), "message 0 has a part that is neither .* image: 3"),
    "text is a number": (user({"type": "text", "text": 3}), (), "message 0 has a part that is neither"),
    "video": (user({"type": "video", "video": "a.mp4"}), (), "neither text nor image: {'type': 'video'"),
    "audio": (user({"type": "input_audio"}), (), "neither text nor image"),
    "part without type": (user({"image": "p.png"}), (), "neither text nor image"),
    "sources": (user({"type": "image", "path": "p.png", "url": "p.png"}), (), "image of message 0 has path and url"),
    "source is a number": (user({"type": "image", "image": 3}), (), "the image of message 0 is of type int; pass"),
    "no url": (user({"type": "image_url", "image_url": {}}), (), "neither text nor image"),
    "http": (user({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}), (),
             "the image of message 0 is a URL .'https://a.b/c.png'.; images are not downloaded"),
    "bucket": (QUESTION, "gs://bucket/a.png", r"images\[0\] is a URL"),
    "file URL": (QUESTION, ["p.png", "file:///a.png"], r"images\[1\] is a URL"),
    "not base64": (QUESTION, "data:image/png;base64,%%%", r"images\[0\] is not valid base64"),
    "other data URI": (QUESTION, "data:image/svg+xml,<svg/>", r"images\[0\] is a data URI that is not in base64"),
    "base64 of bytes": (user({"type": "image", "base64": PNG}), (), "has its base64 as bytes, not as a text"),
    "empty path": (QUESTION, "", r"images\[0\] is an empty path"),
    "images is a dict": (QUESTION, {"image": "p.png"}, "images is of type dict; pass a list"),
    "images is a number": (QUESTION, 7, "images is of type int"),
    "images is a file": (QUESTION, io.BytesIO(PNG), "images is of type BytesIO"),
    "image is None": (QUESTION, [None], r"images\[0\] is of type NoneType"),
    "float array": (QUESTION, PIXELS / 255, r"images\[0\] is an array float64\[4, 5, 3\]; pass uint8 pixels"),
    "channels first": (QUESTION, PIXELS.transpose(2, 0, 1), r"images\[0\] is an array uint8\[3, 4, 5\]; pass"),
    "one row": (QUESTION, [PIXELS[0, 0]], r"images\[0\] is an array uint8\[3\]"),
    "no pixels": (QUESTION, [PIXELS[:0]], r"images\[0\] is an array of shape \[0, 5, 3\], without pixels"),
    "other device": (QUESTION, Odd(), r"images\[0\] cannot become a NumPy array .on another device."),
    "too few images": (user({"type": "image"}, {"type": "image"}), "p.png", r"have 2 image part.s. .* images= has 1"),
    "too many images": (user({"type": "image"}), ["p.png"] * 2, r"have 1 image part.s. .* images= has 2 image"),
    "sources and images": (user({"type": "image", "path": "p.png"}), "p.png", r"have 0 image part.s. .* images= has 1"),
    "image of the assistant": (
        [{"role": "assistant", "content": [{"type": "image"}]}, *user("a")], (),
        "message 0 of the role assistant has an image; only those of the user",
    ),
    "typed marker": ("what does <image> mean?", (), "have 1 image part.s. .* images= has 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_messages_and_images_are_refused_by_name(name):
    messages, images, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        parse_messages(messages, images)


def test_too_much_base64_is_refused(monkeypatch):
    monkeypatch.setattr("llava_jax.api.messages.MAX_ENCODED", len(BASE64) - 1)
    with pytest.raises(DataError, match=r"images\[0\] has \d+ characters of base64; at most \d+ are accepted"):
        parse_messages("a", URI)


def test_bytes_that_are_no_image_are_named():
    for source in (b"hello", "data:text/html;base64,aGVsbG8="):
        _, sources = parse_messages("a", source)
        with pytest.raises(DataError, match=r"images\[0\]"):
            pixels_of(sources)
