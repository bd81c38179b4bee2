"""What a text-only teacher sees of an image: its captions, and boxes of its objects."""

import dataclasses

DECIMALS = 3  # of a coordinate in a prompt


@dataclasses.dataclass(frozen=True)
class Box:
    """An object in an image. Coordinates are shares of the image's width and height, 0 to 1."""

    category: str
    left: float
    top: float
    right: float
    bottom: float


@dataclasses.dataclass(frozen=True)
class ImageContext:
    """What is known of an image. boxes: None where nobody has annotated any, () where it holds no known object."""

    id: str
    image: str  # file name, relative to the image folder
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] | None = None


def context_text(context: ImageContext, with_boxes: bool) -> str:
    """The context as the original's prompts show it (its `NNN_caps.txt`): captions one a line as they are; with boxes
    an empty line, then `category: [left, top, right, bottom]` per box, in the order of the annotations, as Python
    prints floats that are rounded to three decimals: [0.63, 0.0, 1.0, 0.514]."""
    lines = list(context.captions)
    if with_boxes and context.boxes:
        lines += ["", *(f"{box.category}: {coordinates(box)}" for box in context.boxes)]
    return "\n".join(lines)


def coordinates(box: Box) -> list[float]:
    """[left, top, right, bottom], rounded for a prompt."""
    return [round(value, DECIMALS) for value in (box.left, box.top, box.right, box.bottom)]


def context_record(context: ImageContext) -> dict:
    """The context as a line of contexts.jsonl, which `read_contexts` reads back."""
    boxes = None if context.boxes is None else [list(dataclasses.astuple(box)) for box in context.boxes]
    return {"id": context.id, "image": context.image, "captions": list(context.captions), "boxes": boxes}
