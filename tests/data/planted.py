"""A folder with one fault of every kind that `data check` knows, several of some, between rows without any."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import llava_jax
from llava_jax.text.tokenizer import load_tokenizer

TINY = load_tokenizer(Path(llava_jax.__file__).parent / "pretrained" / "tokenizer")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(30, 20, seed), "JPEG", exif=exif)


def deep_rgb_png() -> bytes:
    """16 bits a channel, which PIL cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.arange(3 * 16, dtype=">u2").tobytes()
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")


def frames(kind: str, seed: int) -> bytes:
    return encoded(noise(16, 16, seed), kind, save_all=True, append_images=[noise(16, 16, seed + 50)])


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


IMAGES = {  # kind of fault -> {file name: bytes}
    "damaged": {
        "empty.jpg": b"",
        "half.jpg": (jpeg := encoded(noise(64, 64, 1), "JPEG"))[: len(jpeg) // 2],
        "half.png": (png := encoded(noise(64, 64, 2), "PNG"))[: len(png) // 2],
    },
    "wrong type": {
        "html.jpg": b"<html><body>404 <script>alert(1)</script></body></html>",
        "tiff.jpg": encoded(noise(16, 16, 3), "TIFF"),
    },
    "animated": {"moving.gif": frames("GIF", 4), "moving.webp": frames("WEBP", 5)},
    "CMYK": {"print.jpg": encoded(noise(16, 16, 6).convert("CMYK"), "JPEG")},
    "16-bit": {
        "grey.png": encoded(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100), "PNG"),
        "deep.png": deep_rgb_png(),
    },
    "EXIF-rotated": {"left.jpg": turned(6, 7), "head.jpg": turned(3, 8)},
    "extreme size": {
        "long.png": encoded(Image.new("L", (8193, 100)), "PNG"),
        "thin.png": encoded(Image.new("L", (20, 20 * 201)), "PNG"),
    },
    "tiny": {"pixel.gif": encoded(Image.new("P", (1, 1)), "GIF")},
}
LONG = "what is two ? " * 40

ROWS = {  # name -> (kind of fault, what is different in the row; ... leaves a key out)
    "no file": ("missing", {"image": "nowhere.jpg"}),
    "a folder": ("missing", {"image": "folder"}),
    "leads out": ("outside the folder", {"image": "../train.json"}),
    "no marker": ("placeholder mismatch", {"conversations": turns("what is it ?", "a bus")}),
    "no image": ("placeholder mismatch", {"image": ...}),
    "two markers": ("placeholder mismatch", {"conversations": turns("<image>a", "b", "<image>c", "d")}),
    "human twice": ("role order", {"conversations": [*turns("<image>"), *turns("b", "c")]}),
    "a system": ("role order", {"conversations": [{"from": "system", "value": "x"}, *turns("<image>", "b")]}),
    "no answer": ("role order", {"conversations": turns("<image>")}),
    "says nothing": ("empty answer", {"conversations": turns("<image>a", "b", "c", " \n")}),
    "late answer": ("no supervised tokens", {"conversations": turns("<image>" + LONG, "late")}),
    "long answer": ("overlong", {"conversations": turns("<image>what is two ?", LONG)}),
    "two": ("too many images", {"image": ["good0.jpg", "good1.jpg"], "conversations": turns("<image> <image>", "x")}),
    "text turns": ("broken row", {"conversations": ["hi"]}),
    "no turns": ("broken row", {"conversations": ...}),
    "half an emoji": ("broken row", {"conversations": turns("<image>", "\ud83d")}),
    "number as image": ("broken row", {"image": 3}),
}  # fmt: skip


def plant(folder: Path) -> set[tuple[str, str]]:
    """Writes folder/train.json and folder/images -> {(kind of fault, id of the row)}, all that there is to find."""
    images, rows, planted = folder / "images", [], set()
    (images / "folder").mkdir(parents=True)

    def add(name: str, changes: dict, kind: str | None = None) -> None:
        row = {"id": name, "image": "good0.jpg", "conversations": turns(f"<image>\nwhat is {name} ?", f"it is {name}")}
        rows.append(json.dumps({key: value for key, value in (row | changes).items() if value is not ...}))
        if kind:
            planted.add((kind, name))

    for i in range(6):  # images of several rows are no duplicates, nor are rows of one id and one image
        (images / f"good{i}.jpg").write_bytes(encoded(noise(24, 18, 100 + i), "JPEG"))
        add(f"good {i}", {"image": f"good{i}.jpg"})
        add(f"good {i}", {"image": f"good{i}.jpg", "conversations": turns("<image>where ?", f"there {i}")})
    for kind, files in IMAGES.items():
        for file, data in files.items():
            (images / file).write_bytes(data)
            add(file, {"image": file}, kind)
    for name, (kind, changes) in ROWS.items():
        add(name, changes, kind)
    rows.append("3")
    planted.add(("broken row", ""))
    rows.append(
        '{"id": "quotes", "conversations": [{"from": "human", "value": "an "unescaped" quote"}, {"from": "gpt"}]}'
    )
    planted.add(("broken JSON", ""))
    add("text alone", {"image": ..., "conversations": turns("what is two ?", "a number")})
    add("the same", {"image": ..., "conversations": turns("what is two ?", "a number")}, "duplicate sample")
    add("text alone", {"image": ..., "conversations": turns("what is three ?", "a number")}, "duplicate id")
    add("good 1", {"image": "good2.jpg", "conversations": turns("<image>who ?", "me")}, "duplicate id")
    (images / "copy.jpg").write_bytes((images / "good3.jpg").read_bytes())
    add("a copy", {"image": "copy.jpg"}, "duplicate image")
    add("last", {})
    (folder / "train.json").write_text("[" + ",\n".join(rows) + "]")
    return planted
