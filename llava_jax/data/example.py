"""One training or evaluation example, as every source yields it."""

import dataclasses
from pathlib import Path

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about images.

    `turns` are (role, text) with role "human" or "gpt"; the i-th `<image>` in human text is where `images[i]` goes.
    `kind` is the kind of question, for accuracy tables; most sources leave it empty.

    >>> Example("7", (("human", "<image>\\nWhat is it?"), ("gpt", "A red bus.")), (Path("bus.jpg"),))
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[Path | Image.Image, ...]
    kind: str = ""
