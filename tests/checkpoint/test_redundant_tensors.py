"""A tensor that config.json or its name makes redundant is compared with what replaces it, never just dropped."""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from llava_jax.checkpoint.external import open_external
from llava_jax.checkpoint.torch_tensors.overlays import with_delta
from llava_jax.checkpoint.torch_tensors.redundant import check_buffers, same_tensor
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.config.architectures import RopeScaling
from llava_jax.errors import DataError
from llava_jax.models.params import abstract_model
from llava_jax.models.rope import rope_frequencies
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava
from tests.fixtures.tiny_models import uneven

CONFIG = uneven(llm=dict(tied_head=True))
NAMES = {  # of the embedding and the head
    "llm": ("model.embed_tokens.weight", "lm_head.weight"),
    "hub": ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
}


def load_all(folder) -> tuple[dict, bool]:
    """Returns (all parameters of the folder, whether its head is tied)."""
    source = open_external(folder)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if source.modules == ("vision",):
        shapes = abstract_model(CONFIG)[0]
    else:
        shapes = abstract_model(source.model("float32"))[0]
    like = {
        path: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=one_device)
        for path, x in shapes.items()
        if path.split("/")[0] in source.modules
    }
    return source.load(like), source.llm is not None and source.llm.tied_head


def write(folder, dialect: str, **changes) -> None:
    """Saves a model with tied weights; changes: embedding or head -> a tensor, or None to remove it."""
    model = hf_llama(CONFIG.llm) if dialect == "llm" else hf_llava(CONFIG, 63)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    embedding, head = NAMES[dialect]
    table = tensors[embedding]
    assert head not in tensors
    for name, tensor in ((embedding, changes.get("embedding", table)), (head, changes.get("head"))):
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = table.clone() if tensor == "same" else tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


OTHER = torch.arange(64 * 40.0).reshape(64, 40) / 2560


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("case", ["only embedding", "equal head", "other head", "only head"])
def test_tied_flag_gives_the_weights_of_transformers(tmp_path, capsys, dialect, case):
    changes = {"equal head": dict(head="same"), "other head": dict(head=OTHER)}
    write(tmp_path, dialect, **(dict(embedding=None, head=OTHER) if case == "only head" else changes.get(case, {})))
    params, tied = load_all(tmp_path)
    cls = LlamaForCausalLM if dialect == "llm" else LlavaForConditionalGeneration
    theirs = cls.from_pretrained(tmp_path)
    embedding, head = theirs.get_input_embeddings().weight, theirs.get_output_embeddings().weight
    assert tied == (case != "other head") and ("llm/head/kernel" in params) == (not tied)
    np.testing.assert_array_equal(params["llm/embed/embedding"], embedding.detach())
    ours = params["llm/embed/embedding"] if tied else params["llm/head/kernel"].T
    np.testing.assert_array_equal(ours, head.detach())
    message = "config.json has tie_word_embeddings, but"
    assert (message in capsys.readouterr().err) == (not tied)


@pytest.mark.parametrize("row, column", [(0, 0), (63, 39), (17, 20)])
def test_one_different_value_anywhere_unties(tmp_path, monkeypatch, row, column):
    monkeypatch.setattr("llava_jax.checkpoint.torch_tensors.redundant.CHUNK", 7 * 40)
    other = OTHER.clone()
    other[row, column] += 1e-3
    save_file({"a": OTHER, "b": OTHER.clone(), "c": other, "d": OTHER[:63].clone()}, tmp_path / "model.safetensors")
    files = TorchFiles(tmp_path)
    assert same_tensor(files, "a", "b") and not same_tensor(files, "a", "c") and not same_tensor(files, "a", "d")


def test_head_that_differs_in_rows_is_named(tmp_path):
    write(tmp_path, "llm", head=OTHER[:60].clone())
    with pytest.raises(DataError, match=r"lm_head.weight has shape \(60, 40\), the config expects \(64, 40\)"):
        load_all(tmp_path)


FREQUENCIES = torch.tensor(rope_frequencies(CONFIG.llm))
INV_FREQ, POSITION_IDS = "model.layers.1.self_attn.rotary_emb.inv_freq", "vision_model.embeddings.position_ids"
SCALED = uneven(llm=dict(rope_scaling=RopeScaling("linear", 4.0))).llm


def files_with(folder, name: str, tensor: torch.Tensor) -> TorchFiles:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor, "model.norm.weight": torch.ones(40)}, folder / "model.safetensors")
    return TorchFiles(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_buffers_equal_to_what_we_compute_are_accepted(tmp_path, dtype):
    check_buffers(files_with(tmp_path, INV_FREQ, FREQUENCIES.to(dtype)), CONFIG.llm)
    for frequencies in (FREQUENCIES, FREQUENCIES / 4):
        check_buffers(files_with(tmp_path, INV_FREQ, frequencies.to(dtype)), SCALED)
    check_buffers(files_with(tmp_path, POSITION_IDS, torch.arange(10)[None]), None)


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        (INV_FREQ, FREQUENCIES**1.1, "inv_freq holds other rotary frequencies"),
        (INV_FREQ, FREQUENCIES / 4, "inv_freq holds other rotary frequencies"),
        (INV_FREQ, FREQUENCIES[:3], "inv_freq holds other rotary frequencies"),
        (POSITION_IDS, torch.tensor([[0, 2, 1]]), "position_ids does not count"),
        ("position_ids", torch.arange(1, 5), "position_ids does not count"),
    ],
    ids=str,
)
def test_other_buffers_are_refused(tmp_path, name, tensor, message):
    with pytest.raises(DataError, match=message):
        check_buffers(files_with(tmp_path, name, tensor.clone()), CONFIG.llm)


def test_load_compares_buffers(tmp_path):
    hf_llama(CONFIG.llm).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for scale in (1, 2):
        save_file(tensors | {INV_FREQ: FREQUENCIES * scale}, tmp_path / "model.safetensors")
        if scale == 1:
            load_all(tmp_path)
    with pytest.raises(DataError, match="other rotary frequencies than config.json gives; correct its rope_theta"):
        load_all(tmp_path)


def test_text_tower_is_left_out_of_a_clip_only(tmp_path):
    extra = {"text_model.embeddings.x": torch.ones(1), "logit_scale": torch.ones(())}
    clip = {f"vision_model.{name}": x for name, x in hf_clip(CONFIG.vision).state_dict().items()}
    hf_clip(CONFIG.vision).save_pretrained(tmp_path / "clip")
    save_file(clip | extra, tmp_path / "clip" / "model.safetensors")
    assert load_all(tmp_path / "clip")[0]
    hf_llama(CONFIG.llm).save_pretrained(tmp_path / "llm")
    save_file(load_file(tmp_path / "llm" / "model.safetensors") | extra, tmp_path / "llm" / "model.safetensors")
    with pytest.raises(DataError, match="unexpected logit_scale, text_model.embeddings.x"):
        load_all(tmp_path / "llm")


@pytest.mark.parametrize("delta, in_base", [(0, True), (0, False), (1, False), (1, True)])
def test_buffers_of_delta_weights_are_compared(tmp_path, delta, in_base):
    """Zero in a delta, as `make_delta` leaves them, or a value of its own; base and delta together give twice it."""
    buffer = {INV_FREQ: FREQUENCIES} if in_base else {}
    for folder, tensors in (("base", buffer), ("delta", {INV_FREQ: delta * FREQUENCIES})):
        (tmp_path / folder).mkdir()
        save_file(tensors | {"model.norm.weight": torch.ones(40)}, tmp_path / folder / "model.safetensors")
    files = with_delta(TorchFiles(tmp_path / "base"), TorchFiles(tmp_path / "delta"))
    if delta and in_base:
        with pytest.raises(DataError, match="other rotary frequencies"):
            check_buffers(files, CONFIG.llm)
    else:
        check_buffers(files, CONFIG.llm)
