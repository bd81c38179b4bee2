"""Small pictures for pages."""

from pathlib import Path

from PIL import Image

from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image


def thumbnail(image: Path | bytes | Image.Image | None, name: str, side: int = 96) -> Image.Image | None:
    """An image in mode RGB, reduced to at most `side` pixels a side; a smaller one keeps its size. None where there is
    none or it does not open."""
    if image is None:
        return None
    try:
        reduced = load_image(image, name)
    except DataError:
        return None
    reduced.thumbnail((side, side))
    return reduced
