"""Folders in external formats are opened by content, and their logits equal those of transformers."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.huggingface.config import to_hf
from llava_jax.checkpoint.huggingface.vision_config import TOWERS
from llava_jax.checkpoint.module_file import load_module
from llava_jax.config import Optimizer
from llava_jax.config.architectures import IMAGE_TOKEN_ID, RopeScaling
from llava_jax.errors import ConfigError, DataError
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model, nested
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train.optimizer import learning_rates_per_parameter, make_optimizer
from llava_jax.train.state import abstract_state
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava
from tests.fixtures.tiny_models import uneven

IMAGE = 63
CONFIG = uneven()
TOWER = "openai/clip-vit-large-patch14"


def like(config, modules=("vision", "projector", "llm")) -> dict[str, jax.ShapeDtypeStruct]:
    peak = learning_rates_per_parameter(abstract_model(config)[0], ((".*", 1e-3),))
    mesh = make_mesh(4, 2, 1) if config.llm.vocab_size % 2 else make_mesh(2, 2, 2)
    specs = abstract_state(config, peak, make_optimizer(Optimizer(), peak, 10), mesh).trainable
    return {path: spec for path, spec in specs.items() if path.split("/")[0] in modules}


def write_original(folder, model, config, with_tower: bool, **changes) -> None:
    """Writes a folder as LLaVA's trainer saves it."""
    renames = (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."), ("lm_head.", "lm_head."),
    )  # fmt: skip
    tensors = {}
    for name, value in model.state_dict().items():
        old, new = next(r for r in renames if name.startswith(r[0]))
        if with_tower or "vision_tower" not in name:
            tensors[new + name.removeprefix(old)] = value.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config_json = to_hf(config.vision, config.llm, "linear", 0, "float32")["text_config"] | dict(
        model_type="llava_llama", mm_vision_tower=TOWER, mm_projector_type=config.projector,
        mm_vision_select_layer=config.vision.select_layer, mm_vision_select_feature=config.vision.select_feature,
    )  # fmt: skip
    config_json |= changes
    (folder / "config.json").write_text(json.dumps(config_json))


def our_logits(config, params) -> np.ndarray:
    n = config.vision.features
    rng = np.random.default_rng(1)
    tokens = np.concatenate([[1, 5], [IMAGE_TOKEN_ID] * n, rng.integers(3, 60, 6)])[None].astype(np.int32)
    pixels = rng.standard_normal((1, 1, 24, 24, 3), dtype=np.float32)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    return np.asarray(
        Llava(config).apply({"params": nested(params)}, tokens, pixels, positions, np.ones_like(positions))
    )


def transformers_logits(model, config) -> np.ndarray:
    n = config.vision.features
    rng = np.random.default_rng(1)
    tokens = np.concatenate([[1, 5], [IMAGE] * n, rng.integers(3, 60, 6)])[None].astype(np.int64)
    pixels = rng.standard_normal((1, 1, 24, 24, 3), dtype=np.float32)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels[:, 0]).permute(0, 3, 1, 2)
        ).logits.numpy()


VARIANTS = {
    "grouped queries": uneven(),
    "all heads": uneven(llm=dict(kv_heads=4)),
    "tied": uneven(llm=dict(tied_head=True)),
    "last block": uneven(vision=dict(select_layer=-1)),
    "with CLS": uneven(vision=dict(select_feature="cls_patch")),
    "linear rope": uneven(llm=dict(rope_scaling=RopeScaling("linear", 4.0))),
    "llama3 rope": uneven(llm=dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32))),
    "qwen2": uneven(llm=dict(qkv_bias=True)),
    "head size": uneven(llm=dict(head_size=16)),
    "odd vocabulary": uneven(llm=dict(vocab_size=71)),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_transformers_for_a_folder_it_saved(tmp_path, config):
    model = hf_llava(config, IMAGE)
    model.save_pretrained(tmp_path)
    checkpoint = open_external(tmp_path)
    read = checkpoint.model("float32")
    assert dataclasses.replace(read, remat=config.remat, unroll=config.unroll) == config
    ours, expected = our_logits(read, checkpoint.load(like(read))), transformers_logits(model, config)
    assert np.abs(ours - expected).max() <= 1e-4
    assert (ours.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_half_precision_and_sharded_files_load(tmp_path, dtype, shards):
    model = hf_llava(CONFIG, IMAGE).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "20KB")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    source = open_external(tmp_path)
    assert np.abs(our_logits(CONFIG, source.load(like(CONFIG))) - transformers_logits(again, CONFIG)).max() <= 1e-4


def test_original_folder_loads_with_inner_or_separate_tower(tmp_path, monkeypatch):
    model = hf_llava(CONFIG, IMAGE)
    expected = transformers_logits(model, CONFIG)
    write_original(tmp_path / "with", model, CONFIG, with_tower=True)
    monkeypatch.setitem(TOWERS, TOWER, CONFIG.vision)
    source = open_external(tmp_path / "with")
    assert np.abs(our_logits(source.model("float32"), source.load(like(CONFIG))) - expected).max() <= 1e-4

    write_original(tmp_path / "without", model, CONFIG, with_tower=False)
    clip = hf_clip(CONFIG.vision)
    clip.load_state_dict(model.model.vision_tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    source = open_external(tmp_path / "without", tower=tmp_path / "clip")
    assert np.abs(our_logits(source.model("float32"), source.load(like(CONFIG))) - expected).max() <= 1e-4
    with pytest.raises(DataError, match="without is not a whole LLaVA: it has no vision; pass the folder of its CLIP"):
        open_external(tmp_path / "without").model("float32")


NAMES = ["/data/models/clip-vit-large-patch14", "C:\\models\\clip-vit-large-patch14", "./clip-vit-large-patch14/"]
NAMES.append("/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/32bd642")


@pytest.mark.parametrize("name", NAMES)
def test_path_of_a_published_tower_names_it_if_shapes_fit(tmp_path, monkeypatch, name):
    write_original(tmp_path / "it", hf_llava(CONFIG, IMAGE), CONFIG, with_tower=True, mm_vision_tower=name)
    with pytest.raises(DataError, match="mm_vision_tower=.*: other shapes than a published tower .*width 32, 3 blocks"):
        open_external(tmp_path / "it")
    monkeypatch.setitem(TOWERS, TOWER, CONFIG.vision)
    assert open_external(tmp_path / "it").vision == CONFIG.vision


def test_shapes_of_clip_336_suffice_and_are_reported(tmp_path, monkeypatch, capsys):
    """Only one published tower has them; those of the tower for 224 pixels have twins."""
    write_original(tmp_path / "it", hf_llava(CONFIG, IMAGE), CONFIG, with_tower=True, mm_vision_tower="/data/mine")
    monkeypatch.setitem(TOWERS, TOWER, CONFIG.vision)
    with pytest.raises(DataError, match="'/data/mine': not the name of a published tower"):
        open_external(tmp_path / "it")
    monkeypatch.setitem(TOWERS, TOWER + "-336", CONFIG.vision)
    assert open_external(tmp_path / "it").vision == CONFIG.vision
    assert "mm_vision_tower='/data/mine' is not known; its shapes are those of openai" in capsys.readouterr().err


def test_separate_tower_describes_the_one_inside(tmp_path):
    """Its config.json is used; the weights are those inside, which may have been trained."""
    config = uneven(vision=dict(activation="gelu", norm_eps=1e-3))
    write_original(tmp_path / "it", hf_llava(config, IMAGE), config, with_tower=True, mm_vision_tower="/data/mine")
    perturbed(hf_clip(config.vision), 1.0).save_pretrained(tmp_path / "clip")
    source = open_external(tmp_path / "it", tower=tmp_path / "clip")
    assert source.vision == config.vision and source.tower_prefix == "model.vision_tower.vision_tower.vision_model."
    inside = load_file(tmp_path / "it" / "model.safetensors")
    name = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    np.testing.assert_array_equal(source.load(like(config))["vision/cls/embedding"], inside[name])
    hf_clip(uneven(vision=dict(mlp_width=56)).vision).save_pretrained(tmp_path / "other")
    source = open_external(tmp_path / "it", tower=tmp_path / "other")
    with pytest.raises(DataError, match=r"mlp.fc..weight has shape .*48.*, the config expects .*56"):
        source.load(like(source.model("float32")))


def test_lone_tower_and_lone_language_model_open(tmp_path):
    hf_clip(CONFIG.vision).save_pretrained(tmp_path / "clip")
    hf_llama(CONFIG.llm).save_pretrained(tmp_path / "llm")
    clip, llm = open_external(tmp_path / "clip"), open_external(tmp_path / "llm")
    assert (clip.modules, clip.vision, llm.modules, llm.llm) == (("vision",), CONFIG.vision, ("llm",), CONFIG.llm)
    assert set(clip.load(like(CONFIG, ("vision",)))) | set(llm.load(like(CONFIG, ("llm",)))) == set(
        like(CONFIG, ("vision", "llm"))
    )
    with pytest.raises(DataError, match="clip is not a whole LLaVA: it has no llm and no projector"):
        clip.model("float32")
    with pytest.raises(ConfigError, match="needs no separate tower"):
        open_external(tmp_path / "llm", tower=tmp_path / "clip")


def test_linear_projector_requires_an_identity_second_layer(tmp_path):
    hf_llava(CONFIG, IMAGE).save_pretrained(tmp_path)
    config_json = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config_json | {"projector_hidden_act": "linear"}))
    with pytest.raises(DataError, match="linear_2.weight is not the identity"):
        open_external(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "multi_modal_projector.linear_2"
    tensors |= {f"{name}.weight": torch.eye(CONFIG.llm.width), f"{name}.bias": torch.zeros(CONFIG.llm.width)}
    save_file(tensors, tmp_path / "model.safetensors")
    source = open_external(tmp_path)
    config = source.model("float32")
    assert config.projector == "linear"
    source.load(like(config))  # raises if a tensor is left over


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="llava_mpt"), "model_type 'llava_mpt' is not one of llava_llama"),
        (dict(mm_projector_type="identity"), "mm_projector_type='identity' is not supported"),
        (dict(mm_patch_merge_type="spatial_unpad"), "mm_patch_merge_type='spatial_unpad': images in tiles"),
        (dict(image_aspect_ratio="anyres"), "image_aspect_ratio='anyres': images in tiles"),
        (dict(s2=True), "s2=True is not supported"),
        (dict(mm_vision_select_layer=[-2, -5]), "mm_vision_select_layer=.*several layers"),
        (dict(mm_vision_select_layer=9), "feature layer 9 is not one of the 4 hidden states"),
        (dict(mm_projector_type=7), "mm_projector_type=7 is not a text"),
        (dict(mm_vision_select_feature="cls"), "mm_vision_select_feature='cls' is not one of patch, cls_patch"),
        (
            dict(mm_vision_tower="/home/me/clip"),
            "mm_vision_tower='/home/me/clip': not the name of a published tower .*width 32, 3 blocks.*--tower",
        ),
        (dict(mm_projector_type="mlp3x_gelu"), "missing model.mm_projector.4"),
        (dict(num_hidden_layers=2), "unexpected model.layers.2"),
        (dict(vocab_size=65), "has shape .64, 40., the config expects .65, 40."),
    ],
)
def test_mismatched_original_config_raises_naming_the_key(tmp_path, monkeypatch, changes, message):
    monkeypatch.setitem(TOWERS, TOWER, CONFIG.vision)
    write_original(tmp_path / "it", hf_llava(CONFIG, IMAGE), CONFIG, with_tower=True, **changes)
    with pytest.raises(DataError, match=message):
        source = open_external(tmp_path / "it")
        source.load(like(source.model("float32")))


def test_one_module_loads_from_a_whole_llava(tmp_path):
    hf_llava(CONFIG, IMAGE).save_pretrained(tmp_path)
    whole = open_external(tmp_path).load(like(CONFIG))
    for module in ("vision", "projector", "llm"):
        params = load_module(str(tmp_path), module, like(CONFIG))
        assert set(params) == set(like(CONFIG, (module,)))
        assert all(
            (params[path] == whole[path]).all() and params[path].sharding == whole[path].sharding for path in params
        )
    hf_clip(CONFIG.vision).save_pretrained(tmp_path / "clip")
    with pytest.raises(DataError, match="clip has no llm"):
        load_module(str(tmp_path / "clip"), "llm", like(CONFIG))


def test_file_without_tensors_and_missing_path_raise(tmp_path):
    hf_llama(CONFIG.llm).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="holds no known LLaVA, CLIP tower or LLaMA: its tensors start with nothing"):
        open_external(tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_external(tmp_path / "nowhere")


# --- checkpoints that need a base


def perturbed(model, scale: float):
    """Returns a copy of the model with noise added to every tensor."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(scale * torch.randn_like(p))
    return other.eval()


def assert_computes(source, model) -> None:
    ours, expected = our_logits(source.model("float32"), source.load(like(CONFIG))), transformers_logits(model, CONFIG)
    assert np.abs(ours - expected).max() <= 1e-3


def write_llm(folder, model) -> None:
    llm = hf_llama(CONFIG.llm)
    llm.model.load_state_dict(model.model.language_model.state_dict())
    llm.lm_head.load_state_dict(model.lm_head.state_dict())
    llm.save_pretrained(folder)


def test_lone_projector_opens_with_base_and_tower(tmp_path):
    model = hf_llava(CONFIG, IMAGE)
    write_llm(tmp_path / "vicuna", model)
    clip = hf_clip(CONFIG.vision)
    clip.load_state_dict(model.model.vision_tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    write_original(tmp_path / "stage1", model, CONFIG, with_tower=False)
    tensors = load_file(tmp_path / "stage1" / "model.safetensors")
    (tmp_path / "stage1" / "model.safetensors").unlink()
    torch.save({k: v for k, v in tensors.items() if "mm_projector" in k}, tmp_path / "stage1" / "mm_projector.bin")
    files = dict(tower=tmp_path / "clip", base=tmp_path / "vicuna")
    assert_computes(open_external(tmp_path / "stage1", **files, allow_pickle=True), model)
    with pytest.raises(DataError, match="mm_projector.bin is a pickle.*convert it.*allow_pickle=True"):
        open_external(tmp_path / "stage1", **files)
    with pytest.raises(DataError, match="stage1 holds a projector alone; pass its language model"):
        open_external(tmp_path / "stage1", allow_pickle=True)
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(clip.state_dict(), tmp_path / "clip" / "pytorch_model.bin")  # as published for the 336 px tower
    assert_computes(open_external(tmp_path / "stage1", **files, allow_pickle=True), model)


def test_delta_weights_are_added_to_their_base(tmp_path, monkeypatch):
    monkeypatch.setitem(TOWERS, TOWER, CONFIG.vision)
    base = hf_llava(CONFIG, IMAGE)
    target = perturbed(base, 0.05)
    write_llm(tmp_path / "llama", base)
    write_original(tmp_path / "delta", target, CONFIG, with_tower=True)
    tensors = load_file(tmp_path / "delta" / "model.safetensors")
    for name, value in load_file(tmp_path / "llama" / "model.safetensors").items():
        tensors[name] = tensors[name] - value
    save_file(tensors, tmp_path / "delta" / "model.safetensors")
    assert_computes(open_external(tmp_path / "delta", base=tmp_path / "llama"), target)


def test_a_lora_folder_is_merged_into_its_base(tmp_path):
    base = hf_llava(CONFIG, IMAGE)
    base.save_pretrained(tmp_path / "base")
    target, tensors = copy.deepcopy(base), {}
    rng = torch.Generator().manual_seed(0)
    for i, layer in enumerate(target.model.language_model.layers):
        for name in ("q_proj", "v_proj"):
            weight = getattr(layer.self_attn, name).weight
            a = 0.1 * torch.randn(4, weight.shape[1], generator=rng)
            b = 0.1 * torch.randn(weight.shape[0], 4, generator=rng)
            with torch.no_grad():
                weight += 8 / 4 * b @ a
            prefix = f"base_model.model.model.language_model.layers.{i}.self_attn.{name}"
            tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    adapter_config = dict(peft_type="LORA", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], bias="none")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(adapter_config))
    with pytest.raises(DataError, match="lora holds a LoRA adapter; pass the model it was trained on"):
        open_external(tmp_path / "lora")
    assert_computes(open_external(tmp_path / "lora", base=tmp_path / "base"), target)
