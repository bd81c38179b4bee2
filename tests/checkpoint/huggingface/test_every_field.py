"""Every field of transformers' configs is computed as there, limits the context, is refused by name, or has no effect.

The fields are those of the installed version: a new one fails `test_every_field_has_an_entry`. `pytest -s` prints what
is refused.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.huggingface.config import hf_llava
from llava_jax.checkpoint.huggingface.image_settings import image_settings
from llava_jax.checkpoint.huggingface.text_config import language_model
from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import DataError
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model, nested
from llava_jax.models.rope import rope_rotation
from tests.fixtures.hf_models import randomized

LENGTH = 12  # tokens of a prompt, beyond the context of `dynamic`
TEXT = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, sliding_window=None,
)  # fmt: skip
TOWER = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=12,
    projection_dim=9,
)  # fmt: skip
LLAVA = dict(image_token_index=63, image_seq_length=4)
MODELS = {LlamaConfig: LlamaForCausalLM, MistralConfig: MistralForCausalLM, Qwen2Config: Qwen2ForCausalLM}

YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
ROPE = [
    dict(rope_type="default", rope_theta=300.0),
    dict(rope_type="linear", rope_theta=500.0, factor=4.0),
    dict(rope_type="dynamic", factor=2.5),
    dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=100.0,
        original_max_position_embeddings=32,
    ),
    YARN | dict(beta_fast=4.0, beta_slow=0.5, truncate=False, attention_factor=0.7, rope_theta=90.0),
]  # fmt: skip
MORE_ROPE = [
    YARN, YARN | dict(mscale=0.9, mscale_all_dim=0.3, factor=7.0), YARN | dict(mscale=0.9), YARN | dict(factor=None),
    dict(rope_type="yarn", factor=2.0), YARN | dict(beta_fast=1000.0), dict(type="linear", factor=2.0),
    ROPE[3] | dict(original_max_position_embeddings=8), {},
]  # fmt: skip
# Field -> values that change the result. Configuration i has the i-th of every field, from the start again at the end.
COMPUTED_TEXT = dict(
    vocab_size=[80], hidden_size=[48], intermediate_size=[40], num_hidden_layers=[3, 1], num_attention_heads=[8],
    num_key_value_heads=[1, 8, 4], hidden_act=["gelu", "quick_gelu", "gelu_pytorch_tanh", "gelu_new"],
    rms_norm_eps=[1e-2], tie_word_embeddings=[True, False], rope_parameters=ROPE,
)  # fmt: skip
ONCE = {field: values[:1] for field, values in COMPUTED_TEXT.items()}
COMPUTED = {
    LlamaConfig: COMPUTED_TEXT | dict(attention_bias=[True, False], mlp_bias=[False, True], head_dim=[6, 10]),
    MistralConfig: ONCE | dict(head_dim=[6]),
    Qwen2Config: ONCE | dict(rope_parameters=ROPE[1:2]),
    CLIPVisionConfig: dict(
        hidden_size=[24], intermediate_size=[40], num_hidden_layers=[4, 2], num_attention_heads=[4], image_size=[37],
        patch_size=[8], hidden_act=["gelu", "gelu_pytorch_tanh", "silu"], layer_norm_eps=[1e-2],
    ),
    LlavaConfig: dict(
        image_token_index=[5], projector_hidden_act=["gelu_pytorch_tanh", "quick_gelu", "silu"],
        vision_feature_select_strategy=["full"], vision_feature_layer=[-1, 1, [-3]], tie_word_embeddings=[True],
    ),
}  # fmt: skip
# Changes nothing in transformers either, which the test verifies. attention_dropout acts in training alone, and our
# dtype is that of the files or of --dtype.
ANY = dict(
    transformers_version="4.0.0", architectures=["Other"], output_hidden_states=True, return_dict=True, dtype="float32",
    chunk_size_feed_forward=2, is_encoder_decoder=True, id2label={0: "a"}, label2id={"a": 0}, problem_type="regression",
)  # fmt: skip
TOKENS = dict(pad_token_id=3, bos_token_id=4, eos_token_id=6)  # `generation_config.json` and the tokenizer have these
NO_EFFECT_TEXT = ANY | TOKENS | dict(initializer_range=0.5, use_cache=False, attention_dropout=0.5)
NO_EFFECT = {
    LlamaConfig: NO_EFFECT_TEXT | dict(pretraining_tp=2),
    MistralConfig: NO_EFFECT_TEXT,
    Qwen2Config: NO_EFFECT_TEXT | dict(max_window_layers=1),
    CLIPVisionConfig: ANY
    | dict(projection_dim=7, attention_dropout=0.5, initializer_range=0.5, initializer_factor=0.5),
    LlavaConfig: ANY | dict(image_seq_length=9),
}
# Field -> other settings with which the context ends where transformers' result would begin to differ.
LIMITS = {
    LlamaConfig: dict(max_position_embeddings=dict(max_position_embeddings=32)),
    MistralConfig: dict(
        max_position_embeddings=dict(max_position_embeddings=32), sliding_window=dict(sliding_window=16)
    ),
    Qwen2Config: dict(
        max_position_embeddings=dict(max_position_embeddings=32),
        use_sliding_window=dict(use_sliding_window=True, sliding_window=16, max_window_layers=1),
        sliding_window=dict(use_sliding_window=True, sliding_window=20, max_window_layers=0),
        layer_types=dict(
            use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
        ),
    ),
    CLIPVisionConfig: {},
    LlavaConfig: {},
}
REFUSED_TEXT = [
    dict(hidden_act="relu"),
    dict(rope_parameters=dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, factor=2.0)),
    dict(rope_parameters=dict(rope_type="proportional", partial_rotary_factor=0.5)),
    dict(rope_parameters=dict(rope_type="linear", factor=2.0, partial_rotary_factor=0.5)),
    dict(partial_rotary_factor=0.5), dict(per_layer_config={"1": {"num_key_value_heads": 4}}),
]  # fmt: skip
REFUSED = {
    LlamaConfig: REFUSED_TEXT,
    MistralConfig: REFUSED_TEXT,
    Qwen2Config: [*REFUSED_TEXT, dict(layer_types=["full_attention", "linear_attention"])],
    CLIPVisionConfig: [
        dict(num_channels=1), dict(hidden_act="relu"), dict(tie_last_hidden_states=True),
        dict(per_layer_config={"1": {"intermediate_size": 8}}),
    ],
    LlavaConfig: [
        dict(multimodal_projector_bias=False), dict(projector_hidden_act="relu"), dict(vision_feature_layer=[-2, -1]),
        dict(vision_feature_layer=7),
    ],
}  # fmt: skip
NESTED = {LlavaConfig: {"vision_config", "text_config"}}  # the other configs
CLASSES = list(COMPUTED)


def make(cls, changes: dict):
    """transformers' config, of a whole LLaVA for a tower."""
    if cls in MODELS:
        return cls(**TEXT | changes)
    tower = CLIPVisionConfig(**TOWER | (changes if cls is CLIPVisionConfig else {}))
    whole = LLAVA | (changes if cls is LlavaConfig else {})
    return LlavaConfig(vision_config=tower, text_config=LlamaConfig(**TEXT), **whole)


def create(config):
    return randomized((MODELS.get(type(config)) or LlavaForConditionalGeneration)(config))


def prompt(config) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids with those of an image token, and pixels."""
    rng = np.random.default_rng(0)
    if type(config) in MODELS:
        return rng.integers(6, 60, LENGTH), None
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    count = (side // patch) ** 2 + (config.vision_feature_select_strategy == "full")
    pixels = rng.standard_normal((64, 64, 3), dtype=np.float32)[:side, :side]
    return np.concatenate([[1, 7], [config.image_token_index] * count, rng.integers(6, 60, LENGTH)]), pixels


@torch.no_grad()
def their_logits(config, model=None) -> np.ndarray:
    tokens, pixels = prompt(config)
    image = {} if pixels is None else {"pixel_values": torch.tensor(pixels)[None].permute(0, 3, 1, 2)}
    return (model or create(config))(input_ids=torch.tensor(tokens)[None], **image)[0].numpy()[0]


def our_logits(folder, config) -> np.ndarray:
    source = open_external(folder)
    read, (tokens, pixels) = source.model("float32"), prompt(config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for path, x in abstract_model(read)[0].items()
    }
    if pixels is not None:
        _, image = image_settings(folder, source.config_json, "config.json", source.vision)
        tokens = np.where(tokens == image, IMAGE_TOKEN_ID, tokens)
    side = read.image_size
    images = np.zeros((1, 0, side, side, 3), np.float32) if pixels is None else pixels[None, None]
    tokens = tokens[None].astype(np.int32)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    run = jax.jit(functools.partial(Llava(read).apply, {"params": nested(source.load(shapes))}))
    return np.asarray(run(tokens, images, positions, np.ones_like(positions)))[0]


def read(config) -> tuple:
    """What we read from transformers' file of the config, without its context, and the context."""
    settings = json.loads(config.to_json_string(use_diff=False))
    if type(config) in MODELS:
        llm = language_model(settings, "config.json")
        return dataclasses.replace(llm, max_positions=0), llm.max_positions
    image = image_settings(NOWHERE, settings, "config.json", None)[1]
    return (*hf_llava(settings, "config.json"), image), None


NOWHERE = Path("/nowhere")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_an_entry(cls):
    refused = {key for changes in REFUSED[cls] for key in changes}
    entries = set(COMPUTED[cls]) | set(NO_EFFECT[cls]) | set(LIMITS[cls]) | refused | NESTED.get(cls, set())
    assert {field.name for field in dataclasses.fields(cls)} - entries == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_each_field_alone_changes_both_results_or_neither(cls):
    base, base_logits = make(cls, {}), their_logits(make(cls, {}))
    ours = read(base)
    for field, values in COMPUTED[cls].items():
        config = make(cls, {field: next(value for value in values if value is not False)})
        theirs = their_logits(config)
        changed = theirs.shape != base_logits.shape or np.abs(theirs - base_logits).max() > 1e-3
        assert changed or field == "image_token_index", f"{field} should change transformers' result"
        assert read(config) != ours, f"{field} should change ours"
    for field, value in NO_EFFECT[cls].items():
        assert read(make(cls, {field: value})) == ours, field
    np.testing.assert_array_equal(their_logits(make(cls, NO_EFFECT[cls])), base_logits)
    for field, changes in LIMITS[cls].items():
        limited, context = read(make(cls, changes))
        assert limited == ours[0] and LENGTH <= context < ours[1], field
        np.testing.assert_array_equal(their_logits(make(cls, changes)), base_logits, err_msg=field)


def configurations(cls) -> int:
    return max(len(values) for values in COMPUTED[cls].values())


def all_changed(cls, i: int) -> dict:
    changes = {field: values[i % len(values)] for field, values in COMPUTED[cls].items()}
    if changes.get("rope_parameters") == ROPE[2]:
        changes["max_position_embeddings"] = 8
    return changes


@pytest.mark.parametrize("cls, i", [(cls, i) for cls in [*MODELS, LlavaConfig] for i in range(configurations(cls))])
def test_logits_equal_transformers_with_all_fields_changed(tmp_path, cls, i):
    config = make(cls, all_changed(cls, i))
    if cls is LlavaConfig:
        config.vision_config = make(CLIPVisionConfig, all_changed(CLIPVisionConfig, i)).vision_config
    model = create(config)
    expected = their_logits(config, model)
    model.save_pretrained(tmp_path)
    ours = our_logits(tmp_path, config)
    assert np.abs(ours - expected).max() <= 1e-4 and np.abs(expected).max() > 0.5


@pytest.mark.parametrize("rope", [*ROPE, *MORE_ROPE], ids=str)
def test_rotation_equals_transformers(rope):
    config = make(LlamaConfig, dict(rope_parameters=dict(rope), head_dim=16))
    positions = np.array([[0, 1, 2, 50, 100]], np.int32)
    cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions))
    settings = json.loads(config.to_json_string(use_diff=False)) | dict(rope_parameters=rope)
    ours = rope_rotation(language_model(settings, "config.json"), positions)
    for a, b in zip(ours, (sine, cosine), strict=True):
        np.testing.assert_allclose(a[0, :, 0], b[0, :, :8], atol=2e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_refused_fields_are_named(cls):
    print(f"\n{cls.__name__}")
    for changes in REFUSED[cls]:
        settings = json.loads(make(cls, {}).to_json_string(use_diff=False))
        part = settings["vision_config"] if cls is CLIPVisionConfig else settings
        part |= changes
        with pytest.raises(DataError, match="here/config.json: ") as caught:
            language_model(settings, "here/config.json") if cls in MODELS else hf_llava(settings, "here/config.json")
        [key] = changes
        assert key in str(caught.value) or key == "vision_feature_layer" and "feature layer" in str(caught.value)
        print("  ", caught.value)
