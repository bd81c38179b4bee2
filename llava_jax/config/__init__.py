"""What a run is: `defaults()` and `stage()` for the files under `configs/`, and the frozen dataclasses behind them."""

from llava_jax.config.build import build, flatten
from llava_jax.config.config_dict import defaults, describe, from_config_dict, stage
from llava_jax.config.resolve import model_config
from llava_jax.config.schema import Checkpoint, Config, Data, Eval, Guard, Mesh, Model, Optimizer, Stage, Weights

__all__ = [
    "Checkpoint", "Config", "Data", "Eval", "Guard", "Mesh", "Model", "Optimizer", "Stage", "Weights", "build",
    "defaults", "describe", "flatten", "from_config_dict", "model_config", "stage",
]  # fmt: skip
