"""Reads contexts: COCO's annotation files, the original's released `caps_boxes_*.jsonl`, or any JSON Lines.

A JSON line is {"image", "captions" or "caption", "boxes" or "instances", "id"}:
- image: a file name below the image folder. id: default: the name without folder and extension.
- captions: a list of texts. caption: a single one. A line break in a caption becomes a space.
- boxes: [[category, left, top, right, bottom], ...], shares of width and height; or, as in the released file,
  instances: [{"category", "bbox": [left, top, right, bottom]}, ...]. Missing or null: nobody has annotated any.

Other keys are ignored. Everything is checked before anything is returned; errors name the file and the line or id.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import read_text, similar_name
from llava_jax.output.json_text import STRICT, parse_json

MAX_BYTES = 1_000_000_000  # of a file; COCO's largest, instances_train2017.json, has about half of that
# Two of the keys of COCO's files; a line of JSON Lines has no list of objects under them.
COCO_START = re.compile(r'^\s*\{.*?"(images|annotations)"\s*:\s*\[\s*\{', re.DOTALL)
COCO_PREFIX = re.compile(r"^COCO_(train|val|test)20\d\d_")
BLANK = re.compile(r"[ \t\r\n]*")
SLACK_PIXELS = 1.0  # COCO's boxes exceed their images by rounding


def read_contexts(path: Path, instances: Path | None = None) -> list[ImageContext]:
    """The contexts of a file, in its order. instances: the boxes that belong to COCO's captions; default: the file
    beside `path` whose name has `instances` for `captions`, if there is one.

    Raises DataError for a file that cannot be used, ConfigError for `instances` with a file that is not COCO's.
    """
    text = _read(path)
    if COCO_START.match(text[:65536]):
        beside = path.with_name(path.name.replace("captions", "instances"))
        if instances is None and beside != path and beside.is_file():
            instances = beside
        contexts = _coco_contexts(path, text, instances)
    elif instances is not None:
        raise ConfigError(f"--instances belongs to a file of COCO's captions, and {path} is none")
    else:
        contexts = _line_contexts(path, text)
    if not contexts:
        raise DataError(f"{path}: no images.")
    seen: set[str] = set()
    for context in contexts:
        if context.id in seen:
            raise DataError(f"{path}: the id {context.id!r} occurs twice. Every image needs its own.")
        seen.add(context.id)
    return contexts


def read_excluded(path: Path) -> set[str]:
    """The images that a file names, as `image_key`s: one file name or id a line, or JSON Lines with the key "image",
    such as the questions of an evaluation set. Raises DataError if it cannot be read or names none."""
    keys = set()
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.lstrip().startswith(("{", "[")):
            row = _parse(line, f"{path}: line {number}")
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise DataError(f'{path}: line {number}: key "image" must be a file name.')
            keys.add(image_key(row["image"]))
        elif line.strip():
            keys.add(image_key(line.strip()))
    if not keys:
        raise DataError(f"{path}: names no images.")
    return keys


def image_key(name: str) -> str:
    """What identifies an image in several data sets: its name without folder, extension and COCO's split and year.
    COCO_val2014_000000000042.jpg and 000000000042.jpg are one image."""
    return COCO_PREFIX.sub("", PurePosixPath(name).stem)


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size if path.is_file() else 0
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror}). Check the path.") from None
    if size > MAX_BYTES:
        raise DataError(f"{path}: has {size:,} bytes; at most {MAX_BYTES:,} are read. Split it.")
    if path.is_dir() or not path.exists():
        raise DataError(f"{path}: is no file{similar_name(path)}. Pass COCO's captions_*.json or JSON Lines.")
    if kind := wrong_kind(path):
        raise DataError(f"{path} {kind}")
    return read_text(path)


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as fault:
        raise DataError(f"{where}: not JSON ({fault}).") from None


# ------------------------------------------------------------------------------------------------- JSON Lines


def _line_contexts(path: Path, text: str) -> list[ImageContext]:
    contexts = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: captions may contain other line breaks
        if line.strip():
            where = f"{path}: line {number}"
            contexts.append(_line_context(_parse(line, where), where))
    return contexts


def _line_context(row: Any, where: str) -> ImageContext:
    if not isinstance(row, dict):
        raise DataError(f'{where}: expected {{"image": ..., "captions": [...]}}, found {type(row).__name__}.')
    image = _text(row.get("image"), f'{where}: key "image"')
    row_id = row.get("id", PurePosixPath(image).stem)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise DataError(f'{where}: key "id" must be a string.')
    row_id = _text(str(row_id), f'{where}: key "id"')
    where = f"{where} (id {row_id!r})"
    captions = row.get("captions", [row["caption"]] if "caption" in row else None)
    boxes = row.get("boxes", row.get("instances"))
    if boxes is not None and not isinstance(boxes, list):
        raise DataError(f'{where}: key "boxes" must be a list.')
    boxes = None if boxes is None else tuple(_line_box(box, where) for box in boxes)
    return ImageContext(row_id, image, _captions(captions, where), boxes)


def _line_box(box: Any, where: str) -> Box:
    if isinstance(box, dict) and isinstance(box.get("bbox"), list):
        box = [box.get("category"), *box["bbox"]]
    if not isinstance(box, list) or len(box) != 5 or not all(_is_number(value) for value in box[1:]):
        raise DataError(f"{where}: a box must be [category, left, top, right, bottom], not {str(box)[:80]}.")
    category = _text(box[0], f"{where}: the category of a box")
    left, top, right, bottom = map(float, box[1:])
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise DataError(
            f"{where}: the box of {category!r}, {box[1:]}, is not inside the image. Coordinates are left, top, right, "
            "bottom, as shares of width and height from 0 to 1."
        )
    return Box(category, left, top, right, bottom)


def _captions(captions: Any, where: str) -> tuple[str, ...]:
    if not isinstance(captions, list) or not captions:
        raise DataError(f'{where}: no captions. Key "captions" must be a list of texts.')
    return tuple(re.sub(r"\s*[\r\n]+\s*", " ", _text(caption, f"{where}: a caption")) for caption in captions)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} must be a string that is not empty.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{where} has a lone surrogate (such as \\ud83d). Repair it.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ------------------------------------------------------------------------------------------------- COCO


def _coco_contexts(path: Path, text: str, instances: Path | None) -> list[ImageContext]:
    images: dict[int, dict] = {}
    captions: dict[int, list[str]] = {}
    for key, item in _coco_items(path, text, ("images", "annotations")):
        where = f"{path}: {key}[{item.pop('#')}]"
        if key == "images":
            number = _integer(item.get("id"), f'{where}: key "id"')
            if number in images:
                raise DataError(f"{where}: the id {number} occurs twice.")
            images[number] = item
        else:
            number = _integer(item.get("image_id"), f'{where}: key "image_id"')
            if not isinstance(item.get("caption"), str):
                raise DataError(f'{where}: no "caption". Pass captions_*.json as CONTEXTS, instances_* as --instances.')
            captions.setdefault(number, []).append(item["caption"])
    if unknown := captions.keys() - images.keys():
        raise DataError(f"{path}: a caption belongs to image {min(unknown)}, which is not in its list of images.")
    boxes = None if instances is None else _coco_boxes(instances, images)
    contexts = []
    for number, image in images.items():
        where = f"{path}: image {number}"
        contexts.append(
            ImageContext(
                f"{number:012d}",
                _text(image.get("file_name"), f'{where}: key "file_name"'),
                _captions(captions.get(number), where),
                None if boxes is None else tuple(boxes.get(number, ())),
            )
        )
    return contexts


def _coco_boxes(path: Path, images: dict[int, dict]) -> dict[int, list[Box]]:
    """Boxes by image, in the order of the file. Crowds are left out: a box of many objects would make every count
    wrong. Boxes of other images are ignored."""
    categories: dict[int, str] = {}
    kept: dict[int, list[tuple[int, list[float], int]]] = {}
    for key, item in _coco_items(path, _read(path), ("categories", "annotations")):
        index = item.pop("#")
        where = f"{path}: {key}[{index}]"
        if key == "categories":
            categories[_integer(item.get("id"), where)] = _text(item.get("name"), f'{where}: key "name"')
        elif (number := _integer(item.get("image_id"), f'{where}: key "image_id"')) in images:
            box = item.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                raise DataError(f'{where}: key "bbox" must be [x, y, width, height].')
            category = _integer(item.get("category_id"), f'{where}: key "category_id"')
            if not item.get("iscrowd"):
                kept.setdefault(number, []).append((category, box, index))
    result: dict[int, list[Box]] = {}
    for number, items in kept.items():
        size = [images[number].get(key) for key in ("width", "height")]
        if not all(_is_number(side) and side > 0 for side in size):
            raise DataError(f"image {number}: width and height must be pixels, above 0, not {size}.")
        for category, box, index in items:
            where = f"{path}: annotations[{index}] (image {number})"
            if category not in categories:
                raise DataError(f"{where}: category {category} is not in the file's list of categories.")
            result.setdefault(number, []).append(_pixel_box(categories[category], box, size, where))
    return result


def _pixel_box(category: str, box: list[float], size: list[float], where: str) -> Box:
    """A box of COCO, (x, y, width, height) in pixels, as shares."""
    x, y, w, h = box
    edges = (x, y, x + w, y + h)
    limits = (size[0], size[1]) * 2
    if w < 0 or h < 0 or any(not -SLACK_PIXELS <= e <= m + SLACK_PIXELS for e, m in zip(edges, limits, strict=True)):
        raise DataError(f"{where}: the box {box} is not inside the image of {size[0]} x {size[1]} pixels.")
    return Box(category, *(min(max(e / m, 0.0), 1.0) for e, m in zip(edges, limits, strict=True)))


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where} must be an integer.")
    return value


def _coco_items(path: Path, text: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Yields (key, object) for the objects in these lists of the file, without their outlines; "#" is an object's index
    in its list. Objects are parsed one by one: parsed as a whole, COCO's largest file needs several times its size."""
    position, listed = _skip(text, 0, "{", path), set()
    while True:
        key, position = _value(text, position, path)
        position = _skip(text, position, ":", path)
        if key in keys and key not in listed and text[position : position + 1] == "[":
            listed.add(key)
            position, index = _skip(text, position, "[", path), 0
            while text[position : position + 1] != "]":
                item, position = _value(text, position, path)
                if not isinstance(item, dict):
                    raise DataError(f"{path}: {key}[{index}] is no object.")
                item.pop("segmentation", None)
                yield key, item | {"#": index}
                index += 1
                if text[position : position + 1] != "]":
                    position = _skip(text, position, ",", path)
            position = _skip(text, position, "]", path)
        else:
            _, position = _value(text, position, path)
        if text[position : position + 1] == "}":
            break
        position = _skip(text, position, ",", path)
    if missing := [key for key in keys if key not in listed]:
        raise DataError(f"{path}: no list of {' and '.join(missing)}; is it a file of COCO's annotations?")


def _value(text: str, position: int, path: Path) -> tuple[Any, int]:
    """(value at the position, position of what follows)."""
    try:
        value, position = STRICT.raw_decode(text, position)
    except (ValueError, RecursionError) as fault:
        line = text.count("\n", 0, getattr(fault, "pos", position)) + 1
        raise DataError(f"{path}: not JSON ({getattr(fault, 'msg', fault)}, near line {line}).") from None
    return value, BLANK.match(text, position).end()


def _skip(text: str, position: int, mark: str, path: Path) -> int:
    """The position of what follows `mark`."""
    position = BLANK.match(text, position).end()
    if text[position : position + 1] != mark:
        raise DataError(f"{path}: not JSON ({mark!r} expected at character {position:,}). Is the file complete?")
    return BLANK.match(text, position + 1).end()
