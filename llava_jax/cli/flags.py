"""Flags that several verbs share. tyro flattens these classes into the flags of a verb.

    def verb(path: Path, /, *, loading: Flat[LoadFlags]): ...

A default of the parameter changes those of its flags, e.g. `= SamplingFlags(max_new_tokens=1024)`. The parameter must
be keyword-only: tyro makes all fields of a positional-only parameter positional.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from llava_jax.errors import ConfigError
from llava_jax.text.templates import find_template

Flat = tyro.conf.OmitArgPrefixes  # Flat[LoadFlags]: --tower, not --loading.tower

Tokenizer = Annotated[
    str, tyro.conf.arg(help="The tokenizer: a tokenizer.model, tokenizer.json, .gguf, folder, or tiny (built in).")
]
CPUS = os.cpu_count() or 1
MIN_KEY_LENGTH = 16
Workers = Annotated[int, tyro.conf.arg(help="Worker processes; 0: work in this process.")]
# Long texts are constants, because tyro keeps the line breaks of a docstring.
TEMPLATE_HELP = (
    "The conversation template. Default: that of the training run; else the one that renders as the model's own chat "
    "template does; else vicuna_v1. The original's ScienceQA models need llava_v1, its v0 models llava_v0."
)
DATA_HELP = (
    "LLaVA's JSON or JSON Lines, a folder of `data build` or TFDS, Parquet, or the ScienceQA folder (problems.json, "
    "pid_splits.json, images)."
)


@dataclass(frozen=True)
class SourceFlags:
    """What the files of a model do not contain, or what to override."""

    tower: Path | None = None
    """The folder of the CLIP vision tower, if the model does not contain it."""
    base: Path | None = None
    """The base model of LoRA adapters, a projector or delta weights."""
    tokenizer: str | None = None
    """A tokenizer.model, tokenizer.json, .gguf or folder. Default: that of the model."""
    template: Annotated[str | None, tyro.conf.arg(help=TEMPLATE_HELP)] = None
    aspect: Literal["crop", "pad"] | None = None
    """How images become square: crop (CLIP's processor) or pad (LLaVA v1.5). Default: that of the model."""
    allow_pickle: bool = False
    """Also loads .bin files, in a separate process. A pickle can run any code: allow only files that you trust."""

    verbose: bool = False
    """Also reports the weights files that are not read, and in `chat` the tokens per second."""

    def __post_init__(self):
        if self.verbose:
            logging.getLogger("llava_jax").setLevel(logging.INFO)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `llava_jax.load`."""
        return {name: value for name, value in vars(self).items() if name != "verbose"}


@dataclass(frozen=True)
class LoadFlags(SourceFlags):
    """How the model is loaded."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The dtype of weights and computation."""


@dataclass(frozen=True)
class GenerationFlags:
    """How answers are generated."""

    max_new_tokens: int = 512
    """The maximum number of tokens of an answer."""
    temperature: float = 0.0
    """The sampling temperature; 0: greedy. The original evaluates with 0.2, and with 0 for v1.5."""
    seed: int = 0
    """Seed of the sampling."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `llava_jax.inference.engine.GenerationConfig` and of the models' methods."""
        return dict(vars(self))


@dataclass(frozen=True)
class SamplingFlags(GenerationFlags):
    """How answers are generated."""

    top_p: float = 1.0
    """Samples from the most likely tokens whose probabilities sum to this; 1: from all."""
    top_k: int = 0
    """Samples from this many most likely tokens; 0: from all."""


@dataclass(frozen=True)
class DatasetFlags:
    """How a sample becomes a row; use the values of the training config."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help=DATA_HELP)]
    image_folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE_FOLDER]")] = None
    """The folder or zip archive of the images. Data that contains its images needs none."""
    template: str = ""
    """The conversation template. Default: that of the tokenizer's chat template, else vicuna_v1."""
    length: int = 2048
    """Tokens of a row, image tokens included."""
    image_size: int = 224
    """Side of the model's square input image, in pixels."""
    patch_size: int = 14
    """Side of a patch of the vision tower, in pixels."""
    aspect: Literal["crop", "pad"] = "crop"
    """How images become square: crop (CLIP's processor) or pad (LLaVA v1.5)."""
    exif: Literal["ignore", "apply"] = "ignore"
    """Whether images are turned by their EXIF orientation: data.exif of the config."""

    @property
    def features(self) -> int:
        """Placeholder tokens of one image."""
        return (self.image_size // self.patch_size) ** 2

    def check(self) -> None:
        """Raises ConfigError for an unknown template and for numbers out of range."""
        find_template(self.template or "vicuna_v1")
        if min(self.length, self.patch_size) < 1 or self.image_size < self.patch_size:
            raise ConfigError(
                f"--length {self.length} and --patch-size {self.patch_size} must be at least 1, "
                f"--image-size {self.image_size} at least a patch"
            )


def read_key(file: Path) -> str:
    """The API key in a file. Raises ConfigError, without the key in it, for one that cannot be read or is no key."""
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {getattr(error, 'strerror', 'not text')}") from None
    if not re.fullmatch(rf"[!-~]{{{MIN_KEY_LENGTH},1024}}", key):
        raise ConfigError(
            f"{file} does not hold a key: one line of at least {MIN_KEY_LENGTH} ASCII characters without spaces; "
            "`openssl rand -hex 24` makes one"
        )
    return key
