"""Finds all faults of a data set: parses and tokenises each row, decodes each image, and looks for duplicates.

What a run would refuse is found by calling the reader, the image loader and the tokenizer themselves. Only what they
accept silently is checked here.
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
from llava_jax.images.metadata import orientation
from llava_jax.images.preprocess import load_image, read_image
from llava_jax.text.encode import fit

# An error stops a run, or teaches something wrong. After a warning a run continues, as the original does.
ERRORS = {
    "broken JSON": "not JSON, truncated, or a value that JSON lacks; the check continues at what looks like a row",
    "broken row": "a key is missing or has a wrong value",
    "role order": "turns do not alternate human, gpt, ..., or end with human, or there are none",
    "placeholder mismatch": "the number of <image> in the questions differs from the number of images",
    "empty answer": "an answer of white space only, which teaches to answer nothing",
    "too many images": "more images than a row holds (--max-images)",
    "no supervised tokens": "no answer starts within --length",
    "outside the folder": "the image path is outside of the image folder",
    "missing": "no such image file",
    "wrong type": "not in a supported image format",
    "damaged": "an image that is empty, truncated or cannot be decoded",
    "extreme size": "a side, aspect ratio or number of pixels beyond the limits",
    "unusable": "refused by the template or the tokenizer, or its record cannot be read",
}
WARNINGS = {
    "overlong": "truncated at --length",
    "tiny": "an image smaller than one patch, often a stand-in for a removed one",
    "animated": "several frames, of which the first is used",
    "CMYK": "converted to RGB",
    "16-bit": "only the high bytes are used",
    "EXIF-rotated": "training turns such images only with data.exif=apply, the original never",
    "name form": "the file's name has another form (Unicode, or how an archive writes it); the file is used",
    "duplicate id": "the id of an earlier row with other images, or none",
    "duplicate sample": "the conversation and images of an earlier row",
    "duplicate image": "the bytes of an image with another name",
}
KINDS = ERRORS | WARNINGS
TINY = 14  # pixels of the shorter side

Encode = Callable[[tuple, int], tuple[np.ndarray, np.ndarray]]  # see text.encode.encode_row


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of one row. part: its split, for a source with several. image: the faulty file (or the name of its
    content, see `LenientRow`), or else the first image of the row."""

    kind: str
    row: int
    id: str
    part: str
    message: str
    image: str | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A worker's result for one row. images: the digest of each image, None for one that cannot be decoded."""

    findings: list[Finding]
    row: int
    id: str
    part: str
    turns: tuple = ()
    images: dict[str, bytes | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a row. encode: None skips the checks that need a tokenizer, "overlong" and "no supervised tokens".
    max_images: None for no limit."""

    encode: Encode | None = None
    length: int = 2048
    max_images: int | None = None


def check_rows(rows: range, *, source, limits: Limits) -> list[Checked]:
    """Checks the rows of one task. source: any; LLaVA's JSON with `is_strict=False`, so that all faults are found."""
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
    """Returns ((kind, message) of each fault of an image, the digest of its bytes if it can be decoded)."""
    try:
        load_image(image, name)
    except DataError as fault:
        return [(fault.kind, str(fault))], None
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    notes = read_image(image, name, lambda opened: list(_image_warnings(opened)))
    return [(kind, f"{name}: {message}") for kind, message in notes], digest


def _image_warnings(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Yields what `load_image` changes silently. image: not decoded, as its tiles then tell how it is stored."""
    if min(image.size) < TINY:
        yield "tiny", f"{image.width}x{image.height} pixels"
    if image.mode == "CMYK":
        yield "CMYK", "four colour channels, for print"
    if image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile):
        yield "16-bit", "16 bits a channel"
    # Damaged later frames, which no run reads, raise exceptions of any kind.
    with contextlib.suppress(Exception):
        if getattr(image, "is_animated", False):
            yield "animated", "more than one frame"
    if (turn := orientation(image)) > 1:
        yield "EXIF-rotated", f"EXIF orientation {turn}"


class Duplicates:
    """Finds duplicates, row by row, from digests.

    - "duplicate sample": the turns and images (by their bytes) of an earlier row, with any id.
    - "duplicate id": the id of an earlier row with other images, or none. The conversation, description and reasoning
      about one image may share an id, as in LLaVA's own data.
    - "duplicate image": the bytes of an earlier image with another name; reported once per file. A name in several rows
      is no fault.
    """

    def __init__(self):
        self._samples: dict[bytes, int] = {}
        self._ids: dict[str, tuple[int, bytes]] = {}
        self._images: dict[bytes, str] = {}
        self._reported: set[str] = set()

    def findings(self, checked: Checked) -> Iterator[Finding]:
        """Yields the duplicates in this row."""
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
