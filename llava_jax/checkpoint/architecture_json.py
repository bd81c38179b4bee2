"""The architecture of a model as plain JSON, in workdirs and in module files."""

import dataclasses

from llava_jax.config.architectures import ModelConfig
from llava_jax.config.build import build_dataclass
from llava_jax.errors import ConfigError, DataError

MODULES = ("vision", "projector", "llm")
# How a model computes is no part of its architecture: every reader chooses it.
_COMPUTATION = dict(dtype="float32", feature_dtype="float32", remat="none", unroll=False, attention="xla")


def architecture_to_json(model: ModelConfig) -> dict:
    """Returns the fields of both towers and the projector's type as JSON values; `vision` and `projector` are None in a
    text-only model."""
    values = dataclasses.asdict(model)
    return {module: values[module] for module in MODULES}


def architecture_from_json(values: dict, where: str) -> ModelConfig:
    """Converts `architecture_to_json(...)` back. The result computes in float32, without a kernel.

    where: the file, for messages. Raises DataError for unknown or missing fields and for wrong types.
    """
    try:
        return build_dataclass(ModelConfig, _COMPUTATION | values, "architecture")
    except (ConfigError, TypeError) as e:
        raise DataError(f"{where} holds no architecture of this version: {e}") from None
