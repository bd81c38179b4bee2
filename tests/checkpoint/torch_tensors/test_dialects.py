"""The same model is read in every naming scheme, from one file and from shards."""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.torch import save_file

from llava_jax.checkpoint.torch_tensors.dialects import (
    TEXT_TOWER,
    check_tensors,
    find_dialect,
    load_parameters,
    torch_mappings,
)
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.config import Optimizer
from llava_jax.errors import DataError
from llava_jax.models.params import abstract_model
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train.optimizer import learning_rates_per_parameter, make_optimizer
from llava_jax.train.state import abstract_state
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava, llava_params
from tests.fixtures.tiny_models import uneven

CONFIG = uneven()
SHAPES = {path: x.shape for path, x in abstract_model(CONFIG)[0].items()}


@pytest.fixture(scope="module")
def model():
    return hf_llava(CONFIG, image_token=63)


@pytest.fixture(scope="module")
def params(model):
    return flatten_dict(llava_params(model, CONFIG), sep="/")


def renamed(model, *prefixes: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Returns the state dict with the first matching prefix of each name replaced."""
    tensors = {}
    for name, value in model.state_dict().items():
        old, new = next(p for p in prefixes if name.startswith(p[0]))
        tensors[new + name.removeprefix(old)] = value.contiguous()
    return tensors


VISION, PROJECTOR, LLM, HEAD = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.language_model.",
    "lm_head.",
)
WRITERS = {
    "hub, old": (
        (VISION, "vision_tower.vision_model."), (PROJECTOR, "multi_modal_projector."), (LLM, "language_model.model."),
        (HEAD, "language_model.lm_head."),
    ),
    "hub, new": (
        (VISION, "vision_tower."), (PROJECTOR, "multi_modal_projector."), (LLM, "language_model.model."),
        (HEAD, "language_model.lm_head."),
    ),
    "memory": ((VISION, "model.vision_tower.vision_model."), (PROJECTOR, PROJECTOR), (LLM, LLM), (HEAD, HEAD)),
    "memory, new": ((VISION, VISION), (PROJECTOR, PROJECTOR), (LLM, LLM), (HEAD, HEAD)),
    "original": (
        (VISION, "model.vision_tower.vision_tower.vision_model."), (PROJECTOR + "linear_1.", "model.mm_projector.0."),
        (PROJECTOR + "linear_2.", "model.mm_projector.2."), (LLM, "model."), (HEAD, HEAD),
    ),
}  # fmt: skip


def save(folder, tensors: dict, shards: int = 1) -> TorchFiles:
    for i in range(shards):
        save_file(dict(list(tensors.items())[i::shards]), folder / f"model-{i + 1:05}-of-{shards:05}.safetensors")
    return TorchFiles(folder)


def like(mesh=(2, 2, 2)) -> dict[str, jax.ShapeDtypeStruct]:
    peak = learning_rates_per_parameter(SHAPES, ((".*", 1e-3),))
    return abstract_state(CONFIG, peak, make_optimizer(Optimizer(), peak, 10), make_mesh(*mesh)).trainable


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_dialect_gives_the_same_sharded_parameters(tmp_path, model, params, writer, shards):
    files = save(tmp_path, renamed(model, *WRITERS[writer]), shards)
    dialect = find_dialect(files)
    assert dialect.name == writer.split(",")[0]
    mappings = torch_mappings(dialect, files, depth=2)
    check_tensors(files, mappings, SHAPES, tied=False)
    specs = like()
    loaded = load_parameters(files, mappings, specs)
    assert loaded.keys() == params.keys()
    for path, value in loaded.items():
        np.testing.assert_array_equal(np.asarray(value), params[path], err_msg=path)
        assert value.sharding == specs[path].sharding


def test_folder_saved_by_transformers_is_read(tmp_path, model, params):
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    files = TorchFiles(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    mappings = torch_mappings(find_dialect(files), files, depth=2)
    check_tensors(files, mappings, SHAPES, tied=False)
    loaded = load_parameters(files, mappings, like((1, 8, 1)))
    for path, value in loaded.items():
        np.testing.assert_array_equal(np.asarray(value), params[path], err_msg=path)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_lone_vision_tower_is_read(tmp_path, prefix):
    tensors = {prefix + name: x for name, x in hf_clip(CONFIG.vision).state_dict().items()}
    extra = {"text_model.embeddings.position_ids": torch.ones(3), "logit_scale": torch.ones(1)} if prefix else {}
    files = save(tmp_path, tensors | extra)
    assert find_dialect(files).name == "clip"
    mappings = torch_mappings(find_dialect(files), files, depth=0)
    shapes = {path: shape for path, shape in SHAPES.items() if path.startswith("vision/")}
    check_tensors(files, mappings, shapes, tied=False, unused=(TEXT_TOWER,))


@pytest.mark.parametrize("tied", [False, True])
def test_lone_language_model_ignores_obsolete_tensors(tmp_path, tied):
    config = uneven(llm=dict(tied_head=tied))
    tensors = hf_llama(config.llm).state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}
    files = save(tmp_path, {name: x.clone() for name, x in tensors.items()})  # contains a tied head too
    assert find_dialect(files).name == "llm" and "lm_head.weight" in files
    mappings = torch_mappings(find_dialect(files), files, depth=0)
    shapes = {path: x.shape for path, x in abstract_model(config)[0].items() if path.startswith("llm/")}
    check_tensors(files, mappings, shapes, tied)


FAULTS = {
    "missing model.language_model.norm.weight, unexpected none": lambda t: t.pop("model.language_model.norm.weight"),
    "missing none, unexpected model.image_newline": lambda t: t.update({"model.image_newline": torch.ones(4)}),
    r"tensor lm_head.weight has shape \(64, 41\), the config expects \(64, 40\)": lambda t: t.update(
        {"lm_head.weight": torch.ones(64, 41)}
    ),
    "missing model.vision_tower.encoder.layers.0.layer_norm1.bias, .* and 45 more": lambda t: [
        t.pop(name) for name in list(t) if "encoder.layers" in name
    ],
}


@pytest.mark.parametrize("message", FAULTS)
def test_mismatched_tensors_raise_naming_them(tmp_path, model, message):
    tensors = renamed(model, *WRITERS["memory, new"])
    FAULTS[message](tensors)
    files = save(tmp_path, tensors)
    with pytest.raises(DataError, match=f"{tmp_path}.*{message}"):
        check_tensors(files, torch_mappings(find_dialect(files), files, depth=2), SHAPES, tied=False)


def test_unknown_model_raises_naming_its_tensors(tmp_path):
    with pytest.raises(DataError, match=r"no known LLaVA, CLIP tower or LLaMA: .* start with transformer.h.0.weight"):
        find_dialect(save(tmp_path, {"transformer.h.0.weight": torch.ones(3)}))
