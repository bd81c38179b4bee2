"""Lowers the train step of a stage, and decoding, without data, weights or the devices they are for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llava_jax.config.architectures import ModelConfig
from llava_jax.config.schema import Stage
from llava_jax.errors import ConfigError
from llava_jax.inference.image_pool import MAX_IMAGES
from llava_jax.inference.sampling import SamplingParams
from llava_jax.inference.slot_engine import CHUNKS
from llava_jax.inference.slots import Chunk, decode_slots, empty_slots, read_chunk
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model, nested
from llava_jax.runtime.sharding import batch_spec, param_sharding
from llava_jax.text.token_row import Batch, token_row
from llava_jax.train.stages import StageLayout
from llava_jax.train.step import make_train_step


def abstract_batch(stage: Stage, model_config: ModelConfig, mesh: Mesh) -> Batch:
    """The batch of the train step as shapes, with the counts that the data and (on several hosts) the loop add."""
    data, hosts = stage.data, {device.process_index for device in mesh.devices.flat}
    batch = _abstract_rows(stage.batch, data.length, data.max_images, model_config.image_size, mesh)
    count = jax.ShapeDtypeStruct((stage.batch,), jnp.int32, sharding=batch.tokens.sharding)
    return batch._replace(replaced=count if data.bad == "replace" else None, stop=count if len(hosts) > 1 else None)


def _abstract_rows(rows: int, length: int, image_slots: int, image_size: int, mesh: Mesh) -> Batch:
    sharding = NamedSharding(mesh, batch_spec())
    row = token_row((), length=length, image_slots=image_slots, image_size=image_size)
    return Batch(*(jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding) for x in row))


def lower_step(stage: Stage, model_config: ModelConfig, layout: StageLayout) -> jax.stages.Lowered:
    """Lowers the train step that `train.loop` runs, for rows of the full `data.length`. Allocates nothing."""
    step = make_train_step(Llava(model_config), layout.tx, layout.abstract, stage.accumulation, stage.loss_chunks)
    with jax.set_mesh(layout.mesh):
        return step.lower(layout.abstract, abstract_batch(stage, model_config, layout.mesh), math.inf)


def lower_decode(
    model_config: ModelConfig, mesh: Mesh, slots: int, length: int
) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """Lowers (a step that also reads a prompt's part, a step alone) as `SlotEngine` runs them, with weights in the
    compute dtype, for `slots` conversations of `length` tokens each. Raises ConfigError where the mesh does not divide
    a parameter or the slots."""
    row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if slots % row_shards:
        raise ConfigError(f"a batch of {slots} does not split over data x fsdp = {row_shards} devices; give a multiple")
    replicated = NamedSharding(mesh, PartitionSpec())
    cache_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))

    def array(shape, dtype, sharding=replicated) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    model, view = Llava(model_config), _abstract_view(model_config, mesh)
    part = array((min(CHUNKS[-1], length),), jnp.int32)
    dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.uint32, jnp.uint32)
    sampling, number = SamplingParams(*(array((1,), dtype) for dtype in dtypes)), array((), jnp.int32)
    chunk = Chunk(number, number, number, part, part, sampling, array((), jnp.bool_))
    active = array((slots,), jnp.bool_)
    images = array((MAX_IMAGES * model_config.features, model_config.llm.width), model_config.dtype)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: empty_slots(model_config, slots, length))
        state = jax.tree.map(lambda x: array(x.shape, x.dtype, cache_sharding if x.ndim == 4 else replicated), shapes)
        return (
            read_chunk.lower(model, view, state, images, chunk, active),
            decode_slots.lower(model, view, state, active, array((), jnp.bool_)),
        )


def _abstract_view(model_config: ModelConfig, mesh: Mesh) -> dict:
    """`decode_view` of all parameters in the compute dtype; a layer's arrays are sharded as their stack is."""
    shapes, specs = abstract_model(model_config)

    def weight(path: str, shape: tuple[int, ...], spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, model_config.dtype, sharding=param_sharding(path, shape, spec, mesh))

    stack = "llm/layers/"
    params = nested({p: weight(p, x.shape, specs[p]) for p, x in shapes.items() if not p.startswith(stack)})
    layer = nested({
        p.removeprefix(stack): weight(p, x.shape[1:], PartitionSpec(*specs[p][1:]))
        for p, x in shapes.items() if p.startswith(stack)
    })  # fmt: skip
    params["llm"]["layers"] = (layer,) * model_config.llm.layers
    return params
