"""What an image file holds besides its pixels: the EXIF orientation, and metadata that a decoder may stumble over."""

import contextlib
import io
import struct
import zlib
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngStream

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {  # orientation: what turns the stored pixels upright; the same as in PIL.ImageOps.exif_transpose
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_RULES = {  # values of data.exif, and what they do to images with an orientation
    "ignore": "ignored, as in the original (data.exif=apply turns the images)",
    "apply": "applied (data.exif=apply)",
}
MAX_PIXEL_BYTES = 320 << 20  # of a file; 33 million pixels of 16-bit RGBA have 264 MB even if nothing is compressed
MAX_METADATA = 1 << 20  # bytes of a text or EXIF block, unpacked

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
JPEG_EOI, JPEG_SOS, JPEG_COMMENT, JPEG_APP = 0xD9, 0xDA, 0xFE, range(0xE0, 0xF0)


def orientation(image: Image.Image) -> int:
    """Returns the orientation, 1 to 8, from EXIF or else XMP; 1 if there is none or it cannot be read. The pixels of an
    opened PNG are decoded, because its EXIF data may follow them."""
    try:  # broken EXIF raises exceptions of any kind, and is no fault of the pixels
        value = image.getexif().get(ORIENTATION, 1)
        return int(value) if value in TURNS else 1
    except Exception:
        return 1


def without_metadata(file: BinaryIO) -> tuple[io.BytesIO, dict] | None:
    """Copies what decides the pixels of a JPEG or PNG -> (the file's copy, entries of `Image.info` for `orientation`).

    None for other formats. Neither metadata nor the copy takes much more memory than the pixels, whatever the file
    claims. The format's own rules decide: in PNG, chunks with a lower-case first letter are optional; in JPEG, only the
    JFIF and Adobe segments bear on colours, and libjpeg ignores those that are too short.
    """
    file.seek(0)
    start = file.read(len(PNG))
    file.seek(0)
    if start == PNG:
        return _pixels_of_png(file)
    return _pixels_of_jpeg(file) if start.startswith(JPEG) else None


def _pixels_of_png(file: BinaryIO) -> tuple[io.BytesIO, dict]:
    copy, stream = io.BytesIO(), PngStream(io.BytesIO())
    copy.write(file.read(len(PNG)))
    while len(head := file.read(8)) == 8 and copy.tell() < MAX_PIXEL_BYTES:
        length, kind = struct.unpack(">I4s", head)
        if not kind[0] & 0x20:
            copy.write(head + file.read(min(length, MAX_PIXEL_BYTES) + 4))
        elif kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt") and length <= MAX_METADATA:
            body, checksum = file.read(length), file.read(4)
            if zlib.crc32(kind + body).to_bytes(4, "big") == checksum:
                stream.fp = io.BytesIO(body)
                with contextlib.suppress(Exception):  # raises for text that is too long, among others
                    stream.call(kind, 0, length)
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            break
    copy.seek(0)
    return copy, {key: stream.im_info[key] for key in ("exif", "xmp", "Raw profile type exif") if key in stream.im_info}


def _pixels_of_jpeg(file: BinaryIO) -> tuple[io.BytesIO, dict]:
    copy, info = io.BytesIO(), {}
    copy.write(file.read(2))
    while byte := file.read(1):
        if byte != b"\xff":  # bytes between segments, which decoders skip
            continue
        while (byte := file.read(1)) == b"\xff":
            pass
        marker = byte[0] if byte else JPEG_EOI
        if marker in JPEG_WITHOUT_LENGTH or marker == 0:
            continue
        if marker in (JPEG_SOS, JPEG_EOI):
            copy.write(b"\xff" + byte + file.read(MAX_PIXEL_BYTES))
            break
        size = file.read(2)
        body = file.read(max(int.from_bytes(size, "big") - 2, 0))
        if marker not in JPEG_APP and marker != JPEG_COMMENT:
            copy.write(b"\xff" + byte + size + body)
        elif body.startswith(b"JFIF\0") and len(body) >= 14 or body.startswith(b"Adobe") and len(body) >= 12:
            copy.write(b"\xff" + byte + size + body)
        elif body.startswith(b"Exif\0\0") and len(info.get("exif", b"")) < MAX_METADATA:  # may span several segments
            info["exif"] = info["exif"] + body[6:] if "exif" in info else body
        elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            info["xmp"] = body.split(b"\0", 1)[1]
    copy.seek(0)
    return copy, info
