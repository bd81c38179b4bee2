"""Validates the values of a config: ranges and choices that types do not express."""

import math
import re

from llava_jax.config import architectures
from llava_jax.config.build import check_choice, flatten, suggestion, within_stage
from llava_jax.config.resolve import FOLDER, model_config, named_tower
from llava_jax.config.schema import Config, Stage
from llava_jax.errors import ConfigError

AT_LEAST_ONE = (
    "log_every", "checkpoint.every", "checkpoint.keep", "guard.window", "batch", "accumulation", "epochs",
    "loss_chunks", "data.length", "eval.samples", "eval.max_new_tokens",
)  # fmt: skip
ANY_SIGN = ("model.select_layer", "mesh.data", "mesh.fsdp", "mesh.tensor")  # all other numbers must be at least 0


def check_config(config: Config) -> None:
    """Raises ConfigError for a value out of range or an unknown choice. Does not import jax."""
    if not config.run:
        raise ConfigError("config.run is empty: nothing to train; it lists the names of config.stages to run, in order")
    if len(set(config.run)) < len(config.run):
        raise ConfigError(f"config.run={config.run} names a stage twice; give each a unique name")
    for name in config.run:
        if name not in config.stages:
            raise ConfigError(
                f"config.run names {name!r}, which is not in config.stages{suggestion(name, config.stages)}"
            )
    for module in ("vision", "llm"):
        if named_tower(config.model, module) is None and not getattr(config.load, module):
            raise ConfigError(f"config.model.{module}={FOLDER!r} needs files; set config.load.{module}, or a name")
    if FOLDER not in (config.model.vision, config.model.llm):
        model_config(config.model)
    check_choice(config.model.dtype, ("float32", "bfloat16"), "config.model.dtype")
    check_choice(config.model.feature_dtype, ("float32", "bfloat16"), "config.model.feature_dtype")
    check_choice(config.model.remat, tuple(architectures.REMAT), "config.model.remat")
    check_choice(config.guard.on_spike, ("skip", "warn"), "config.guard.on_spike")
    if 0 < config.guard.spike <= 1:
        raise ConfigError(f"config.guard.spike={config.guard.spike} must be above 1, or 0 to turn spike detection off")
    for path, value in flatten(config).items():
        key = within_stage(path)
        minimum = 1 if key in AT_LEAST_ONE else 0
        if isinstance(value, int | float) and key not in ANY_SIGN and not minimum <= value < math.inf:
            raise ConfigError(f"config.{path}={value} must be at least {minimum}, and finite")
    for name, s in config.stages.items():
        prefix = f"config.stages.{name}"
        check_choice(s.data.source, ("files", "scenes"), f"{prefix}.data.source")
        check_choice(s.data.scenes, ("caption", "study", "tell", "instruct"), f"{prefix}.data.scenes")
        check_choice(s.data.aspect, ("crop", "pad"), f"{prefix}.data.aspect")
        check_choice(s.data.exif, ("ignore", "apply"), f"{prefix}.data.exif")
        check_choice(s.data.overlong, ("truncate", "error"), f"{prefix}.data.overlong")
        check_choice(s.data.packing, ("none", "pack"), f"{prefix}.data.packing")
        check_choice(s.data.bad, ("error", "replace"), f"{prefix}.data.bad")
        _check_lengths(s, prefix)
        check_choice(s.optimizer.schedule, ("cosine", "constant"), f"{prefix}.optimizer.schedule")
        check_choice(s.optimizer.first_moment, ("float32", "bfloat16"), f"{prefix}.optimizer.first_moment")
        check_choice(s.weights, ("auto", "sharded", "replicated"), f"{prefix}.weights")
        if s.steps == 0 and s.data.source == "scenes":
            raise ConfigError(f"{prefix}.steps must be set: scenes are endless and have no epochs")
        if s.data.source == "files" and name in config.run and bool(s.data.path) == bool(s.data.mixture):
            raise ConfigError(
                f"{prefix}.data.path (with image_folder for a JSON file) or data.mixture must be set, not both"
            )
        for path, _, weight in s.data.mixture:
            if not 0 < weight < math.inf:
                raise ConfigError(f"{prefix}.data.mixture: the weight of {path!r} must be positive, not {weight}")
        if s.eval.shuffled and (s.data.max_images == 0 or s.eval.samples < 2):
            raise ConfigError(f"{prefix}.eval.shuffled needs images, and at least 2 eval.samples")
        if s.batch % s.accumulation:
            raise ConfigError(f"{prefix}.batch={s.batch} is not a multiple of accumulation={s.accumulation}")
        for key in ("data.held_out", "optimizer.b1", "optimizer.b2", "optimizer.warmup_ratio"):
            if flatten(s)[key] >= 1:
                raise ConfigError(f"{prefix}.{key}={flatten(s)[key]} must be below 1")
        if not s.learning_rates:
            raise ConfigError(f"{prefix}.learning_rates is empty; e.g. (('projector/.*', 2e-3), ('.*', None))")
        for module in s.fresh:
            check_choice(module, ("vision", "projector", "llm"), f"{prefix}.fresh")
        for pattern, rate in s.learning_rates:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ConfigError(f"{prefix}.learning_rates: {pattern!r} is not a regular expression: {e}") from None
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(f"{prefix}.learning_rates: {pattern!r} has rate {rate}; write None to freeze it")


def _check_lengths(s: Stage, prefix: str) -> None:
    lengths = (*s.data.lengths, s.data.length)
    for length in lengths:
        if length % s.loss_chunks:
            name = "length" if length == s.data.length else "lengths"
            raise ConfigError(f"{prefix}.data.{name}={length} is not a multiple of loss_chunks={s.loss_chunks}")
    if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ConfigError(
            f"{prefix}.data.lengths={s.data.lengths} must ascend, from 1 to below data.length={s.data.length}"
        )
    if s.data.packing == "pack" and s.data.lengths:
        raise ConfigError(f"{prefix}.data.lengths needs packing=none: packed rows all have data.length tokens")
    if s.data.source == "scenes" and (s.data.packing == "pack" or s.data.lengths):
        raise ConfigError(f"{prefix}.data.packing and lengths need samples with known lengths; scenes are endless")
    if s.data.mixture and s.data.lengths:
        raise ConfigError(f"{prefix}.data.lengths does not support a mixture, which is endless; use packing=pack")
