"""Turns pairs of image and caption into rows for stage 1: a brief instruction, and the caption as its answer.

The original draws one of eleven instructions, with the image before or after it. These are eleven others.
"""

import os
import random
from pathlib import Path

from llava_jax.errors import DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import read_text
from llava_jax.output.json_text import parse_json
from llava_jax.text.templates import IMAGE_MARKER

INSTRUCTIONS = (
    "Say in a few words what this picture shows.",
    "What can be seen here? Keep it short.",
    "Write a one-line caption for the image.",
    "Sum up the picture in one sentence.",
    "Give the gist of this photo.",
    "Tell me briefly what is in the image.",
    "In short, what does this picture contain?",
    "Name the main content of the photo in a short sentence.",
    "How would you caption this image?",
    "Put what you see into one short sentence.",
    "State concisely what the image is about.",
)


def caption_row(image: str, caption: str, seed: int) -> dict:
    """Returns a row of LLaVA's JSON. Only image, caption and seed decide the instruction and the marker's position."""
    rng = random.Random(f"captions/{seed}/{image}/{caption}")
    instruction = rng.choice(INSTRUCTIONS)
    question = rng.choice((f"{IMAGE_MARKER}\n{instruction}", f"{instruction}\n{IMAGE_MARKER}"))
    return {
        "id": os.path.splitext(image)[0],
        "image": image,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": caption}],
    }


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Reads (image, caption) pairs from JSON Lines or one JSON array of {"image", "caption"}; other keys are ignored.

    White space around captions is removed. Raises DataError with the file and the line or row of an invalid pair.
    """
    text = read_text(path)
    if text.strip() and not text.lstrip().startswith(("[", "{")) and (kind := wrong_kind(path)):
        raise DataError(f"{path} {kind}")
    if text.lstrip().startswith("["):
        rows = [(f"{path}: row {i}", row) for i, row in enumerate(_parse_json(text, str(path)))]
    else:
        lines = enumerate(text.split("\n"), 1)  # not splitlines: captions may contain other line breaks
        rows = [(f"{path}: line {i}", _parse_json(line, f"{path}: line {i}")) for i, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: no pairs.")
    return [parse_pair(row, where) for where, row in rows]


def _parse_json(text: str, where: str):
    try:
        return parse_json(text)
    except ValueError as fault:
        raise DataError(f'{where}: not JSON ({fault}); expected {{"image": ..., "caption": ...}}.') from None


def parse_pair(row, where: str) -> tuple[str, str]:
    """Returns (image, caption without white space around it). Raises DataError, starting with `where`, if either is
    not a string, is empty, or has a lone surrogate."""
    values = [row.get(key) for key in ("image", "caption")] if isinstance(row, dict) else [None, None]
    for key, value in zip(("image", "caption"), values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f'{where}: key "{key}" must be a string that is not empty.')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f'{where}: key "{key}" has a lone surrogate (such as \\ud83d). Repair it.') from None
    return values[0], values[1].strip()
