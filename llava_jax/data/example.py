"""The training or evaluation example that every source yields."""

import dataclasses
import hashlib
from pathlib import Path

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about images.

    `turns` are (role, text) with role "human" or "gpt". `images[i]` (a path, file contents or a PIL image) replaces the
    i-th `<image>` in human text. `kind` is the kind of question, for accuracy tables; most sources leave it empty.

    >>> Example("7", (("human", "<image>\\nWhat is it?"), ("gpt", "A red bus.")), (Path("bus.jpg"),))
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[Path | bytes | Image.Image, ...]
    kind: str = ""


def id_hash(example_id: str) -> int:
    """Returns the first 48 bits of the SHA-256 of an id."""
    return int.from_bytes(hashlib.sha256(example_id.encode(errors="surrogatepass")).digest()[:6])
