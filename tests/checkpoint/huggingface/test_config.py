"""config.json gives the same architecture as in transformers, or raises."""

import dataclasses
import json

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, MistralConfig, Qwen2Config

from llava_jax.checkpoint.huggingface.config import (
    TOWERS,
    hf_llava,
    language_model,
    read_hf_config,
    to_hf,
    vision_tower,
)
from llava_jax.config.architectures import LLM, VISION, RopeScaling
from llava_jax.errors import DataError
from tests.fixtures.hf_models import clip_config, llama_config
from tests.fixtures.tiny_models import uneven

VARIANTS = [
    {}, dict(kv_heads=4, tied_head=True), dict(qkv_bias=True), dict(head_size=16), dict(rope_base=5e5),
    dict(rope_scaling=RopeScaling("linear", 2.0)),
    dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32)),
]  # fmt: skip


def save_and_read(config, folder) -> dict:
    config.save_pretrained(folder)
    return read_hf_config(folder)


@pytest.mark.parametrize("cls", [LlamaConfig, MistralConfig, Qwen2Config])
@pytest.mark.parametrize("whole", [False, True], ids=["only what differs", "everything"])
def test_language_model_defaults_equal_transformers(tmp_path, cls, whole):
    c = cls(num_hidden_layers=3)
    config = save_and_read(c, tmp_path) if whole else {"model_type": cls.model_type, "num_hidden_layers": 3}
    ours = language_model(config, "config.json")
    window = c.sliding_window if cls is MistralConfig else None
    assert (ours.vocab_size, ours.width, ours.layers, ours.heads) == (
        c.vocab_size, c.hidden_size, 3, c.num_attention_heads,
    )  # fmt: skip
    assert ours.kv_heads == (c.num_key_value_heads or c.num_attention_heads)
    assert ours.head_size == c.hidden_size // c.num_attention_heads and ours.mlp_width == c.intermediate_size
    assert (ours.norm_eps, ours.tied_head) == (c.rms_norm_eps, c.tie_word_embeddings)
    assert (ours.rope_base, ours.rope_scaling) == (c.rope_parameters["rope_theta"], None)
    assert ours.max_positions == min(c.max_position_embeddings, window or c.max_position_embeddings)
    assert ours.qkv_bias == (cls is Qwen2Config)


@pytest.mark.parametrize("whole", [False, True], ids=["only what differs", "everything"])
def test_vision_tower_defaults_equal_transformers(tmp_path, whole):
    c = CLIPVisionConfig(num_hidden_layers=3)
    config = save_and_read(c, tmp_path) if whole else {"model_type": "clip_vision_model", "num_hidden_layers": 3}
    ours = vision_tower(config, "config.json", -2, "patch")
    assert (ours.width, ours.mlp_width, ours.layers, ours.heads) == (768, 3072, 3, 12) == (
        c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
    )  # fmt: skip
    assert (ours.image_size, ours.patch_size, ours.activation) == (c.image_size, c.patch_size, c.hidden_act)
    assert ours.norm_eps == c.layer_norm_eps


@pytest.mark.parametrize("llm", VARIANTS, ids=str)
@pytest.mark.parametrize("vision", [{}, dict(select_layer=-1, select_feature="cls_patch", activation="gelu")], ids=str)
def test_llava_config_is_read_from_a_transformers_file(tmp_path, llm, vision):
    c = uneven(llm=llm, vision=vision)
    strategy = {"patch": "default", "cls_patch": "full"}[c.vision.select_feature]
    config = LlavaConfig(
        vision_config=clip_config(c.vision), text_config=llama_config(c.llm),
        vision_feature_layer=c.vision.select_layer, vision_feature_select_strategy=strategy,
    )  # fmt: skip
    assert hf_llava(save_and_read(config, tmp_path), "config.json") == (c.vision, c.llm, "gelu")


@pytest.mark.parametrize("llm", VARIANTS, ids=str)
@pytest.mark.parametrize("vision", [{}, dict(select_layer=-1, select_feature="cls_patch", activation="gelu")], ids=str)
def test_written_config_reads_back_here_and_in_transformers(tmp_path, llm, vision):
    c = uneven(llm=llm, vision=vision)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(c.vision, c.llm, c.projector, 63, "float32")))
    assert hf_llava(read_hf_config(tmp_path), "config.json") == (c.vision, c.llm, "gelu")
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, LlavaConfig)
    (tmp_path / "again").mkdir()
    theirs.save_pretrained(tmp_path / "again")
    assert hf_llava(read_hf_config(tmp_path / "again"), "config.json") == (c.vision, c.llm, "gelu")
    assert (theirs.image_token_id, theirs.image_seq_length) == (63, c.vision.features)


@pytest.mark.parametrize(
    "llm, projector, message",
    [({}, "mlp3x_gelu", "mlp3x_gelu cannot be written"), (dict(qkv_bias=True, head_size=16), "linear", "head size")],
)
def test_config_transformers_cannot_represent_raises(llm, projector, message):
    c = uneven(llm=llm)
    with pytest.raises(DataError, match=message):
        to_hf(c.vision, c.llm, projector, 63, "float32")


def test_published_llava_1_5_config_gets_vicuna_and_clip_defaults():
    """llava-hf/llava-1.5-7b-hf: its text_config omits LLaMA 7B's values."""
    text = dict(model_type="llama", max_position_embeddings=4096, rms_norm_eps=1e-5, vocab_size=32_064)
    vision, llm, act = hf_llava({"model_type": "llava", "text_config": text}, "config.json")
    assert vision == VISION["clip_l14_336"] and act == "gelu"
    assert llm == dataclasses.replace(LLM["vicuna_7b_v1.5"], vocab_size=32_064)
    assert TOWERS["openai/clip-vit-large-patch14"].image_size == 224


def test_old_rope_keys_are_read():
    old = dict(rope_theta=5e5, rope_scaling=dict(type="linear", factor=4.0))
    ours = language_model(old, "config.json")
    assert (ours.rope_base, ours.rope_scaling) == (5e5, RopeScaling("linear", 4.0))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="gpt2"), "language model 'gpt2' is not one of llama, mistral, qwen2"),
        (dict(hidden_act="gelu"), "hidden_act='gelu' is not supported"),
        (dict(attention_bias=True), "attention_bias=True is not supported"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=2.0)), "rotary scaling 'yarn' is not one of"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "rotary scaling 'llama3' lacks 'low_freq_factor'"),
    ],
    ids=str,
)
def test_unsupported_language_model_raises_naming_the_key(changes, message):
    with pytest.raises(DataError, match=f"here/config.json: {message}"):
        language_model(changes, "here/config.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(vision_config=dict(model_type="siglip_vision_model")), "vision tower 'siglip_vision_model'"),
        (dict(vision_config=dict(hidden_act="relu")), "a tower with 'relu'"),
        (dict(vision_feature_layer=[-2, -5]), "features of several layers"),
        (dict(vision_feature_select_strategy="cls"), "is not one of default, full"),
        (dict(multimodal_projector_bias=False), "without biases"),
        (dict(projector_hidden_act="silu"), "is not one of gelu, linear"),
    ],
    ids=str,
)
def test_unsupported_llava_config_raises_naming_the_key(changes, message):
    with pytest.raises(DataError, match=message):
        hf_llava(changes, "config.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(vision_config=[1]), r"vision_config=\[1\] is not a group"),
        (dict(text_config="big"), "text_config='big' is not a group"),
        (dict(text_config=dict(hidden_size="wide")), "hidden_size='wide' is not a valid number"),
        (dict(text_config=dict(num_attention_heads=0)), "num_attention_heads=0 is not a valid number"),
        (dict(text_config=dict(num_hidden_layers=2.5)), "num_hidden_layers=2.5 is not a valid number"),
        (dict(text_config=dict(rms_norm_eps=None)), "rms_norm_eps=None is not a valid number"),
        (dict(text_config=dict(head_dim="64")), "head_dim='64' is not a valid number"),
        (dict(text_config=dict(model_type=["llama"])), "language model .*llama.* is not one of"),
        (dict(text_config=dict(rope_scaling=7)), "rope_scaling=7 is not a group"),
        (dict(text_config=dict(rope_theta="far")), "rotary scaling .*far.* no number"),
        (dict(vision_config=dict(patch_size=True)), "patch_size=True is not a valid number"),
        (dict(vision_feature_select_strategy={}), "vision_feature_select_strategy=.* is not one of"),
    ],
)
def test_wrong_value_type_raises_naming_the_key(changes, message):
    with pytest.raises(DataError, match=f"config.json: {message}"):
        hf_llava(changes, "config.json")


@pytest.mark.parametrize(
    "text, message",
    [(None, "does not exist"), ("{", "cannot be read"), ("[]", "holds no object"), ('{"auto_map": {}}', "auto_map")],
)
def test_unreadable_config_raises_naming_the_file(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=f"{tmp_path}/config.json .*{message}"):
        read_hf_config(tmp_path)


def test_fixture_configs_survive_a_transformers_round_trip(tmp_path):
    """Validates the tests above: the fixtures' configs are unchanged after transformers writes and reads them."""
    config = LlavaConfig(vision_config=clip_config(uneven().vision), text_config=llama_config(uneven().llm))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())
