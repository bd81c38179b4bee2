"""Every fault of a data set at once: each row parsed and tokenised, each image decoded, what occurs twice found.

Rules have one home: whatever the reader, the image loader or the tokenizer would refuse in a run is found by calling
them; only what they take in silence is looked for here.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.errors import DataError
from llava_jax.images.preprocess import FORMATS, image_file, load_image
from llava_jax.text.encode import fit

# An error stops a run, or teaches something wrong. With a warning a run goes on, as the original did.
ERRORS = {
    "broken JSON": "not JSON, or cut off; the check goes on at the next thing that looks like a row",
    "broken row": "a key is missing or holds something else than it should",
    "role order": "turns do not alternate human, gpt, ..., or end with human, or there are none",
    "placeholder mismatch": "not as many <image> in the questions as images",
    "empty answer": "an answer of nothing but space: it teaches to say nothing",
    "too many images": "more than a row holds (--max-images)",
    "no supervised tokens": "no answer begins within --length",
    "outside the folder": "the image's path leads out of the image folder",
    "missing": "no such image file",
    "wrong type": "not an image of a known format",
    "damaged": "an image that is empty, cut off or does not decode",
    "extreme size": "an image of a side, an aspect ratio or a number of pixels that is refused",
    "unusable": "the template or the tokenizer cannot take it, or its record cannot be read",
}
WARNINGS = {
    "overlong": "cut off at --length",
    "tiny": "an image smaller than one patch, often a stand-in for one that is gone",
    "animated": "of several frames the first counts",
    "CMYK": "converted to RGB",
    "16-bit": "the high bytes count",
    "EXIF-rotated": "the turn that the file asks for is not made, as in the original",
    "duplicate id": "the id of an earlier row that shows other images, or none",
    "duplicate sample": "the conversation and images of an earlier row",
    "duplicate image": "the bytes of an image of another name",
}
KINDS = ERRORS | WARNINGS
TINY = 14  # pixels of the shorter side
ORIENTATION = 0x0112  # EXIF's tag

Encode = Callable[[tuple, int], tuple[np.ndarray, np.ndarray]]  # see tokenize.encode_row


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of one row. `part`: the split of a source that has several; `image`: the file at fault (or the
    name of its content, see `LenientRow`), or the first of the row's."""

    kind: str
    row: int
    id: str
    part: str
    message: str
    image: str | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a worker says of one row. `images`: the digest of each image that decodes, None for others."""

    findings: list[Finding]
    row: int
    id: str
    part: str
    turns: tuple = ()
    images: dict[str, bytes | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What rows must fit. encode: None leaves out what needs a tokenizer, "overlong" and "no supervised tokens";
    max_images: None for any number."""

    encode: Encode | None = None
    length: int = 2048
    max_images: int | None = None


def check_rows(rows: range, *, source, limits: Limits) -> list[Checked]:
    """The work of one task. source: any; LLaVA's JSON not strict, so that all of its faults are found."""
    return [_check_row(source, row, limits) for row in rows]


def _check_row(source, row: int, limits: Limits) -> Checked:
    part = source.part(row) if hasattr(source, "part") else ""
    lenient = read_leniently(source, row)
    faults: list[tuple[str, str, str | None]] = [(kind, message, None) for kind, message in lenient.faults]
    if lenient.turns:
        for kind, message in _text_faults(lenient.turns, lenient.image_count, limits):
            faults.append((kind, f"{lenient.where}: {message}", None))
    images = {}
    for name, image in lenient.images.items():
        image_faults, images[name] = _check_image(image, name)
        faults += [(kind, message, name) for kind, message in image_faults]
    first_image = next(iter(images), None)
    findings = [Finding(kind, row, lenient.id, part, message, image or first_image) for kind, message, image in faults]
    return Checked(findings, row, lenient.id, part, lenient.turns, images)


def _text_faults(turns, images: int, limits: Limits) -> Iterator[tuple[str, str]]:
    if any(role == "gpt" and not text.strip() for role, text in turns):
        yield "empty answer", "an answer is empty. Write one, or remove the round."
    if limits.max_images is not None and images > limits.max_images:
        yield "too many images", f"{images} images, but a row holds {limits.max_images}"
    if limits.encode is None:
        return
    try:
        ids, mask = limits.encode(turns, images)
        fit(ids, mask, limits.length, "truncate")
    except DataError as fault:
        yield fault.kind, str(fault)
        return
    if len(ids) > limits.length:
        yield "overlong", f"{len(ids)} tokens, {len(ids) - limits.length} more than {limits.length}"


def _check_image(image: Path | bytes, name: str) -> tuple[list[tuple[str, str]], bytes | None]:
    """((kind, message) of each fault of a file, the digest of its bytes if it decodes)."""
    try:
        load_image(image, name)
    except DataError as fault:
        size = len(image) if isinstance(image, bytes) else image.stat().st_size if image.is_file() else None
        return [("damaged", f"{name}: the file is empty (0 bytes).") if size == 0 else (fault.kind, str(fault))], None
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    with Image.open(image_file(image, name), formats=FORMATS) as file:
        return [(kind, f"{name}: {message}") for kind, message in _image_warnings(file)], digest


def _image_warnings(image: Image.Image) -> Iterator[tuple[str, str]]:
    """What `load_image` takes in its own way. image: opened, not decoded, for its tiles still say how it is stored."""
    if min(image.size) < TINY:
        yield "tiny", f"{image.width}x{image.height} pixels"
    if image.mode == "CMYK":
        yield "CMYK", "four colour channels, for print"
    if image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile):
        yield "16-bit", "16 bits a channel"
    # Damaged frames behind the first, or a damaged EXIF block, raise anything; nothing of ours reads them.
    with contextlib.suppress(Exception):
        if getattr(image, "is_animated", False):
            yield "animated", "more than one frame"
    with contextlib.suppress(Exception):
        if (orientation := image.getexif().get(ORIENTATION, 1)) in range(2, 9):
            yield "EXIF-rotated", f"EXIF orientation {orientation}"


class Duplicates:
    """Finds what occurs twice, row after row, from digests alone.

    - "duplicate sample": turns and images (by their bytes) of an earlier row, whatever its id.
    - "duplicate id": an earlier row's id, but other images or none. One picture's conversation, description and
      reasoning may share an id, as in LLaVA's own data.
    - "duplicate image": the bytes of an earlier image under another name; said once a file. A name used by several rows
      is no fault.
    """

    def __init__(self):
        self._samples: dict[bytes, int] = {}
        self._ids: dict[str, tuple[int, bytes]] = {}
        self._images: dict[bytes, str] = {}
        self._reported: set[str] = set()

    def findings(self, checked: Checked) -> Iterator[Finding]:
        """What occurs a second time in this row."""
        is_duplicate = False
        if checked.turns:
            image_digests = [digest.hex() if digest else name for name, digest in checked.images.items()]
            images_digest = _digest(image_digests)
            first_row = self._samples.setdefault(_digest([checked.turns, image_digests]), checked.row)
            first_with_id, first_digest = self._ids.setdefault(checked.id, (checked.row, images_digest))
            is_duplicate = first_row != checked.row
            if is_duplicate:
                yield self._finding("duplicate sample", checked, f"the same as row {first_row}")
            elif first_with_id != checked.row and (images_digest != first_digest or not image_digests):
                yield self._finding("duplicate id", checked, f"id {checked.id!r} is also that of row {first_with_id}")
        for name, digest in checked.images.items():
            if digest is not None and (first_name := self._images.setdefault(digest, name)) != name:
                if not is_duplicate and name not in self._reported:
                    yield self._finding("duplicate image", checked, f"{name}: the same bytes as {first_name}", name)
                self._reported.add(name)

    @staticmethod
    def _finding(kind: str, checked: Checked, message: str, image: str | None = None) -> Finding:
        image = image or next(iter(checked.images), None)
        return Finding(kind, checked.row, checked.id, checked.part, message, image)


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()[:16]
