"""One row of any source, as much of it as can be read, with its faults."""

import contextlib
import dataclasses
import hashlib
from pathlib import Path

from llava_jax.data.sources.llava_row import image_names, parse_row
from llava_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class LenientRow:
    """`where`: words that name it; `turns`: none where they are at fault; `named`: how many images it names;
    `images`: those that are found, by file, or by content where they have no file; `faults`: (kind, message)."""

    id: str
    where: str
    turns: tuple[tuple[str, str], ...]
    image_count: int
    images: dict[str, Path | bytes]
    faults: list[tuple[str, str]]


def read_leniently(source, index: int) -> LenientRow:
    """source: one with `raw` (LlavaJson, ScienceQA) gives the parts of a broken row that are right; of others, whose
    rows were checked when they were written, a broken one has nothing."""
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
    row_id = str(raw.get("id", "")) if isinstance(raw, dict) else ""
    try:
        row_id, turns, names = parse_row(raw, where)
    except DataError as fault:
        faults.append((fault.kind, str(fault)))
        with contextlib.suppress(DataError):  # the images may be right where the text is not, and the other way round
            names = image_names(raw, where) if isinstance(raw, dict) else []
    where = f"{where} (id {row_id!r})"
    for name in dict.fromkeys(names):
        try:
            image = source.images.find(name, where)
        except DataError as fault:
            faults.append((fault.kind, str(fault)))
        else:
            images[str(image) if isinstance(image, Path) else f"{source.images.path}: {name}"] = image
    return LenientRow(row_id, where, turns, len(names), images, faults)


def _name_and_image(image: Path | bytes) -> tuple[str, Path | bytes]:
    """Named by its content, a picture of several rows is no duplicate of itself."""
    return (str(image) if isinstance(image, Path) else f"image {hashlib.sha256(image).hexdigest()[:16]}"), image
