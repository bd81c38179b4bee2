"""Compiles a decoding step for a TPU v5e that is not present. A program, because libtpu needs its own process.

    python tpu_decode.py FOLDER

Writes each optimised program to FOLDER/NAME.txt and its memory use to FOLDER/NAME.json; NAME is
loop|slots|part-BATCH-KV_HEADS.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from llava_jax.config.architectures import LLM, VISION, ModelConfig  # noqa: E402
from llava_jax.inference.decode import decode, decode_view, prefill  # noqa: E402
from llava_jax.inference.sampling import SamplingParams  # noqa: E402
from llava_jax.inference.slots import Chunk, decode_slots, empty_slots, read_chunk  # noqa: E402
from llava_jax.models.llava import Llava  # noqa: E402
from llava_jax.models.params import abstract_model, nested  # noqa: E402
from llava_jax.text.token_row import Batch, token_row  # noqa: E402

LENGTH, NEW = 3584, 512  # slots: the cache of a long conversation
PART = 64  # tokens of a prompt beside a step
VOCABULARY = 512  # sampling sorts it, and half of the compiler's time goes into a sort of 32,000
PROGRAMS = (("loop", 8, 32), ("loop", 8, 8), ("slots", 8, 32), ("part", 8, 32))


def compile_decoding(folder: Path, kind: str, b: int, kv_heads: int) -> None:
    llm = dataclasses.replace(LLM["llama2_7b"], layers=2, kv_heads=kv_heads, vocab_size=VOCABULARY)
    config = ModelConfig(VISION["clip_l14_336"], llm, "mlp2x_gelu", "bfloat16", "bfloat16", "none", False, "xla")
    chip = topologies.get_topology_desc("v5e:1x1", platform="tpu", chips_per_host_bounds=(1, 1, 1)).devices[0]

    def array(shape, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(chip))

    model = Llava(config)
    weights = nested({path: array(x.shape, jnp.bfloat16) for path, x in abstract_model(config)[0].items()})
    row = token_row((), length=LENGTH, image_slots=1, image_size=336)
    prompt = Batch(*(array((b, *x.shape), x.dtype) for x in row))
    dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.uint32, jnp.uint32)
    sampling = SamplingParams(*(array((b,), dtype) for dtype in dtypes))
    start = jax.eval_shape(
        lambda *arrays: prefill(model, decode_view(arrays[0]), *arrays[1:], new=NEW),
        *(weights, prompt, sampling, array((8,), jnp.int32), array((b,), jnp.int32)),
    )
    view, state = jax.tree.map(lambda x: array(x.shape, x.dtype), (jax.eval_shape(decode_view, weights), start))
    rows = array((b,), bool)
    if kind == "loop":
        lowered, layers = decode.lower(model, view, state, array((), jnp.int32), rows), state.cache.layers
    else:
        shapes = jax.eval_shape(lambda: empty_slots(config, b, LENGTH + NEW))
        slots = jax.tree.map(lambda x: array(x.shape, x.dtype), shapes)
        layers = slots.layers
        if kind == "slots":
            lowered = decode_slots.lower(model, view, slots, rows, array((), bool))
        else:
            part, number = array((PART,), jnp.int32), array((), jnp.int32)
            of_part = SamplingParams(*(array((1,), dtype) for dtype in dtypes))
            chunk = Chunk(number, number, number, part, part, of_part, array((), bool))
            pool = array((PART, llm.width), jnp.bfloat16)
            lowered = read_chunk.lower(model, view, slots, pool, chunk, rows)
    compiled = lowered.compile()
    name = f"{kind}-{b}-{kv_heads}"
    (folder / f"{name}.txt").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    sizes = dict(cache=list(layers[0][0].shape), layers=llm.layers)
    sizes |= dict(temporary=memory.temp_size_in_bytes, reused=memory.alias_size_in_bytes)
    (folder / f"{name}.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    for program in PROGRAMS:
        compile_decoding(Path(sys.argv[1]), *program)
