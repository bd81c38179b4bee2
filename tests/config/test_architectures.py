"""The real sizes, checked without allocating them."""

import dataclasses
import math

import jax
import pytest
import torch
from flax import linen as nn
from transformers import CLIPVisionModel, LlamaForCausalLM

from llava_jax.config.architectures import LLM, VISION, ModelConfig
from llava_jax.models.params import abstract_params
from llava_jax.runtime.mesh import AXES
from llava_jax.runtime.sharding import RULES, param_specs
from tests.fixtures.hf_models import clip_config, llama_config

PAIRS = [
    ("clip_l14_224", "llama_7b", "linear"),
    ("clip_l14_336", "llama2_7b", "mlp2x_gelu"),
    ("clip_l14_224", "llama_13b", "linear"),
    ("clip_l14_336", "llama2_13b", "mlp2x_gelu"),
    ("clip_l14_336", "llama3_8b", "mlp2x_gelu"),
    ("clip_l14_224", "smollm2_135m", "mlp2x_gelu"),
    ("tiny", "tiny", "mlp2x_gelu"),
]
PROJECTOR = {("linear", 4096): 4_198_400, ("linear", 5120): 5_248_000}
PROJECTOR |= {("mlp2x_gelu", 4096): 20_979_712, ("mlp2x_gelu", 5120): 31_467_520}
DECODER = {"llama_7b": 6_738_415_616, "llama2_7b": 6_738_415_616, "llama_13b": 13_015_864_320}
DECODER |= {"llama2_13b": 13_015_864_320, "llama3_8b": 8_030_261_248, "smollm2_135m": 134_515_008}


def config_of(vision, llm, projector):
    return ModelConfig(VISION[vision], LLM[llm], projector, "bfloat16", "bfloat16", "full", False, "xla")


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def meta_count(build, config):
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())


@pytest.mark.parametrize("vision, llm, projector", PAIRS)
def test_parameter_counts_and_axes(vision, llm, projector):
    config = config_of(vision, llm, projector)
    params = abstract_params(config)
    assert set(params) == {"vision", "projector", "llm"}
    assert count(params["vision"]) == meta_count(CLIPVisionModel, clip_config(config.vision))
    assert count(params["llm"]) == meta_count(LlamaForCausalLM, llama_config(config.llm))
    assert count(params["llm"]) == DECODER.get(llm, count(params["llm"]))
    key = projector, config.llm.width
    assert count(params["projector"]) == PROJECTOR.get(key, count(params["projector"]))
    if vision == "clip_l14_224":
        assert count(params["vision"]) == 303_179_776

    known = {name for name, _ in RULES}
    boxes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) - {None} <= known
        assert box.value.dtype == "float32"


def test_leaf_names_are_kernel_bias_scale_and_embedding():
    paths = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract_params(config_of(*PAIRS[-1]))))
    assert {path[-1].key for path, _ in paths} == {"kernel", "bias", "scale", "embedding"}


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
def test_every_matrix_of_the_7b_model_is_split_over_fsdp_and_tensor(projector):
    config = dataclasses.replace(config_of(*PAIRS[0]), projector=projector)
    params = abstract_params(config)
    specs = param_specs(params)
    for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, tuple)):
        axes = [axis for axis in spec if axis]
        assert set(axes) <= set(AXES)
        name = "/".join(k.key for k in path)
        if name.startswith("llm") and name.endswith(("kernel", "embedding")):
            assert set(axes) == {"fsdp", "tensor"}, name
