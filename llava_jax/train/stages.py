"""Stages as plans: all that follows from the config before anything is computed, and the states they begin with."""

import dataclasses
import math

import jax
import optax
from jax.sharding import Mesh

from llava_jax.architectures import ModelConfig
from llava_jax.checkpoint.weights import check_writable, load_module, save_module
from llava_jax.config import Config, Stage
from llava_jax.data.tokenizer import Tokenizer
from llava_jax.errors import ConfigError
from llava_jax.train.inputs import StageData, open_stage
from llava_jax.train.metrics import model_flops
from llava_jax.train.optimizer import make_optimizer, rates
from llava_jax.train.state import (
    Params,
    TrainState,
    abstract_model,
    abstract_state,
    all_params,
    enter_stage,
    fresh_params,
)

MODULES = ("vision", "projector", "llm")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One stage, ready to run."""

    name: str
    index: int
    stage: Stage
    data: StageData
    rates: dict[str, float | None]  # parameter path -> peak learning rate, None for frozen
    tx: optax.GradientTransformation
    abstract: TrainState
    start: int  # global step at which it begins
    flops: float  # model FLOPs of one step

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation belongs to `step` of this stage."""
        every = self.stage.eval.every
        at_end = step == self.data.steps or (every > 0 and step > 0 and step % every == 0)
        return self.stage.eval.before if step == 0 else at_end


def make_plans(config: Config, model_config: ModelConfig, mesh: Mesh, tokenizer: Tokenizer) -> list[Plan]:
    """Opens the data and resolves the tables of all stages; raises before the first one has run, not after it."""
    shapes, _ = abstract_model(model_config)
    sizes = {path: math.prod(x.shape) for path, x in shapes.items()}
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    plans, start = [], 0
    for index, (name, stage) in enumerate(config.stages.items()):
        rows = stage.batch // stage.accumulation
        if rows % devices:
            raise ConfigError(
                f"stages.{name}: {rows} rows per micro-batch do not split over data x fsdp = {devices} devices; "
                f"make batch / accumulation a multiple of {devices}, e.g. {math.ceil(rows / devices) * devices}"
            )
        for module in MODULES:
            if file := getattr(stage.save, module):
                check_writable(file, module)
        data = open_stage(name, stage, config.seed, tokenizer, model_config.vision)
        peak = rates(shapes, stage.learning_rates)
        trained = {path: rate for path, rate in peak.items() if rate is not None}
        tx = make_optimizer(stage.optimizer, trained, data.steps)
        abstract = abstract_state(model_config, peak, tx, mesh)
        d = stage.data
        flops = model_flops(model_config, sizes, set(trained), stage.batch, d.length, d.max_images)
        plans.append(Plan(name, index, stage, data, peak, tx, abstract, start, flops))
        start += data.steps
    return plans


def first_state(config: Config, model_config: ModelConfig, mesh: Mesh, plan: Plan, say) -> TrainState:
    """Parameters loaded where `load` names a file, freshly drawn elsewhere; says which are which."""
    rng = jax.random.PRNGKey(config.seed)
    like = {**plan.abstract.frozen, **plan.abstract.trainable}
    params: Params = {}
    for module in MODULES:
        file = getattr(config.load, module)
        say(f"{module}: " + (f"weights from {file}" if file else "drawn at random"))
        if file:
            params |= load_module(file, module, like)
    missing = [p for p in like if p not in params]
    if missing:
        params |= fresh_params(model_config, mesh, rng, missing)
    return enter_stage(params, rng, plan.abstract, plan.tx)


def next_state(model_config: ModelConfig, mesh: Mesh, plan: Plan, state: TrainState) -> TrainState:
    """The parameters of the stage before, those of the stage's `fresh` modules drawn anew."""
    params, rng = all_params(state), jax.random.fold_in(state.rng, plan.index)
    again = [p for p in params if p.split("/")[0] in plan.stage.fresh]
    if again:
        params |= fresh_params(model_config, mesh, rng, again)
    return enter_stage(params, state.rng, plan.abstract, plan.tx)


def export(config: Config, stage: Stage, state: TrainState) -> list[str]:
    """Writes the modules that the stage's `save` names; one line about each."""
    lines = []
    for module in MODULES:
        if file := getattr(stage.save, module):
            note = {"architecture": getattr(config.model, module), "select_layer": config.model.select_layer}
            path = save_module(file, module, all_params(state), "float32", note)
            lines.append(f"{module}: weights written to {path}")
    return lines
