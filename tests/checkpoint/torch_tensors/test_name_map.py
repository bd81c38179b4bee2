"""Names, shapes and transposition of torch tensors. The parity tests in tests/models, which read transformers' models
through these mappings, show that the values are correct."""

import doctest
import math

import jax
import numpy as np
import pytest

from llava_jax.checkpoint.torch_tensors import name_map, transpose
from llava_jax.checkpoint.torch_tensors.name_map import (
    CLIP,
    HEADS_IN,
    LLAMA,
    projector_mappings,
    tensor_names,
    torch_index,
)
from llava_jax.checkpoint.torch_tensors.transpose import read_parameter, to_torch
from llava_jax.config import architectures
from llava_jax.config.architectures import ModelConfig
from llava_jax.models.params import abstract_model


def shapes_of(projector: str, llm: str) -> dict[str, tuple[int, ...]]:
    towers = architectures.VISION["clip_l14_336"], architectures.LLM[llm]
    config = ModelConfig(*towers, projector, "float32", "float32", "none", False, "xla")
    return {path: x.shape for path, x in abstract_model(config)[0].items()}


@pytest.mark.parametrize("projector, depth", [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
@pytest.mark.parametrize("llm", ["vicuna_13b_v1.5", "llama3_8b", "smollm2_135m"])
def test_parameters_and_torch_tensors_map_one_to_one(projector, depth, llm):
    tables = {"vision": CLIP, "projector": projector_mappings(depth, "llava"), "llm": LLAMA}
    mappings = {f"{module}/{mapping.path}": mapping for module, table in tables.items() for mapping in table}
    shapes = shapes_of(projector, llm)
    assert shapes.keys() <= mappings.keys()
    unused = mappings.keys() - shapes.keys()
    biases = {f"llm/layers/{x}/bias" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert unused <= biases | {"llm/head/kernel"}, "parameters of some models only"
    tensors = [(path.split("/")[0], n) for path, shape in shapes.items() for n in tensor_names(mappings[path], shape)]
    assert len(set(tensors)) == len(tensors)


def test_torch_shapes_equal_the_published_files():
    def tensors(table, module, shapes):
        mappings = {f"{module}/{mapping.path}": mapping for mapping in table}
        for path in mappings.keys() & shapes.keys():
            shape = shapes[path][1:] if mappings[path].stacked else shapes[path]
            for name in tensor_names(mappings[path], shapes[path]):
                yield name, name_map.torch_shape(mappings[path].groups, shape)

    shapes = shapes_of("mlp2x_gelu", "llama3_8b")
    llm, vision = dict(tensors(LLAMA, "llm", shapes)), dict(tensors(CLIP, "vision", shapes))
    assert len(llm) == 3 + 32 * 9 and len(vision) == 7 + 24 * 16
    assert llm["model.embed_tokens.weight"] == llm["lm_head.weight"] == (128_256, 4096)
    assert (
        llm["model.layers.31.self_attn.q_proj.weight"] == llm["model.layers.0.self_attn.o_proj.weight"] == (4096, 4096)
    )
    assert llm["model.layers.31.self_attn.k_proj.weight"] == (1024, 4096)
    assert llm["model.layers.31.mlp.gate_proj.weight"] == (14_336, 4096)
    assert llm["model.layers.31.mlp.down_proj.weight"] == (4096, 14_336)
    assert vision["embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert vision["embeddings.position_embedding.weight"] == (577, 1024)
    assert vision["encoder.layers.23.self_attn.out_proj.weight"] == (1024, 1024)
    assert vision["encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)
    assert sum(math.prod(shape) for shape in vision.values()) == 303_507_456  # CLIP L/14-336 with post_layernorm


SHAPES = {
    "cls/embedding": (4,), "patch/kernel": (2, 2, 3, 4), "position/embedding": (5, 4), "layers/q/kernel": (3, 4, 6, 10),
    "layers/q/bias": (3, 6, 2), "layers/o/kernel": (3, 6, 10, 4), "layers/up/kernel": (3, 4, 40),
    "layers/up/bias": (3, 8), "layers/down/kernel": (3, 700, 410),
}  # fmt: skip


# The matrices are larger than a block but not a multiple of it; the last one is large enough for several threads.
@pytest.mark.parametrize("chunk", [transpose.CHUNK, 700], ids=["at once", "in chunks"])
@pytest.mark.parametrize("path", SHAPES)
def test_transposed_tensors_read_back_whole_and_in_parts(path, chunk, monkeypatch):
    monkeypatch.setattr(transpose, "CHUNK", chunk)
    mapping, shape = next(mapping for mapping in CLIP if mapping.path == path), SHAPES[path]
    assert path != "layers/down/kernel" or shape[1] * shape[2] > transpose.SINGLE_THREAD_SIZE
    value = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    layers = value if mapping.stacked else [value]
    tensors = {name: to_torch(mapping.groups, x) for name, x in zip(tensor_names(mapping, shape), layers, strict=True)}
    assert all(x.flags.c_contiguous for x in tensors.values())
    sizes = []

    def read_tensor(name, index):
        sizes.append(tensors[name][index].size)
        return tensors[name][index]

    whole = (slice(None),) * len(shape)
    np.testing.assert_array_equal(read_parameter(mapping, shape, whole, np.float32, read_tensor), value)
    splits = [axis for axis, n in enumerate(shape) if n in (3, 4, 6, 8) and path != "patch/kernel"]
    for axis in splits:  # as a mesh shards it; splitting layers is for pipelines
        index = (*whole[:axis], slice(shape[axis] // 2, shape[axis]), *whole[axis + 1 :])
        sizes.clear()
        part = read_parameter(mapping, shape, index, np.float16, read_tensor)
        assert part.dtype == np.float16 and sum(sizes) == part.size, "only the requested part is read"
        np.testing.assert_array_equal(part, value[index].astype(np.float16))


def test_device_array_takes_over_the_aligned_buffer():
    """A copy would double the memory: 500 MB for one stacked matrix of a model with 1.1 billion weights."""
    mapping, buffers = next(mapping for mapping in CLIP if mapping.path == "layers/up/kernel"), []

    def part(index):
        buffers.append(
            read_parameter(mapping, (3, 4, 40), index, np.float32, lambda name, _: np.ones((40, 4), np.float32))
        )
        return buffers[-1]

    sharding = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    for _ in range(8):  # memory may be aligned to 64 bytes by chance
        array = jax.make_array_from_callback((3, 4, 40), sharding, part)
        assert array.unsafe_buffer_pointer() == buffers[-1].ctypes.data


def test_splitting_inside_a_head_raises():
    with pytest.raises(AssertionError):
        torch_index(HEADS_IN, (4, 6, 2), (slice(None), slice(None), slice(0, 1)))


def test_docstring_examples_are_correct():
    assert doctest.testmod(name_map).failed == 0
