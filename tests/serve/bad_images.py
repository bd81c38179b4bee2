"""Image URLs that a server must refuse, and odd images that it must read."""

import base64
import io
import struct
import zlib

from PIL import Image


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A grey PNG that a few bytes describe, with additional chunks after its header."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def text_chunk(size: int) -> bytes:
    """A chunk of PNG with `size` bytes of text."""
    data = b"teXt" + bytes(size)
    return struct.pack(">I", size) + data + struct.pack(">I", zlib.crc32(data))


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (20, 20)).save(file, kind, **options)
    return file.getvalue()


def bad_images(port: int) -> dict[str, str]:
    """Name -> URL of an image that must be refused. port: of a listener that must not be reached."""
    header_only = png(8, 8)[:33]
    huge = png(8, 8).replace(struct.pack(">II", 8, 8), struct.pack(">II", 13_400, 13_400))
    return {
        "empty": uri(b""),
        "empty url": "",
        "20000x1": uri(png(20_000, 1)),
        "1x5000": uri(png(1, 5_000)),
        "88 megapixels": uri(png(9_400, 9_400)),
        "179 megapixels in the header": uri(huge),
        "bad base64": "data:image/png;base64,@@@@",
        "no base64": "data:image/svg+xml,<svg/>",
        "11 MB": uri(png(8, 8) + bytes(11 << 20)),
        "svg": uri(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>", "image/svg+xml"),
        "eps": uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "fits": uri(b"SIMPLE  =                    T".ljust(2880)),
        "pdf": uri(b"%PDF-1.7\n"),
        "tiff": uri(saved("TIFF")),
        "html": uri(b"<html><script>alert(1)</script></html>", "text/html"),
        "html as png": uri(b"<html><script>alert(1)</script></html>"),
        "truncated png": uri(png(300, 300)[:-40]),
        "header only": uri(header_only),
        "truncated jpeg": uri(saved("JPEG")[:300], "image/jpeg"),
        "zip": uri(b"PK\x03\x04" + bytes(100)),
        "npy": uri(b"\x93NUMPY\x01\x00" + bytes(100)),
        "elf": uri(b"\x7fELF" + bytes(100)),
        "file": "file:///etc/passwd",
        "path": "/etc/passwd",
        "metadata service": "http://169.254.169.254/latest/meta-data/",
        "listener": f"http://127.0.0.1:{port}/x.png",
        "hex host": f"http://0x7f.1:{port}/",
        "mapped host": f"http://[::ffff:127.0.0.1]:{port}/",
        "backslash": f"http:\\\\127.0.0.1:{port}/",
        "no scheme": f"//127.0.0.1:{port}/x.png",
    }
