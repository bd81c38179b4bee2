"""Compares two models at seven points of a forward pass over a fixed image and a short prompt.

Both compute in float32, whatever the dtype of their weights, so differences come from the weights.
"""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from llava_jax.api.model import LlavaModel
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.images.preprocess import preprocess
from llava_jax.models.clip import normalize
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.runtime.sharding import logical_rules
from llava_jax.text.encode import expand_images

QUESTION = "\nWhat is in the picture?"
POINTS = (
    "pixels", "patch embedding", "selected layer", "projector", "merged embeddings", "last hidden", "logits",
)  # fmt: skip
# Largest allowed difference relative to the largest value at a point, for weights rounded to a dtype. `float32` also
# covers weights that were not rounded: there only the order of summation differs.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
GREY_LEVEL = 1.01 / 255 / 0.26  # rounding of a resized pixel, divided by the smallest STD


@dataclasses.dataclass(frozen=True)
class Trace:
    """ids int32[1, T] with IMAGE_TOKEN_ID per feature; `points`: name -> float32 array, channels last."""

    ids: np.ndarray
    points: dict[str, np.ndarray]


def probe_image() -> Image.Image:
    """Returns 128 x 96 pixels with colour gradients in all directions and a sharp edge."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([2 * x, 255 - 2 * y, (x + y) % 64 * 4], axis=-1)
    pixels[30:60, 40:90] = (250, 20, 60)
    return Image.fromarray(pixels.astype(np.uint8))


def trace(model: LlavaModel) -> Trace:
    """Runs the model on the probe image and question, with its own tokenizer and preprocessing."""
    config = dataclasses.replace(model.config, dtype="float32", feature_dtype="float32")
    tokenizer = model.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    ids = np.array([*bos, IMAGE_TOKEN_ID, *tokenizer.encode(QUESTION)], np.int32)
    ids = expand_images(ids, np.zeros(len(ids), bool), config.vision.features)[0][None]
    image = preprocess(probe_image(), config.vision.image_size, model.aspect)
    with jax.set_mesh(model.mesh):
        points = _points(Llava(config), nested(model.params), ids, image[None, None])
    shaped = {"pixels": (1, *image.shape)}
    return Trace(ids, {name: np.asarray(points[name]).reshape(shaped.get(name, points[name].shape)) for name in POINTS})


@jax.jit(static_argnums=0)
def _points(model: Llava, params: dict, ids, images) -> dict:
    """Computes the points, which are outputs of modules and methods that Flax captures as intermediates."""
    methods = {("patch", "__call__"), ("vision", "__call__"), ("projector", "__call__"), (None, "embed")}
    positions = jax.numpy.broadcast_to(jax.numpy.arange(ids.shape[1]), ids.shape)
    with logical_rules():
        (hidden, _), captured = model.apply(
            {"params": params}, ids, images, positions, jax.numpy.ones_like(ids), method="hidden",
            capture_intermediates=lambda module, method: (module.name, method) in methods, mutable=["intermediates"],
        )  # fmt: skip
        logits = model.apply({"params": params}, hidden, method="logits")
    inside = captured["intermediates"]
    vision = inside["vision"]
    values = (
        normalize(images), vision["patch"]["__call__"][0], vision["__call__"][0], inside["projector"]["__call__"][0],
        inside["embed"][0], hidden, logits,
    )  # fmt: skip
    return dict(zip(POINTS, values, strict=True))


def compare_traces(source: Trace, written: LlavaModel, hf_folder: Path | None, rounded_to: str) -> int:
    """Prints a table of differences. Returns 0 if all are within their bounds, else 1.

    source: trace of the source model. written: the written model, loaded. hf_folder: its folder for transformers, if
    any. rounded_to: the dtype that the source's weights were rounded to, float32 if they were not.
    """
    written_trace = trace(written)
    hf_points = None
    if hf_folder and all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        from llava_jax.api.parity_transformers import transformers_trace

        tokens = np.where(written_trace.ids == IMAGE_TOKEN_ID, written.image_token_id, written_trace.ids)
        hf_points = transformers_trace(hf_folder, tokens, written_trace.points["pixels"], probe_image())
    is_equal = True
    print(f"{'':18}{'largest':>10}{'reloaded':>12}{'bound':>10}{'transformers':>15}{'bound':>10}")
    for name in POINTS:
        expected, actual = source.points[name], written_trace.points[name]
        if name == "logits":
            actual = actual[..., : expected.shape[-1]]  # the export may have added tokens
        scale = float(np.abs(expected).max())
        cells = [(_difference(expected, actual), BOUNDS[rounded_to] * scale)]
        if hf_points:
            hf_bound = GREY_LEVEL if name == "pixels" else BOUNDS["float32"] * scale
            cells.append((_difference(written_trace.points[name], hf_points[name]), hf_bound))
        is_equal &= all(difference <= bound for difference, bound in cells)  # False for NaN
        text = "".join(f"{d:>{12 + 3 * i}.2e}{b:>10.1e}" for i, (d, b) in enumerate(cells))
        print(f"{name:18}{scale:>10.2e}{text}" + ("" if all(d <= b for d, b in cells) else "  BEYOND"))
    if hf_folder and not hf_points:
        print("transformers or torch is not installed: not compared with it")
    print("the same" if is_equal else "NOT the same: a difference is beyond its bound")
    return 0 if is_equal else 1


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
