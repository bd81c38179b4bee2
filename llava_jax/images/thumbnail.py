"""Thumbnails for HTML pages."""

from pathlib import Path

from PIL import Image

from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image


def thumbnail(image: Path | bytes | Image.Image | None, name: str, side: int = 96) -> Image.Image | None:
    """Returns a copy in mode RGB of up to `side` pixels a side, never enlarged; None for no or an unreadable image."""
    if image is None:
        return None
    try:
        reduced = load_image(image, name)
    except DataError:
        return None
    reduced.thumbnail((side, side))
    return reduced
