"""hf_export.py: transformers loads what we write, says nothing, and computes the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_weights import small
from safetensors.numpy import load_file
from transformers import LlavaForConditionalGeneration

from llava_jax.architectures import IMAGE_TOKEN_ID, ModelConfig, RopeScaling
from llava_jax.checkpoint.dialects import check, find_dialect, load, torch_rows
from llava_jax.checkpoint.hf_export import save_hf
from llava_jax.checkpoint.torch_files import INDEX, TorchFiles
from llava_jax.errors import DataError
from llava_jax.models.llava import Llava
from llava_jax.train.state import abstract_model, nested

IMAGE = 63


def random_params(config: ModelConfig) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes, _ = abstract_model(config)
    return {p: jnp.asarray(0.2 * rng.standard_normal(x.shape, dtype=np.float32)) for p, x in shapes.items()}


def ask_both(config, params, folder):
    """Logits of one prompt with an image: ours, theirs."""
    theirs, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    rng = np.random.default_rng(1)
    n = config.vision.features
    tokens = np.concatenate([[1, 5], [IMAGE] * n, rng.integers(3, 60, 6)])[None].astype(np.int32)
    pixels = rng.standard_normal((1, 1, 24, 24, 3), dtype=np.float32)
    with torch.no_grad():
        wanted = theirs.eval()(
            input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels[:, 0]).permute(0, 3, 1, 2)
        ).logits.numpy()
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    ours = Llava(config).apply(
        {"params": nested(params)}, np.where(tokens == IMAGE, IMAGE_TOKEN_ID, tokens), pixels, positions,
        np.ones_like(positions),
    )  # fmt: skip
    return np.asarray(ours), wanted


@pytest.mark.parametrize(
    "config",
    [
        small(), small(projector="linear"), small(llm=dict(tied_head=True, kv_heads=4)), small(llm=dict(qkv_bias=True)),
        small(llm=dict(head_size=16), vision=dict(select_layer=-1, select_feature="cls_patch")),
        small(llm=dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_positions=32))),
    ],
    ids=["mlp", "linear", "tied", "qwen2", "head size, whole tower", "llama3 rope"],
)  # fmt: skip
def test_transformers_computes_the_same(tmp_path, config):
    params = random_params(config)
    save_hf(tmp_path / "out", params, config, IMAGE, "float32")
    ours, theirs = ask_both(config, params, tmp_path / "out")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


def test_a_linear_projector_s_second_layer_changes_no_bit(tmp_path):
    config = small(projector="linear")
    save_hf(tmp_path / "out", random_params(config), config, IMAGE, "bfloat16")
    second = load_file(tmp_path / "out" / "model.safetensors")["multi_modal_projector.linear_2.weight"]
    x = np.random.default_rng(0).standard_normal((5, config.llm.width)).astype(second.dtype)
    np.testing.assert_array_equal(x @ second.T, x)


@pytest.mark.parametrize("limit", [10**9, 60_000])
def test_files_come_back_tensor_by_tensor(tmp_path, limit):
    config = small()
    params = random_params(config)
    save_hf(tmp_path / "out", params, config, IMAGE, "float32", shard_bytes=limit)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    total = sum(4 * x.size for x in params.values())
    assert len(shards) == 1 if limit > total else len(shards) >= total / limit
    assert (tmp_path / "out" / INDEX).exists() == (len(shards) > 1)
    if limit < total:
        assert all(f.stat().st_size < limit + 20_000 for f in shards)
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert index["metadata"]["total_size"] == total
    found = TorchFiles(tmp_path / "out")
    rows = torch_rows(find_dialect(found), found, depth=2)
    check(found, rows, {p: x.shape for p, x in params.items()}, tied=False)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for p, x in params.items()}
    for path, value in load(found, rows, like).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_a_failed_export_leaves_no_folder(tmp_path, monkeypatch):
    config = small()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava_jax.checkpoint.hf_export.save_file", full)
    with pytest.raises(DataError, match=f"{tmp_path}/out cannot be written.*No space left"):
        save_hf(tmp_path / "out", random_params(config), config, IMAGE, "float32")
    assert not (tmp_path / "out").exists()


def test_an_old_folder_is_not_touched_and_a_model_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        save_hf(tmp_path / "out", {}, small(), IMAGE, "float32")
    deep = dataclasses.replace(small(), projector="mlp3x_gelu")
    with pytest.raises(DataError, match="mlp3x_gelu cannot be written"):
        save_hf(tmp_path / "new", {}, deep, IMAGE, "float32")
    assert not (tmp_path / "new").exists()
