"""Reads a folder's image settings: how images become square, and the id of the image token in transformers' ids.

They are in config.json, preprocessor_config.json and processor_config.json. What transformers' processor would do
otherwise than `images.preprocess`, and what contradicts the tower, raises DataError that names the file and the key.
"""

from pathlib import Path

from llava_jax.checkpoint.huggingface.config import STRATEGIES
from llava_jax.checkpoint.huggingface.fields import flag, group, integer, number, optional, text
from llava_jax.config.architectures import MEAN, STD, VisionConfig
from llava_jax.errors import DataError
from llava_jax.output.files import read_object

PROCESSORS = ("CLIP", "Llava")  # and a suffix: ImageProcessor, FeatureExtractor, ImageProcessorFast, ...
SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
BICUBIC = 3


def image_settings(folder: Path, config: dict, where: str, vision: VisionConfig | None) -> tuple[str, int | None]:
    """Returns (crop | pad, image token id or None if no file names it).

    config: the content of `where`, {} if the folder has none of its own. vision: None for a language model, whose image
    processor is not read. Raises DataError, see above.
    """
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    image_token_id = optional(lambda value, name: integer(value, name, 0))(config.get(key), f"{where}: {key}")
    if vision is None:
        return "crop", image_token_id
    pads = config.get("image_aspect_ratio") == "pad"
    file = folder / "preprocessor_config.json"
    settings = _read(file)
    processor, processor_file = _read(folder / "processor_config.json"), str(folder / "processor_config.json")
    _check_processor(processor, processor_file, vision)
    if not settings and "image_processor" in processor:  # where transformers 5 writes it
        settings, file = group(processor, "image_processor", processor_file), f"{processor_file}: image_processor"
    pads = _check_pixels(settings, str(file), vision) or settings.get("image_aspect_ratio", pads and "pad") == "pad"
    return "pad" if pads else "crop", image_token_id


def _read(file: Path) -> dict:
    return read_object(file, "how the model was trained") if file.exists() else {}


def _check_pixels(settings: dict, where: str, vision: VisionConfig) -> bool:
    """Returns whether images are padded. Raises DataError if the image processor's pixels differ from ours."""

    def require(key: str, actual: object, ours: object) -> None:
        if actual != ours:
            raise DataError(f"{where}: {key}={settings[key]!r:.80} is not supported, only {ours!r:.80} for this tower")

    for key in ("image_processor_type", "feature_extractor_type"):
        kind = optional(text)(settings.get(key), f"{where}: {key}")
        if kind and kind not in [family + suffix for family in PROCESSORS for suffix in SUFFIXES]:
            raise DataError(f"{where}: {key}={kind!r} is not supported, only those of CLIP and Llava")
    for key in FLAGS:
        if settings.get(key) is not None:
            require(key, flag(settings[key], f"{where}: {key}"), True)
    if settings.get("resample") is not None:
        require("resample", integer(settings["resample"], f"{where}: resample"), BICUBIC)
    size = vision.image_size
    for key, sides in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        if settings.get(key) is not None:
            require(key, _sides(settings[key], f"{where}: {key}", sides), dict.fromkeys(sides, size))
    for key, ours in (("image_mean", MEAN), ("image_std", STD), ("rescale_factor", 1 / 255)):
        if settings.get(key) is not None:
            theirs, expected = (x if isinstance(x, list | tuple) else [x] for x in (settings[key], ours))
            values = [number(x, f"{where}: {key}") for x in theirs]
            close = len(values) == len(expected) and all(
                abs(a - b) <= 1e-4 * b for a, b in zip(values, expected, strict=True)
            )
            require(key, ours if close else None, ours)
    return bool(optional(flag)(settings.get("do_pad"), f"{where}: do_pad"))


def _sides(value: object, name: str, sides: tuple[str, ...]) -> dict[str, int]:
    """Returns a size as transformers understands it: a number is the shortest edge, or the sides of a square crop."""
    if not isinstance(value, dict):
        return dict.fromkeys(sides, integer(value, name))
    return {key: integer(x, f"{name}: {key}") for key, x in value.items() if x is not None}


def _check_processor(settings: dict, where: str, vision: VisionConfig) -> None:
    """Raises DataError if LlavaProcessor would expand an image to another number of tokens than the tower returns."""
    patch = optional(integer)(settings.get("patch_size"), f"{where}: patch_size")
    if patch not in (None, vision.patch_size):
        raise DataError(f"{where}: patch_size={patch}, but the tower has patches of {vision.patch_size} pixels")
    name = f"{where}: vision_feature_select_strategy"
    strategy = optional(text)(settings.get("vision_feature_select_strategy"), name)
    if strategy is not None and STRATEGIES.get(strategy) != vision.select_feature:
        raise DataError(f"{name}={strategy!r}, but config.json selects {vision.select_feature}")
    extra = optional(integer)(settings.get("num_additional_image_tokens"), f"{where}: num_additional_image_tokens")
    if extra not in (None, 1):
        raise DataError(f"{where}: num_additional_image_tokens={extra}, but a CLIP tower has 1, its class token")
