"""The config of a training run: `defaults()` and `stage()` for files under `configs/`, and its frozen dataclasses."""

from llava_jax.config.build import build_dataclass, flatten
from llava_jax.config.config_dict import defaults, describe_values, from_config_dict, stage
from llava_jax.config.resolve import model_config
from llava_jax.config.schema import (
    CheckpointConfig,
    Config,
    Data,
    Eval,
    MeshConfig,
    Model,
    Optimizer,
    Stage,
    StepGuardConfig,
    Weights,
)

__all__ = [
    "CheckpointConfig", "Config", "Data", "Eval", "MeshConfig", "Model", "Optimizer", "Stage", "StepGuardConfig",
    "Weights", "build_dataclass", "defaults", "describe_values", "flatten", "from_config_dict", "model_config", "stage",
]  # fmt: skip
