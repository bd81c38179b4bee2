"""What a run is: `defaults()` and `stage()` for the files under `configs/`, and the frozen dataclasses behind them."""

from llava_jax.config.schema import (
    Checkpoint,
    Config,
    Data,
    Eval,
    Guard,
    Mesh,
    Model,
    Optimizer,
    Stage,
    Weights,
    build,
    defaults,
    describe,
    flatten,
    from_config_dict,
    model_config,
    stage,
)

__all__ = [
    "Checkpoint", "Config", "Data", "Eval", "Guard", "Mesh", "Model", "Optimizer", "Stage", "Weights", "build",
    "defaults", "describe", "flatten", "from_config_dict", "model_config", "stage",
]  # fmt: skip
