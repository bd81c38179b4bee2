"""Reads as much as possible of a row of any source, with its faults."""

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

from llava_jax.data.sources.llava_row import image_names, parse_row
from llava_jax.errors import DataError, harmless


@dataclasses.dataclass(frozen=True)
class LenientRow:
    """A row and its faults. where: its name in messages. turns: empty if they are faulty. image_count: images that it
    names. images: those that exist, by file name, or by a hash of those without a file. faults: (kind, message)."""

    id: str
    where: str
    turns: tuple[tuple[str, str], ...]
    image_count: int
    images: dict[str, Path | bytes]
    faults: list[tuple[str, str]]


def read_leniently(source, index: int) -> LenientRow:
    """Reads a row of any source. Sources with `raw` (LlavaJson, ScienceQA) give the valid parts of a broken row. A
    broken row of other sources, whose rows were checked when written, is empty."""
    if not hasattr(source, "raw"):
        try:
            example = source[index]
        except DataError as fault:
            return LenientRow("", f"row {index}", (), 0, {}, [(fault.kind, str(fault))])
        images = dict(_name_and_image(image) for image in example.images)
        where = f"row {index} (id {example.id!r})"
        return LenientRow(example.id, where, example.turns, len(example.images), images, [])
    try:
        raw, where = source.raw(index)
    except DataError as fault:
        return LenientRow("", f"row {index}", (), 0, {}, [(fault.kind, str(fault))])
    faults, turns, names, images = [], (), [], {}
    row_id = harmless(raw.get("id", "")) if isinstance(raw, dict) else ""
    try:
        row_id, turns, names = parse_row(raw, where)
    except DataError as fault:
        faults.append((fault.kind, str(fault)))
        with contextlib.suppress(DataError):  # the images may be valid although the text is not
            names = image_names(raw, where) if isinstance(raw, dict) else []
    where = f"{where} (id {row_id!r})"
    for name in dict.fromkeys(names):
        try:
            image = source.images.find(name, where)
        except DataError as fault:
            faults.append((fault.kind, str(fault)))
        else:
            file = str(image) if isinstance(image, Path) else f"{source.images.path}: {name}"
            images[file] = image
            if not source.images.has(name) and (isinstance(image, bytes) or os.path.isfile(image)):
                message = f"{where}: there is no image {name!r}, but one in another form of this name, which is used"
                faults.append(("name form", f"{message}: {file}"))
    return LenientRow(row_id, where, turns, len(names), images, faults)


def _name_and_image(image: Path | bytes) -> tuple[str, Path | bytes]:
    """Returns (name, image), named by content if there is no file, so that an image in several rows has one name."""
    return (str(image) if isinstance(image, Path) else f"image {hashlib.sha256(image).hexdigest()[:16]}"), image
