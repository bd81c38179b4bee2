"""Projector files, LoRA folders and delta weights merged with their base, checked against the formulas."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from llava_jax.checkpoint.torch_tensors.dialects import find_dialect
from llava_jax.checkpoint.torch_tensors.overlays import read_lora_config, with_delta, with_extra, with_lora
from llava_jax.checkpoint.torch_tensors.safetensors_reader import TorchFiles
from llava_jax.errors import DataError

Q, V = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.self_attn.v_proj.weight"
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
PROJECTOR = "model.mm_projector.{}.{}"
ALL = slice(None)
LORA = dict(peft_type="LORA", r=2, lora_alpha=4, bias="none", target_modules=["q_proj", "v_proj"])


def integers(*shape, seed=0):
    """Returns integers so small that sums of products are exact in float32, in any order."""
    return np.random.default_rng([seed, *shape]).integers(-8, 8, shape).astype(np.float32)


def base_tensors():
    layers = {name.format(i): integers(6, 4, seed=i) for i in (0, 1) for name in (Q, V)}
    return layers | {EMBED: integers(5, 4), HEAD: integers(5, 4, seed=1), NORM: integers(4)}


def projector(*layers, prefix="model.mm_projector."):
    return {f"{prefix}{layer}{kind}": integers(*shape) for layer in layers for kind, shape in SHAPES.items()}


SHAPES = {"weight": (4, 3), "bias": (4,)}


def reader(folder, name, tensors, dtype=np.float32):
    save_file({key: value.astype(dtype) for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return TorchFiles(folder / f"{name}.safetensors")


def lora_tensors(rank=2, names=(Q, V), out=6, inside=4):
    tensors = {}
    for number, name in enumerate(n.format(i) for i in (0, 1) for n in names):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = integers(rank, inside, seed=10 + number)
        tensors[f"{module}.lora_B.weight"] = integers(out, rank, seed=20 + number)
    return tensors


def whole(reader, name):
    return reader.read(name, (ALL,) * len(reader.shape(name)))


def assert_same(left, right):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right)


# LoRA


@pytest.mark.parametrize(
    "changes, scale",
    [
        ({}, 4 / 2), ({"r": 1}, 4 / 1), ({"use_rslora": True}, 4 / 2**0.5), ({"r": "2", "lora_alpha": [4.0]}, 4 / 2),
        ({"use_rslora": "false", "use_dora": "false", "init_lora_weights": "true"}, 4 / 2), ({"bias": "none"}, 4 / 2),
    ],
)  # fmt: skip
def test_lora_adds_scale_times_b_times_a(tmp_path, changes, scale):
    config = LORA | changes
    tensors, adapter = base_tensors(), lora_tensors(int(config["r"]))
    merged = with_lora(reader(tmp_path, "base", tensors), reader(tmp_path, "adapter", adapter), config)
    for name in (Q.format(0), V.format(1)):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        b, a = adapter[f"{module}.lora_B.weight"], adapter[f"{module}.lora_A.weight"]
        assert_same(whole(merged, name), tensors[name] + np.float32(scale) * (b @ a))
        assert merged.shape(name) == (6, 4)


def test_untargeted_tensors_stay_bit_equal_to_the_base(tmp_path):
    tensors = {name: value.astype(np.float16) for name, value in base_tensors().items()}
    base = reader(tmp_path, "base", tensors, np.float16)
    adapter = reader(tmp_path, "adapter", lora_tensors(names=(Q,)))
    merged = with_lora(base, adapter, LORA | {"target_modules": ["q_proj"]})
    assert merged.names() == base.names()
    for name in (EMBED, HEAD, NORM, V.format(0)):
        assert_same(whole(merged, name), tensors[name])
    assert whole(merged, Q.format(0)).dtype == np.float32, "a sum stays float32 until the caller casts it"


PARTS = [(slice(1, 3), ALL), (ALL, slice(2, 4)), (slice(3, 4), slice(0, 1)), (ALL, ALL), (slice(2, 2), ALL)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_partial_read_equals_slice_of_merged_tensor(tmp_path, part, transposed):
    out, inside = (4, 6) if transposed else (6, 4)
    adapter = reader(tmp_path, "adapter", lora_tensors(out=out, inside=inside))
    base = reader(tmp_path, "base", base_tensors())
    merged = with_lora(base, adapter, LORA | {"fan_in_fan_out": transposed})
    assert_same(merged.read(Q.format(1), part), whole(merged, Q.format(1))[part])


def test_fan_in_fan_out_transposes_the_lora_update(tmp_path):
    adapter = lora_tensors(out=4, inside=6)
    merged = with_lora(
        reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", adapter), LORA | {"fan_in_fan_out": True}
    )
    module = f"base_model.model.{Q.format(0).removesuffix('.weight')}"
    b, a = adapter[f"{module}.lora_B.weight"], adapter[f"{module}.lora_A.weight"]
    assert_same(whole(merged, Q.format(0)), base_tensors()[Q.format(0)] + 2 * (b @ a).T)


def test_only_requested_rows_and_columns_are_read(tmp_path):
    class Spy(TorchFiles):
        def read(self, name, index):
            values = super().read(name, index)
            sizes.append(values.size)
            return values

    reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", lora_tensors())
    sizes = []
    merged = with_lora(Spy(tmp_path / "base.safetensors"), Spy(tmp_path / "adapter.safetensors"), LORA)
    assert not sizes
    merged.read(Q.format(0), (slice(1, 3), slice(0, 1)))
    assert sorted(sizes) == [2, 2, 4], "W: 2 x 1, A: rank x 1, B: 2 x rank"


def test_modules_to_save_replace_or_extend_the_base(tmp_path):
    saved = {f"base_model.model.{n}": v for n, v in ({HEAD: integers(7, 4)} | projector("0.")).items()}
    config = LORA | {"modules_to_save": ["lm_head", "mm_projector"]}
    base = reader(tmp_path, "base", base_tensors())
    merged = with_lora(base, reader(tmp_path, "adapter", lora_tensors() | saved), config)
    assert_same(whole(merged, HEAD), integers(7, 4))
    assert_same(whole(merged, PROJECTOR.format(0, "weight")), integers(4, 3))
    with pytest.raises(DataError, match="adapter.safetensors lacks lm_head, listed in modules_to_save"):
        with_lora(base, reader(tmp_path, "adapter", lora_tensors()), config)


def test_in_memory_names_match_names_in_files(tmp_path):
    """transformers >= 4.52: `model.language_model.layers` in memory is `language_model.model.layers` in files."""
    base = {f"language_model.{n}": v for n, v in base_tensors().items()}
    memory = {n.replace(".model.model.", ".model.model.language_model."): v for n, v in lora_tensors().items()}
    merged = with_lora(reader(tmp_path, "base", base), reader(tmp_path, "a", memory), LORA)
    plain = with_lora(reader(tmp_path, "b", base_tensors()), reader(tmp_path, "c", lora_tensors()), LORA)
    assert_same(whole(merged, f"language_model.{Q.format(1)}"), whole(plain, Q.format(1)))


A0 = f"base_model.model.{Q.format(0).removesuffix('.weight')}.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(A0), "lora_B.weight cannot be merged: its counterpart .* is missing"),
        (lambda t: t.update({A0: integers(2, 5)}), r"A \(2, 5\) and B \(6, 2\) of rank 2 do not fit model.layers.0"),
        (lambda t: t.update({A0: integers(3, 4)}), r"A \(3, 4\) and B \(6, 2\) of rank 2 do not fit"),
        (lambda t: t.update({f"base_model.model.{Q.format(0)}": integers(6, 4)}), "also has the full tensor model"),
        (lambda t: t.update({A0.replace("lora_A", "lora_magnitude_vector"): integers(6)}), "lora_magnitude_vector"),
        (lambda t: t.update({"base_model.model.model.mm_projector.lora_B.bias": integers(6)}), "lora_B.bias belongs"),
        (lambda t: t.update({f"base_model.model.{EMBED}": integers(3, 4)}), r"has shape \(3, 4\), the base"),
        (lambda t: t.update({A0.replace("q_", "x_").replace("_A", f"_{h}"): t[A0] for h in "AB"}), "no tensor .*x_p"),
        (lambda t: [t.pop(n) for n in list(t) if "layers.1.self_attn.v" in n], "has no LoRA for model.layers.1.*v_p"),
        (lambda t: [t.pop(n) for n in list(t)] + [t.update({EMBED: integers(5, 4)})], "holds no LoRA tensors"),
    ],
)  # fmt: skip
def test_unmatched_adapter_tensor_raises_naming_it(tmp_path, change, message):
    tensors = lora_tensors()
    change(tensors)
    with pytest.raises(DataError, match=message):
        with_lora(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", tensors), LORA)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "LOHA"}, "is 'LOHA' in adapter_config.json; only LORA"),
        ({"use_dora": True}, "not plain LoRA: use_dora=True"),
        ({"alpha_pattern": {"q_proj": 8}}, "not plain LoRA: alpha_pattern="),
        ({"bias": "lora_only"}, r"trained biases \(bias='lora_only'\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which also changes the base"),
        ({"r": None}, "adapter_config.json: r=None is not a number"),
        ({"lora_alpha": "NaN"}, "adapter_config.json: lora_alpha='NaN' is not a number"),
        ({"use_rslora": "maybe"}, "adapter_config.json: use_rslora='maybe' is not true or false"),
        ({"use_dora": "true"}, "not plain LoRA: use_dora='true'"),
        ({"r": 3}, "of rank 3 do not fit"),
    ],
)
def test_lora_variants_raise_naming_the_setting(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        with_lora(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", lora_tensors()), LORA | change)


def test_missing_or_broken_adapter_config_raises(tmp_path):
    file = tmp_path / "adapter_config.json"
    with pytest.raises(DataError, match="adapter_config.json does not exist"):
        read_lora_config(tmp_path)
    for text, message in (("{", "cannot be read"), ("[]", "holds no object")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_lora_config(tmp_path)
    file.write_text(json.dumps(LORA))
    assert read_lora_config(tmp_path) == LORA


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_equals_peft(tmp_path, rslora):
    peft = pytest.importorskip("peft", reason="pip install peft to compare with PEFT's own merge")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj", "down_proj"]
    # init_lora_weights=False initializes B randomly; the default zeros would test nothing
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=rslora, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    adapter = TorchFiles(tmp_path / "adapter")
    merged = with_lora(TorchFiles(tmp_path / "base"), adapter, read_lora_config(tmp_path / "adapter"))
    assert set(merged.names()) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(whole(merged, name), value.numpy(), rtol=1e-6, atol=1e-6)


# projector and non_lora_trainables


@pytest.mark.parametrize("places", [("",), ("0.", "2."), ("0.", "2.", "4.")])
@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_projector_turns_a_language_model_into_a_llava(tmp_path, prefix, places):
    extra = reader(tmp_path, "mm_projector", projector(*places, prefix=prefix))
    base = reader(tmp_path, "base", base_tensors())
    merged = with_extra(base, extra)
    assert find_dialect(base).name == "llm" and find_dialect(merged).name == "original"
    assert set(merged.names()) == set(base_tensors()) | set(projector(*places))
    for name, value in (base_tensors() | projector(*places)).items():
        assert_same(whole(merged, name), value)
        assert merged.shape(name) == value.shape and name in merged


def test_peft_prefixes_of_non_lora_trainables_are_removed(tmp_path):
    """As in the original: `base_model.` is removed, then one `model.` if any name has two."""
    extra = {
        "base_model.model.model.mm_projector.weight": integers(4, 3),
    }
    extra["base_model.model.lm_head.weight"] = integers(6, 4)  # grown by a token
    merged = with_extra(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "non_lora", extra))
    assert_same(whole(merged, HEAD), integers(6, 4))
    assert merged.shape(HEAD) == (6, 4) and "model.mm_projector.weight" in merged


def test_lora_is_merged_on_top_of_non_lora_trainables(tmp_path):
    base, extra = reader(tmp_path, "base", base_tensors()), reader(tmp_path, "non_lora", projector("0."))
    merged = with_lora(with_extra(base, extra), reader(tmp_path, "adapter", lora_tensors()), LORA)
    assert set(merged.names()) == set(base_tensors()) | set(projector("0."))
    assert not np.array_equal(whole(merged, Q.format(0)), base_tensors()[Q.format(0)])
    assert merged.path.name == "adapter.safetensors", "messages name the requested file"


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"model.image_newline": integers(4)}, "image_newline belongs neither to the base .*base.saf"),
        ({NORM: integers(5)}, r"model.norm.weight has shape \(5,\), the base .* has \(4,\)"),
        ({EMBED: integers(2, 4)}, r"embed_tokens.weight has shape \(2, 4\), the base .* has \(5, 4\)"),
        ({EMBED: integers(5, 8)}, r"embed_tokens.weight has shape \(5, 8\)"),
        (projector("0.") | projector("0.", prefix="mm_projector."), "duplicates model.mm_projector.0"),
    ],
)
def test_unmatched_extra_tensor_raises_naming_it(tmp_path, extra, message):
    with pytest.raises(DataError, match=message):
        with_extra(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "extra", extra))


# delta weights


def test_delta_restores_the_original_weights(tmp_path):
    """As make_delta: target - base, with added tokens' rows and the projector unchanged."""
    target = {n: v + 3 for n, v in base_tensors().items()}
    target |= {EMBED: integers(7, 4, seed=5), HEAD: integers(7, 4, seed=6)} | projector("")
    base, delta = base_tensors(), {n: v.copy() for n, v in target.items()}
    for name, value in base.items():
        delta[name][: len(value)] -= value
    base["model.layers.0.self_attn.rotary_emb.inv_freq"] = integers(3)  # only in old files
    delta["model.layers.1.self_attn.rotary_emb.inv_freq"] = integers(3)
    merged = with_delta(reader(tmp_path, "base", base), reader(tmp_path, "delta", delta, np.float16))
    for name, value in target.items():
        assert_same(whole(merged, name).astype(np.float32), value)
        assert merged.shape(name) == value.shape
    for part in [(slice(3, 6), ALL), (slice(5, 7), slice(1, 2)), (slice(0, 2), slice(0, 3)), (slice(6, 6), ALL)]:
        assert_same(merged.read(EMBED, part), target[EMBED][part])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_delta_is_rounded_as_by_the_original(tmp_path, dtype):
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((64, 64), dtype=np.float32).astype(dtype) for _ in range(2))
    right[::2] *= dtype(2**-9)
    base, delta = reader(tmp_path, "base", {NORM: left}, dtype), reader(tmp_path, "delta", {NORM: right}, dtype)
    assert_same(whole(with_delta(base, delta), NORM).astype(dtype), left + right)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(NORM), "delta.safetensors has no tensor model.norm.weight of the base"),
        (lambda t: t.update(new=integers(2)), "tensor new belongs neither to the base"),
        (lambda t: t.update({NORM: integers(6)}), r"model.norm.weight has shape \(6,\), the base .* has \(4,\)"),
        (lambda t: t.update({HEAD: integers(4, 4)}), r"lm_head.weight has shape \(4, 4\), the base"),
    ],
)  # fmt: skip
def test_delta_of_another_base_raises(tmp_path, change, message):
    delta = base_tensors()
    change(delta)
    with pytest.raises(DataError, match=message):
        with_delta(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "delta", delta))
