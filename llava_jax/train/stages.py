"""The setup of stages: everything that follows from the config before anything is computed; their initial states.

A `StageLayout` needs neither data nor real devices, so that a program for a pod can be compiled anywhere.
"""

import dataclasses
import math

import jax
import optax
from jax.sharding import Mesh

from llava_jax.checkpoint.architecture_json import MODULES
from llava_jax.checkpoint.module_file import check_writable, load_module, save_module
from llava_jax.config.architectures import ModelConfig
from llava_jax.config.schema import Config, Stage
from llava_jax.errors import ConfigError
from llava_jax.models.flops import model_flops
from llava_jax.models.params import Params, abstract_model
from llava_jax.runtime.accelerators import MEMORY_GIB
from llava_jax.runtime.mesh import without_fsdp
from llava_jax.text.tokenizer import Tokenizer
from llava_jax.train.dataset import StageData, open_stage
from llava_jax.train.optimizer import learning_rates_per_parameter, make_optimizer
from llava_jax.train.state import TrainState, abstract_state, all_params, init_params_for, init_stage_state


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """What a stage trains, and how its arrays are sharded."""

    mesh: Mesh  # that of the run, or `without_fsdp` of it where weights are replicated (`Stage.weights`)
    learning_rates: dict[str, float | None]  # parameter path -> peak learning rate, None for frozen
    tx: optax.GradientTransformation
    abstract: TrainState
    flops: float  # model FLOPs of one step


@dataclasses.dataclass(frozen=True)
class StageSetup:
    """One stage, ready to run."""

    name: str
    index: int
    stage: Stage
    data: StageData
    layout: StageLayout
    start_step: int  # global step at which it starts

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due at `step` of this stage."""
        every = self.stage.eval.every
        at_end = step == self.data.steps or (every > 0 and step > 0 and step % every == 0)
        return self.stage.eval.before if step == 0 else at_end


def make_stage_layout(name: str, stage: Stage, model_config: ModelConfig, mesh: Mesh, steps: int) -> StageLayout:
    """mesh: that of the run. steps: length of the stage and of its schedule. Raises ConfigError where the rows do not
    split over the devices, the mesh does not divide a parameter, or the table of rates does not fit the parameters."""
    _check_rows(name, stage, mesh)
    shapes, _ = abstract_model(model_config)
    peak_lr = learning_rates_per_parameter(shapes, stage.learning_rates)
    trained = {path: rate for path, rate in peak_lr.items() if rate is not None}
    tx = make_optimizer(stage.optimizer, trained, steps)
    mesh = _mesh_of_stage(stage, abstract_state(model_config, peak_lr, tx, without_fsdp(mesh)), mesh)
    sizes, d = {path: math.prod(x.shape) for path, x in shapes.items()}, stage.data
    flops = model_flops(model_config, sizes, set(trained), stage.batch, d.length, d.max_images)
    return StageLayout(mesh, peak_lr, tx, abstract_state(model_config, peak_lr, tx, mesh), flops)


def _check_rows(name: str, stage: Stage, mesh: Mesh) -> None:
    rows, devices = stage.batch // stage.accumulation, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % devices:
        raise ConfigError(
            f"stages.{name}: {rows} rows per micro-batch do not split over data x fsdp = {devices} devices; "
            f"make batch / accumulation a multiple of {devices}, e.g. {math.ceil(rows / devices) * devices}, or let "
            "config.mesh.tensor devices share a row"
        )


def _mesh_of_stage(stage: Stage, replicated: TrainState, mesh: Mesh) -> Mesh:
    """`mesh`, or `without_fsdp(mesh)` with `weights=replicated`. `auto` replicates where the state takes up to half of
    a device's memory, which saves gathering every layer in each pass; on devices of unknown memory (CPUs) it does not.
    replicated: the abstract state of the stage with replicated weights."""
    if stage.weights == "auto":
        memory = MEMORY_GIB.get(mesh.devices.flat[0].device_kind, 0) * 2**30
        return without_fsdp(mesh) if 0 < _bytes_per_device(replicated) <= memory / 2 else mesh
    return without_fsdp(mesh) if stage.weights == "replicated" else mesh


def _bytes_per_device(state: TrainState) -> int:
    """Bytes of the state and of the gradients."""
    arrays = [*jax.tree.leaves(state), *state.trainable.values()]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def make_stage_setups(config: Config, model_config: ModelConfig, mesh: Mesh, tokenizer: Tokenizer) -> list[StageSetup]:
    """Opens the data of all stages and makes their layouts, so that faults of later stages are raised at the start."""
    setups, start_step = [], 0
    for index, (name, stage) in enumerate(config.stages.items()):
        _check_rows(name, stage, mesh)
        for module in MODULES:
            if file := getattr(stage.save, module):
                check_writable(file, module)
        data = open_stage(name, stage, config.seed, tokenizer, model_config.vision)
        layout = make_stage_layout(name, stage, model_config, mesh, data.steps)
        setups.append(StageSetup(name, index, stage, data, layout, start_step))
        start_step += data.steps
    return setups


def first_state(config: Config, model_config: ModelConfig, setup: StageSetup, log) -> TrainState:
    """Loads the modules for which `load` names a file and initializes the others at random; logs which."""
    rng = jax.random.PRNGKey(config.seed)
    like = {**setup.layout.abstract.frozen, **setup.layout.abstract.trainable}
    params: Params = {}
    for module in MODULES:
        file = getattr(config.load, module)
        log(f"{module}: " + (f"weights from {file}" if file else "randomly initialized"))
        if file:
            params |= load_module(file, module, like)
    missing = [p for p in like if p not in params]
    if missing:
        params |= init_params_for(model_config, setup.layout.mesh, rng, missing)
    return init_stage_state(params, rng, setup.layout.abstract, setup.layout.tx)


def next_state(model_config: ModelConfig, setup: StageSetup, state: TrainState) -> TrainState:
    """The parameters of the previous stage, with those of the stage's `fresh` modules initialized again."""
    params, rng = all_params(state), jax.random.fold_in(state.rng, setup.index)
    fresh_paths = [p for p in params if p.split("/")[0] in setup.stage.fresh]
    if fresh_paths:
        params |= init_params_for(model_config, setup.layout.mesh, rng, fresh_paths)
    return init_stage_state(params, state.rng, setup.layout.abstract, setup.layout.tx)


def export(model_config: ModelConfig, stage: Stage, state: TrainState) -> list[str]:
    """Writes the modules that the stage's `save` names; returns one message for each."""
    lines = []
    for module in MODULES:
        if file := getattr(stage.save, module):
            file = save_module(file, module, all_params(state), "float32", model_config)
            lines.append(f"{module}: weights written to {file}")
    return lines
