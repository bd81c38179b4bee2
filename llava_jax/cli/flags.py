"""Flags that several verbs share. tyro flattens these classes into a verb's own flags; each help text is here once.

    def verb(path: Path, /, *, loading: Flat[LoadFlags]): ...

A verb with another default gives the parameter one, e.g. `= SamplingFlags(max_new_tokens=1024)`. Such a parameter must
be keyword-only: tyro makes all fields of a positional-only one positional.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from llava_jax.errors import ConfigError
from llava_jax.text.templates import find_template

Flat = tyro.conf.OmitArgPrefixes  # Flat[LoadFlags]: --tower, not --loading.tower

Tokenizer = Annotated[
    str, tyro.conf.arg(help="The model's: a tokenizer.model, tokenizer.json, .gguf, a folder, or tiny (built in).")
]
CPUS = os.cpu_count() or 1
Workers = Annotated[int, tyro.conf.arg(help="Processes; 0 works in this one.")]
# Texts of more than one line: tyro keeps the line breaks of a field's docstring.
TEMPLATE_HELP = (
    "The conversation template. Default: the run's own; else chatml where the model's own chat template is; else "
    "vicuna_v1. The original's ScienceQA models need llava_v1, its v0 models llava_v0."
)
DATA_HELP = (
    "LLaVA's JSON, a folder that `data build` or TFDS made, Parquet, or a folder of ScienceQA's (problems.json, "
    "pid_splits.json, images)."
)


@dataclass(frozen=True)
class SourceFlags:
    """What a model's own files lack, or say differently."""

    tower: Path | None = None
    """The folder of the CLIP vision tower, for a LLaVA that lacks its own."""
    base: Path | None = None
    """The model that a LoRA folder, a projector or delta weights were made from."""
    tokenizer: str | None = None
    """A tokenizer.model, tokenizer.json, .gguf or folder, where the model has none or another one is wanted."""
    template: Annotated[str | None, tyro.conf.arg(help=TEMPLATE_HELP)] = None
    aspect: Literal["crop", "pad"] | None = None
    """How images are made square: crop (CLIP's processor) or pad (LLaVA v1.5). Default: as the model's files say."""
    allow_pickle: bool = False
    """Also opens .bin files, in a process of their own. A pickle can hold any program: only from those you trust."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `llava_jax.load`."""
        return dict(vars(self))


@dataclass(frozen=True)
class LoadFlags(SourceFlags):
    """How a model is loaded to answer."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and arithmetic."""


@dataclass(frozen=True)
class GenerationFlags:
    """How answers are generated."""

    max_new_tokens: int = 512
    """Up to this many tokens an answer."""
    temperature: float = 0.0
    """0: greedy decoding. (The original evaluates with 0.2, and with 0 for v1.5.)"""
    seed: int = 0
    """The same seed samples the same answers."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `llava_jax.inference.engine.GenerationConfig` and of the models' methods."""
        return dict(vars(self))


@dataclass(frozen=True)
class SamplingFlags(GenerationFlags):
    """How answers are generated."""

    top_p: float = 1.0
    """Samples from the likeliest tokens whose probabilities sum up to this."""
    top_k: int = 0
    """Samples from this many of the likeliest tokens; 0: from all."""


@dataclass(frozen=True)
class DatasetFlags:
    """How a sample becomes a row; give what the training config says."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help=DATA_HELP)]
    image_folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_FOLDER")] = None
    """The root of the image paths, a folder or a zip archive; what holds its images needs none."""
    template: str = "vicuna_v1"
    """The conversation template."""
    length: int = 2048
    """Tokens of a row, image patches included."""
    image_size: int = 224
    """Side of the square the model sees, in pixels."""
    patch_size: int = 14
    """Side of one patch of the vision tower, in pixels."""
    aspect: Literal["crop", "pad"] = "crop"
    """How an image is made square: crop (CLIP's processor) or pad (LLaVA v1.5)."""

    @property
    def features(self) -> int:
        """Placeholder tokens of one image."""
        return (self.image_size // self.patch_size) ** 2

    def check(self) -> None:
        """Raises ConfigError for a template that does not exist and for numbers that cannot be."""
        find_template(self.template)
        if min(self.length, self.patch_size) < 1 or self.image_size < self.patch_size:
            raise ConfigError(
                f"--length {self.length} and --patch-size {self.patch_size} must be at least 1, "
                f"--image-size {self.image_size} at least a patch"
            )
