"""transformers loads exported folders without warnings and computes the same logits."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.checkpoint.torch_tensors.dialects import check_tensors, find_dialect, load_parameters, torch_mappings
from llava_jax.checkpoint.torch_tensors.safetensors_reader import INDEX, TorchFiles
from llava_jax.config.architectures import IMAGE_TOKEN_ID, ModelConfig, RopeScaling
from llava_jax.errors import DataError
from llava_jax.images.preprocess import preprocess
from llava_jax.models.clip import normalize
from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.text.encode import expand_images, tokenize_prompt
from llava_jax.text.tokenizer import load_tokenizer
from tests.fixtures.tiny_models import random_params, uneven

TOKENIZER = open_tokenizer("tiny")  # 500 tokens
IMAGE = TOKENIZER.vocab_size


def tiny_config(vision=(), llm=(), **changes) -> ModelConfig:
    """An uneven config with room for the tokenizer's tokens and <image>."""
    return uneven(vision, dict(vocab_size=512) | dict(llm), **changes)


def both_logits(config, params, folder):
    """Returns (our logits, transformers' logits) for a prompt with an image."""
    theirs, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    rng = np.random.default_rng(1)
    n = config.vision.features
    tokens = np.concatenate([[1, 5], [IMAGE] * n, rng.integers(3, 60, 6)])[None].astype(np.int32)
    pixels = rng.standard_normal((1, 1, 24, 24, 3), dtype=np.float32)
    with torch.no_grad():
        expected = theirs.eval()(
            input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels[:, 0]).permute(0, 3, 1, 2)
        ).logits.numpy()
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    ours = Llava(config).apply(
        {"params": nested(params)}, np.where(tokens == IMAGE, IMAGE_TOKEN_ID, tokens), pixels, positions,
        np.ones_like(positions),
    )  # fmt: skip
    return np.asarray(ours), expected


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(), tiny_config(projector="linear"), tiny_config(llm=dict(qkv_bias=True)),
        tiny_config(llm=dict(tied_head=True, kv_heads=4)),
        tiny_config(llm=dict(head_size=16), vision=dict(select_layer=-1, select_feature="cls_patch")),
        tiny_config(llm=dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32))),
    ],
    ids=["mlp", "linear", "qwen2", "tied", "head size, whole tower", "llama3 rope"],
)  # fmt: skip
def test_logits_equal_transformers_after_export(tmp_path, config):
    params = random_params(config)
    save_hf(tmp_path / "out", params, config, TOKENIZER, "float32", IMAGE)
    ours, theirs = both_logits(config, params, tmp_path / "out")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


def test_identity_layer_of_linear_projector_is_exact(tmp_path):
    config = tiny_config(projector="linear")
    save_hf(tmp_path / "out", random_params(config), config, TOKENIZER, "bfloat16", IMAGE)
    second = load_file(tmp_path / "out" / "model.safetensors")["multi_modal_projector.linear_2.weight"]
    x = np.random.default_rng(0).standard_normal((5, config.llm.width)).astype(second.dtype)
    np.testing.assert_array_equal(x @ second.T, x)


@pytest.mark.parametrize("limit", [10**9, 100_000])
def test_exported_shards_read_back_bit_equal(tmp_path, limit):
    config = tiny_config()
    params = random_params(config)
    save_hf(tmp_path / "out", params, config, TOKENIZER, "float32", IMAGE, shard_bytes=limit)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    total = sum(4 * x.size for x in params.values())
    assert len(shards) == 1 if limit > total else len(shards) >= total / limit
    assert (tmp_path / "out" / INDEX).exists() == (len(shards) > 1)
    if limit < total:
        assert all(f.stat().st_size < limit + 20_000 for f in shards)
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert index["metadata"]["total_size"] == total
    files = TorchFiles(tmp_path / "out")
    mappings = torch_mappings(find_dialect(files), files, depth=2)
    check_tensors(files, mappings, {p: x.shape for p, x in params.items()}, tied=False)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for p, x in params.items()}
    for path, value in load_parameters(files, mappings, like).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_failed_export_leaves_no_folder(tmp_path, monkeypatch):
    config = tiny_config()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava_jax.checkpoint.torch_tensors.safetensors_writer._write_file", full)
    with pytest.raises(DataError, match=f"{tmp_path}/out cannot be written.*No space left"):
        save_hf(tmp_path / "out", random_params(config), config, TOKENIZER, "float32", IMAGE)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_and_unsupported_projector_raise(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        save_hf(tmp_path / "out", {}, tiny_config(), TOKENIZER, "float32")
    deep = dataclasses.replace(tiny_config(), projector="mlp3x_gelu")
    with pytest.raises(DataError, match="mlp3x_gelu cannot be written"):
        save_hf(tmp_path / "new", {}, deep, TOKENIZER, "float32")
    assert not (tmp_path / "new").exists()


# --- the processor


def folder_with(tmp_path, config, **options):
    save_hf(tmp_path / "out", random_params(config), config, TOKENIZER, "float32", **options)
    return tmp_path / "out"


TURNS = (
    ("human", "<image>\nwhat color is the cross ?"),
    ("gpt", "red"),
    ("human", "where is it ?"),
    ("gpt", "top left"),
)


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v1", "llama_2", "llava_v0"])
def test_auto_processor_produces_our_token_ids(tmp_path, template):
    config = tiny_config()
    processor = AutoProcessor.from_pretrained(folder_with(tmp_path, config, template=template))
    turns = TURNS[:3]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[role], "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": "what color is the cross ?"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    picture = Image.new("RGB", (40, 24), (200, 30, 30))
    processed = processor(text=text, images=[picture], return_tensors="np")
    ids = tokenize_prompt(TOKENIZER, template, turns, 1)
    ids, _ = expand_images(ids, np.zeros(len(ids), bool), config.vision.features)
    assert processor.image_token_id == IMAGE
    if template in ("vicuna_v1", "llava_v1", "llava_v0"):  # llama_2 has a special token between rounds
        assert np.where(np.asarray(ids) == IMAGE_TOKEN_ID, IMAGE, ids).tolist() == processed["input_ids"][0].tolist()
    else:
        assert TOKENIZER.decode([i for i in processed["input_ids"][0] if i != IMAGE]) == TOKENIZER.decode(ids)


@pytest.mark.parametrize("aspect", ["crop", "pad"])
@pytest.mark.parametrize("size", [(40, 24), (24, 57), (24, 24), (9, 7)])
def test_auto_processor_produces_our_pixels(tmp_path, aspect, size):
    processor = AutoProcessor.from_pretrained(folder_with(tmp_path, tiny_config(), aspect=aspect))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(noise)
    theirs = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
    ours = np.asarray(normalize(preprocess(picture, 24, aspect))).transpose(2, 0, 1)
    assert theirs.shape == ours.shape
    # pad: rounding by one of 255 grey levels, divided by the smallest STD
    assert np.abs(theirs - ours).max() <= (1e-4 if aspect == "crop" else 1.01 / 255 / 0.26)


def test_added_vocabulary_rows_keep_logits_and_never_win(tmp_path):
    config = uneven(llm=dict(vocab_size=500))
    params = random_params(config)
    save_hf(tmp_path / "out", params, config, TOKENIZER, "float32")
    config_json = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config_json["text_config"]["vocab_size"], config_json["image_token_index"]) == (512, 500)
    ours, theirs = both_logits(config, params, tmp_path / "out")
    np.testing.assert_allclose(ours, theirs[..., :500], atol=1e-4)
    np.testing.assert_allclose(theirs[..., 500:], np.repeat(ours.mean(-1, keepdims=True), 12, -1), atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


def test_wrong_image_token_and_plain_template_raise(tmp_path):
    with pytest.raises(DataError, match="the tokenizer has ' ?.+' where <image> should be"):
        folder_with(tmp_path, tiny_config(), image_token_id=300)
    with pytest.raises(DataError, match="'plain' is not for chats"):
        folder_with(tmp_path, tiny_config(), template="plain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["Prepend", "Metaspace"])
def test_exported_llama_tokenizer_keeps_its_dummy_prefix(tmp_path, real_data, form):
    tokenizer = load_tokenizer(real_data / "tokenizers" / "llama2.model")
    config = uneven(llm=dict(vocab_size=32_000))
    save_hf(tmp_path / "out", random_params(config), config, tokenizer, "bfloat16")
    if form == "Metaspace":  # the equivalent form in later conversions
        file = tmp_path / "out" / "tokenizer.json"
        spec = json.loads(file.read_text())
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
        spec |= {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace}
        file.write_text(json.dumps(spec))
        tokenizer = load_tokenizer(tmp_path / "out")
        save_hf(tmp_path / "again", random_params(config), config, tokenizer, "bfloat16")
    processor = AutoProcessor.from_pretrained(tmp_path / ("out" if form == "Prepend" else "again"))
    turns = [("human", "<image>\nIs it a bus?"), ("gpt", "Yes, a red one."), ("human", "<s> Where is it?")]
    messages = [{"role": {"human": "user", "gpt": "assistant"}[role], "content": text} for role, text in turns]
    # <s> is typed by a user, but transformers reads it as a special token
    text = processor.apply_chat_template(messages).replace("<s>", "[s]")
    their_ids = processor(text=text, images=[Image.new("RGB", (40, 24))], return_tensors="np")["input_ids"][0]
    turns[-1] = ("human", "[s] Where is it?")
    ids = tokenize_prompt(tokenizer, "vicuna_v1", turns, 1)
    ids, _ = expand_images(ids, np.zeros(len(ids), bool), config.vision.features)
    assert tokenizer.legacy and processor.image_token_id == 32_000
    assert np.where(np.asarray(ids) == IMAGE_TOKEN_ID, 32_000, ids).tolist() == their_ids.tolist()
    assert processor.tokenizer.decode(tokenizer.encode("A bus", dummy_prefix=True)) == "A bus"
