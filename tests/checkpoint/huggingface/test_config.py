"""config.json gives the same architecture as in transformers, or raises."""

import dataclasses
import json

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, MistralConfig, Qwen2Config

from llava_jax.checkpoint.huggingface.config import hf_llava, read_hf_config, to_hf
from llava_jax.checkpoint.huggingface.text_config import language_model
from llava_jax.checkpoint.huggingface.vision_config import TOWERS, vision_tower
from llava_jax.config.architectures import LLM, VISION, ModelConfig, RopeScaling
from llava_jax.config.build import build_dataclass
from llava_jax.errors import DataError
from tests.fixtures.hf_models import clip_config, llama_config
from tests.fixtures.tiny_models import uneven

VARIANTS = [
    {}, dict(kv_heads=4, tied_head=True), dict(qkv_bias=True), dict(head_size=16), dict(rope_base=5e5),
    dict(rope_scaling=RopeScaling("linear", 2.0)),
    dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32)),
    dict(rope_scaling=RopeScaling("dynamic", 2.0, original_max_positions=64), max_positions=128),
    dict(rope_scaling=RopeScaling("yarn", 4.0, 1.0, 4.0, 32, 16.0, 2.0, False, 1.1), activation="gelu_tanh"),
    dict(qkv_bias=True, o_bias=True, activation="quick_gelu"), dict(mlp_bias=True, activation="gelu"),
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
        (dict(hidden_act="relu"), "hidden_act='relu' is not supported"),
        (dict(model_type="mistral", attention_bias=True), "attention_bias=True is not supported in a mistral"),
        (dict(model_type="qwen2", mlp_bias="true"), "mlp_bias=True is not supported in a qwen2"),
        (dict(rope_scaling=dict(rope_type="longrope")), "rope_scaling: rotary scaling 'longrope' is not one of"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "rope_scaling: .* 'llama3' lacks 'low_freq_factor'"),
        (dict(rope_scaling=dict(full_attention={"rope_theta": 1.0})), "rope_scaling: full_attention: .* by layer type"),
        (dict(layer_types=["full_attention"]), "layer_types=.* does not fit num_hidden_layers"),
        (dict(layer_types=["sliding_attention"] * 32), "layer_types=.* does not fit .* sliding_window"),
        (dict(num_key_value_heads=5), "num_attention_heads=32 is not a multiple of num_key_value_heads=5"),
        (dict(hidden_size=4095), "hidden_size=4095, .* heads of an even size"),
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
        (dict(vision_config=dict(hidden_act="relu")), "hidden_act='relu' is not supported"),
        (dict(vision_feature_layer=[-2, -5]), "features of several layers"),
        (dict(vision_feature_select_strategy="cls"), "is not one of default, full"),
        (dict(multimodal_projector_bias=False), "without biases"),
        (dict(projector_hidden_act="relu"), "projector_hidden_act='relu' is not supported"),
        (dict(vision_feature_layer=25), "feature layer 25 is not one of the 25 hidden states"),
        (dict(vision_feature_layer=-26), "feature layer -26 is not one of"),
        (dict(model_type="llava_next"), "model_type='llava_next' is not supported"),
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
        (dict(text_config=dict(hidden_size="wide")), "hidden_size='wide' is not a number"),
        (dict(text_config=dict(num_attention_heads=0)), "num_attention_heads=0 is below 1"),
        (dict(text_config=dict(num_hidden_layers=2.5)), "num_hidden_layers=2.5 is not an integer"),
        (dict(text_config=dict(rms_norm_eps=None)), "rms_norm_eps=None is not a number"),
        (dict(text_config=dict(head_dim="64 px")), "head_dim='64 px' is not a number"),
        (dict(text_config=dict(model_type=["llama", "x"])), "model_type=.'llama', 'x'. is not a text"),
        (dict(text_config=dict(tie_word_embeddings=2)), "tie_word_embeddings=2 is not true or false"),
        (dict(vision_feature_layer="last"), "vision_feature_layer='last' is not a number"),
        (dict(vision_config=dict(image_size=[224, 224])), r"image_size=\[224, 224\] is not a number"),
        (dict(vision_config=dict(layer_norm_eps=0)), "layer_norm_eps=0 is not above 0"),
        (dict(text_config=dict(rope_scaling=7)), "rope_scaling=7 is not a group"),
        (dict(text_config=dict(rope_theta="far")), "rope_theta='far' is not a number"),
        (dict(vision_config=dict(patch_size=True)), "patch_size=True is not a number"),
        (dict(vision_feature_select_strategy={}), "vision_feature_select_strategy={} is not a text"),
    ],
)
def test_wrong_value_type_raises_naming_the_key(changes, message):
    with pytest.raises(DataError, match=f"config.json: {message}"):
        hf_llava(changes, "config.json")


LOOSE = {
    "hidden_size": ["64", 64.0, [64], "64.0", " 64 ", "6.4e1"], "rms_norm_eps": ["1e-05", [1e-5], 1e-5],
    "tie_word_embeddings": ["true", 1, "True", [True], 1.0], "hidden_act": ["gelu_new", ["gelu_pytorch_tanh"]],
    "rope_theta": ["500000", 500_000, [500_000.0]],
}  # fmt: skip


def test_values_of_another_type_are_read_if_their_meaning_is_certain():
    plain = dict(hidden_size=64, rms_norm_eps=1e-5, tie_word_embeddings=True, hidden_act="gelu_tanh", rope_theta=5e5)
    expected = language_model(plain, "config.json")
    for key, values in LOOSE.items():
        for value in values:
            read = language_model(plain | {key: value}, "config.json")
            assert read == expected and repr(read) == repr(expected), (key, value)
    assert vision_tower(dict(image_size="336", num_channels=3.0), "", -2, "patch").image_size == 336
    assert hf_llava({"vision_feature_layer": ["-3"]}, "")[0].select_layer == -3


@pytest.mark.parametrize("value", ["NaN", float("nan"), float("inf"), "1_000", "0x10", "", [], {}, [1, 1], True, "١٢"])
def test_values_without_a_certain_meaning_are_refused(value):
    with pytest.raises(DataError, match="config.json: hidden_size=.* is not a number"):
        language_model({"hidden_size": value}, "config.json")


def test_later_key_of_rope_settings_loses_as_in_transformers():
    settings = dict(
        rope_theta=7.0, rope_scaling=dict(type="linear", factor=2.0),
        rope_parameters=dict(rope_type="default", rope_theta=9.0),
    )  # fmt: skip
    ours, theirs = language_model(settings, ""), LlamaConfig(**settings).rope_parameters
    assert (ours.rope_base, ours.rope_scaling) == (7.0, RopeScaling("linear", 2.0))
    assert (theirs["rope_theta"], theirs["rope_type"], theirs["factor"]) == (7.0, "linear", 2.0)


@pytest.mark.parametrize(
    "text, message",
    [(None, "does not exist"), ("{", "cannot be read"), ("[]", "holds no object"), ('{"auto_map": {}}', "auto_map")],
)
def test_unreadable_config_raises_naming_the_file(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=f"{tmp_path}/config.json .*{message}"):
        read_hf_config(tmp_path)


def test_native_settings_without_younger_fields_mean_the_old_model():
    c = uneven(llm=dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)))
    settings = json.loads(json.dumps(dataclasses.asdict(c)))
    for part, fields in (
        (settings["llm"], ("o_bias", "mlp_bias", "activation")),
        (settings["llm"]["rope_scaling"], ("beta_fast", "beta_slow", "truncate", "attention_factor")),
    ):
        for field in fields:
            del part[field]
    assert build_dataclass(ModelConfig, settings, "model") == c
    changed = uneven(llm=VARIANTS[-3] | dict(o_bias=True, mlp_bias=True))
    assert build_dataclass(ModelConfig, json.loads(json.dumps(dataclasses.asdict(changed))), "model") == changed


def test_fixture_configs_survive_a_transformers_round_trip(tmp_path):
    """Validates the tests above: the fixtures' configs are unchanged after transformers writes and reads them."""
    config = LlavaConfig(vision_config=clip_config(uneven().vision), text_config=llama_config(uneven().llm))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())
