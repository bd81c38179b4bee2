"""The training or evaluation example that every source yields."""

import dataclasses
import hashlib
from pathlib import Path

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about images.

    `turns` are (role, text) with role "human" or "gpt", in some data after a "system" turn. `images[i]` (a path, file
    contents or a PIL image) replaces the i-th `<image>` in human text. `kind` is the kind of question, for accuracy
    tables; most sources leave it empty.

    >>> Example("7", (("human", "<image>\\nWhat is it?"), ("gpt", "A red bus.")), (Path("bus.jpg"),))
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[Path | bytes | Image.Image, ...]
    kind: str = ""

    @property
    def opening(self) -> tuple[tuple[str, str], ...]:
        """The turns before the first answer: a question, after a system text if there is one."""
        return self.turns[: 2 if self.turns[0][0] == "system" else 1]

    @property
    def first_answer(self) -> str:
        return self.turns[len(self.opening)][1]


def id_hash(example_id: str) -> int:
    """Returns the first 48 bits of the SHA-256 of an id."""
    return int.from_bytes(hashlib.sha256(example_id.encode(errors="surrogatepass")).digest()[:6])
