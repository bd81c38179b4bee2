"""Contexts of synthetic scenes: captions and boxes that are exact."""

import random

from llava_jax.data.sources import scene_world
from llava_jax.datagen.contexts import Box, ImageContext

CAPTIONS = 5  # drawn for an image, as in COCO; equal ones count once


def scene_context(scene: scene_world.Scene, seed: int, index: int, held_out: bool) -> ImageContext:
    """The context of a scene. A category is color and shape, such as "red circle", which occurs at most once in a
    scene. Every caption mentions all objects, in reading order or another."""
    rng = random.Random(f"captions/{seed}/{index}/{held_out}")
    captions = tuple(dict.fromkeys(scene_world.caption(scene, rng) for _ in range(CAPTIONS)))
    boxes = tuple(
        Box(o.name, x, y, x + w, y + h)
        for o, (x, y, w, h) in zip(scene.objects, scene_world.boxes(scene, 1), strict=True)
    )
    name = f"scene-{'held-out-' if held_out else ''}{seed}-{index}"
    return ImageContext(name, f"{name}.png", captions, boxes)
