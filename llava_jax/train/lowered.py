"""The train step of a stage as a program, without data, weights, or the devices that it is for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from llava_jax.architectures import ModelConfig
from llava_jax.config import Stage
from llava_jax.models.llava import Llava
from llava_jax.sharding import batch_spec
from llava_jax.train.stages import Layout
from llava_jax.train.step import make_train_step


def abstract_batch(stage: Stage, model_config: ModelConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the step gets of the rows (`data.rows`), by the name of each array; with several hosts `stop` too, see
    train/loop.py."""
    d, size = stage.data, model_config.image_size
    row = {name: ((d.length,), jnp.int32) for name in ("tokens", "positions", "segment_ids")}
    row |= {"target_mask": ((d.length,), jnp.bool_), "images": ((d.max_images, size, size, 3), jnp.uint8)}
    hosts = {device.process_index for device in mesh.devices.flat}
    if d.bad == "replace":
        row["replaced"] = ((), jnp.int32)
    if len(hosts) > 1:
        row["stop"] = ((), jnp.int32)
    sharding = NamedSharding(mesh, batch_spec())
    return {
        name: jax.ShapeDtypeStruct((stage.batch, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in row.items()
    }


def lower_step(stage: Stage, model_config: ModelConfig, layout: Layout) -> jax.stages.Lowered:
    """The very step that `train.loop` runs, for rows of the full `data.length`. Allocates nothing."""
    step = make_train_step(Llava(model_config), layout.tx, layout.abstract, stage.accumulation, stage.loss_chunks)
    with jax.set_mesh(layout.mesh):
        return step.lower(layout.abstract, abstract_batch(stage, model_config, layout.mesh), math.inf)
