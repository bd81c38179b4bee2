"""torch_layout.py: every parameter has its torch tensors. That the values land in the right places is shown by the
parity tests of tests/models, which read transformers' models through these rows."""

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
def test_every_parameter_has_one_row_and_no_torch_tensor_has_two(projector, depth, llm):
    rows = {"vision": CLIP, "projector": projector_mappings(depth, "llava"), "llm": LLAMA}
    found = {f"{module}/{row.path}": row for module, table in rows.items() for row in table}
    shapes = shapes_of(projector, llm)
    assert shapes.keys() <= found.keys()
    unused = found.keys() - shapes.keys()
    assert unused <= {f"llm/layers/{x}/bias" for x in "qkv"} | {"llm/head/kernel"}, "what only some models have"
    tensors = [(path.split("/")[0], n) for path, shape in shapes.items() for n in tensor_names(found[path], shape)]
    assert len(set(tensors)) == len(tensors)


def test_shapes_are_those_of_the_published_files():
    def tensors(table, module, shapes):
        rows = {f"{module}/{row.path}": row for row in table}
        for path in rows.keys() & shapes.keys():
            shape = shapes[path][1:] if rows[path].stacked else shapes[path]
            for name in tensor_names(rows[path], shapes[path]):
                yield name, name_map.torch_shape(rows[path].groups, shape)

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


# the matrices are larger than the blocks in which they are turned around, and no multiple of them; the last ones are
# large enough for several threads
@pytest.mark.parametrize("piece", [transpose.PIECE, 700], ids=["at once", "in pieces"])
@pytest.mark.parametrize("path", SHAPES)
def test_what_is_written_is_read_back_whole_and_in_parts(path, piece, monkeypatch):
    monkeypatch.setattr(transpose, "PIECE", piece)
    row, shape = next(row for row in CLIP if row.path == path), SHAPES[path]
    assert path != "layers/down/kernel" or shape[1] * shape[2] > transpose.SMALL
    value = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    layers = value if row.stacked else [value]
    tensors = {name: to_torch(row.groups, x) for name, x in zip(tensor_names(row, shape), layers, strict=True)}
    assert all(x.flags.c_contiguous for x in tensors.values())
    asked = []

    def tensor(name, index):
        asked.append(tensors[name][index].size)
        return tensors[name][index]

    whole = (slice(None),) * len(shape)
    np.testing.assert_array_equal(read_parameter(row, shape, whole, np.float32, tensor), value)
    splits = [axis for axis, n in enumerate(shape) if n in (3, 4, 6, 8) and path != "patch/kernel"]
    for axis in splits:  # as a mesh splits it: layers never, but a pipeline might
        index = (*whole[:axis], slice(shape[axis] // 2, shape[axis]), *whole[axis + 1 :])
        asked.clear()
        part = read_parameter(row, shape, index, np.float16, tensor)
        assert part.dtype == np.float16 and sum(asked) == part.size, "nothing beyond the part is read"
        np.testing.assert_array_equal(part, value[index].astype(np.float16))


def test_the_memory_read_into_becomes_the_device_s():
    """A copy would take as much memory again: 500 MB for a matrix of all layers of 1.1 billion weights."""
    row, made = next(row for row in CLIP if row.path == "layers/up/kernel"), []

    def part(index):
        made.append(read_parameter(row, (3, 4, 40), index, np.float32, lambda name, _: np.ones((40, 4), np.float32)))
        return made[-1]

    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    for _ in range(8):  # by chance, memory is on a border of 64 bytes now and then
        array = jax.make_array_from_callback((3, 4, 40), here, part)
        assert array.unsafe_buffer_pointer() == made[-1].ctypes.data


def test_a_head_is_never_split_inside():
    with pytest.raises(AssertionError):
        torch_index(HEADS_IN, (4, 6, 2), (slice(None), slice(None), slice(0, 1)))


def test_the_docstrings_tell_the_truth():
    assert doctest.testmod(name_map).failed == 0
