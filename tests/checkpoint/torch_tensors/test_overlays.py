"""adapters.py: projector files, LoRA folders and delta weights over their base, against the formulas they come from."""

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


def numbers(*shape, seed=0):
    """Small enough that every sum of products is exact in float32, in any order."""
    return np.random.default_rng([seed, *shape]).integers(-8, 8, shape).astype(np.float32)


def base_tensors():
    layers = {name.format(i): numbers(6, 4, seed=i) for i in (0, 1) for name in (Q, V)}
    return layers | {EMBED: numbers(5, 4), HEAD: numbers(5, 4, seed=1), NORM: numbers(4)}


def projector(*places, prefix="model.mm_projector."):
    return {f"{prefix}{place}{kind}": numbers(*shape) for place in places for kind, shape in SHAPES.items()}


SHAPES = {"weight": (4, 3), "bias": (4,)}


def reader(folder, name, tensors, dtype=np.float32):
    save_file({key: value.astype(dtype) for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return TorchFiles(folder / f"{name}.safetensors")


def lora_tensors(rank=2, names=(Q, V), out=6, inside=4):
    found = {}
    for number, name in enumerate(n.format(i) for i in (0, 1) for n in names):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        found[f"{module}.lora_A.weight"] = numbers(rank, inside, seed=10 + number)
        found[f"{module}.lora_B.weight"] = numbers(out, rank, seed=20 + number)
    return found


def whole(reader, name):
    return reader.read(name, (ALL,) * len(reader.shape(name)))


def same(left, right):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right)


# LoRA


@pytest.mark.parametrize("changes, scale", [({}, 4 / 2), ({"r": 1}, 4 / 1), ({"use_rslora": True}, 4 / 2**0.5)])
def test_lora_adds_scale_times_b_times_a(tmp_path, changes, scale):
    config = LORA | changes
    tensors, adapter = base_tensors(), lora_tensors(config["r"])
    joined = with_lora(reader(tmp_path, "base", tensors), reader(tmp_path, "adapter", adapter), config)
    for name in (Q.format(0), V.format(1)):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        b, a = adapter[f"{module}.lora_B.weight"], adapter[f"{module}.lora_A.weight"]
        same(whole(joined, name), tensors[name] + np.float32(scale) * (b @ a))
        assert joined.shape(name) == (6, 4)


def test_what_no_adapter_targets_is_the_base_bit_by_bit(tmp_path):
    tensors = {name: value.astype(np.float16) for name, value in base_tensors().items()}
    base = reader(tmp_path, "base", tensors, np.float16)
    adapter = reader(tmp_path, "adapter", lora_tensors(names=(Q,)))
    joined = with_lora(base, adapter, LORA | {"target_modules": ["q_proj"]})
    assert joined.names() == base.names()
    for name in (EMBED, HEAD, NORM, V.format(0)):
        same(whole(joined, name), tensors[name])
    assert whole(joined, Q.format(0)).dtype == np.float32, "a sum is not rounded before its reader casts it"


PARTS = [(slice(1, 3), ALL), (ALL, slice(2, 4)), (slice(3, 4), slice(0, 1)), (ALL, ALL), (slice(2, 2), ALL)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_is_that_part_of_the_whole(tmp_path, part, transposed):
    out, inside = (4, 6) if transposed else (6, 4)
    adapter = reader(tmp_path, "adapter", lora_tensors(out=out, inside=inside))
    base = reader(tmp_path, "base", base_tensors())
    joined = with_lora(base, adapter, LORA | {"fan_in_fan_out": transposed})
    same(joined.read(Q.format(1), part), whole(joined, Q.format(1))[part])


def test_weights_stored_the_other_way_round_get_the_change_the_other_way_round(tmp_path):
    adapter = lora_tensors(out=4, inside=6)
    joined = with_lora(
        reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", adapter), LORA | {"fan_in_fan_out": True}
    )
    module = f"base_model.model.{Q.format(0).removesuffix('.weight')}"
    b, a = adapter[f"{module}.lora_B.weight"], adapter[f"{module}.lora_A.weight"]
    same(whole(joined, Q.format(0)), base_tensors()[Q.format(0)] + 2 * (b @ a).T)


def test_only_the_rows_and_columns_asked_for_are_read(tmp_path):
    class Spy(TorchFiles):
        def read(self, name, index):
            found = super().read(name, index)
            sizes.append(found.size)
            return found

    reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", lora_tensors())
    sizes = []
    joined = with_lora(Spy(tmp_path / "base.safetensors"), Spy(tmp_path / "adapter.safetensors"), LORA)
    assert not sizes
    joined.read(Q.format(0), (slice(1, 3), slice(0, 1)))
    assert sorted(sizes) == [2, 2, 4], "of W 2 x 1, of A rank x 1, of B 2 x rank"


def test_modules_to_save_replace_the_base_or_come_along(tmp_path):
    saved = {f"base_model.model.{n}": v for n, v in ({HEAD: numbers(7, 4)} | projector("0.")).items()}
    config = LORA | {"modules_to_save": ["lm_head", "mm_projector"]}
    base = reader(tmp_path, "base", base_tensors())
    joined = with_lora(base, reader(tmp_path, "adapter", lora_tensors() | saved), config)
    same(whole(joined, HEAD), numbers(7, 4))
    same(whole(joined, PROJECTOR.format(0, "weight")), numbers(4, 3))
    with pytest.raises(DataError, match="adapter.safetensors lacks lm_head, one of .*modules_to_save"):
        with_lora(base, reader(tmp_path, "adapter", lora_tensors()), config)


def test_names_in_memory_find_the_names_in_the_files(tmp_path):
    """transformers >= 4.52 trains `model.language_model.layers`, which its files call `language_model.model.layers`."""
    base = {f"language_model.{n}": v for n, v in base_tensors().items()}
    memory = {n.replace(".model.model.", ".model.model.language_model."): v for n, v in lora_tensors().items()}
    joined = with_lora(reader(tmp_path, "base", base), reader(tmp_path, "a", memory), LORA)
    plain = with_lora(reader(tmp_path, "b", base_tensors()), reader(tmp_path, "c", lora_tensors()), LORA)
    same(whole(joined, f"language_model.{Q.format(1)}"), whole(plain, Q.format(1)))


A0 = f"base_model.model.{Q.format(0).removesuffix('.weight')}.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(A0), "lora_B.weight cannot be merged: its other half is missing"),
        (lambda t: t.update({A0: numbers(2, 5)}), r"A \(2, 5\) and B \(6, 2\) of rank 2 do not fit model.layers.0"),
        (lambda t: t.update({A0: numbers(3, 4)}), r"A \(3, 4\) and B \(6, 2\) of rank 2 do not fit"),
        (lambda t: t.update({f"base_model.model.{Q.format(0)}": numbers(6, 4)}), "file has model.* a second time"),
        (lambda t: t.update({A0.replace("lora_A", "lora_magnitude_vector"): numbers(6)}), "lora_magnitude_vector"),
        (lambda t: t.update({"base_model.model.model.mm_projector.lora_B.bias": numbers(6)}), "lora_B.bias belongs"),
        (lambda t: t.update({f"base_model.model.{EMBED}": numbers(3, 4)}), r"has shape \(3, 4\), the base"),
        (lambda t: t.update({A0.replace("q_", "x_").replace("_A", f"_{h}"): t[A0] for h in "AB"}), "no tensor .*x_p"),
        (lambda t: [t.pop(n) for n in list(t) if "layers.1.self_attn.v" in n], "lacks a change of model.layers.1.*v_p"),
        (lambda t: [t.pop(n) for n in list(t)] + [t.update({EMBED: numbers(5, 4)})], "holds no LoRA tensors"),
    ],
)  # fmt: skip
def test_every_tensor_of_an_adapter_has_its_place_or_is_named(tmp_path, change, message):
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
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which changes the base"),
        ({"r": None}, "r=None and lora_alpha=4"),
        ({"r": 3}, "of rank 3 do not fit"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        with_lora(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "adapter", lora_tensors()), LORA | change)


def test_the_config_is_read_or_named(tmp_path):
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
def test_peft_merges_to_the_same(tmp_path, rslora):
    peft = pytest.importorskip("peft", reason="pip install peft compares with PEFT's own merge")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj", "down_proj"]
    # init_lora_weights=False: random B; the zeros that it begins with otherwise would test nothing
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=rslora, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    adapter = TorchFiles(tmp_path / "adapter")
    joined = with_lora(TorchFiles(tmp_path / "base"), adapter, read_lora_config(tmp_path / "adapter"))
    assert set(joined.names()) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(whole(joined, name), value.numpy(), rtol=1e-6, atol=1e-6)


# projector and non_lora_trainables


@pytest.mark.parametrize("places", [("",), ("0.", "2."), ("0.", "2.", "4.")])
@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_a_projector_makes_a_language_model_a_llava(tmp_path, prefix, places):
    extra = reader(tmp_path, "mm_projector", projector(*places, prefix=prefix))
    base = reader(tmp_path, "base", base_tensors())
    joined = with_extra(base, extra)
    assert find_dialect(base).name == "llm" and find_dialect(joined).name == "original"
    assert set(joined.names()) == set(base_tensors()) | set(projector(*places))
    for name, value in (base_tensors() | projector(*places)).items():
        same(whole(joined, name), value)
        assert joined.shape(name) == value.shape and name in joined


def test_non_lora_trainables_lose_the_prefixes_that_peft_gave_them(tmp_path):
    """As the original: `base_model.`, then one `model.` if any name has two."""
    extra = {
        "base_model.model.model.mm_projector.weight": numbers(4, 3),
    }
    extra["base_model.model.lm_head.weight"] = numbers(6, 4)  # grown by a word
    joined = with_extra(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "non_lora", extra))
    same(whole(joined, HEAD), numbers(6, 4))
    assert joined.shape(HEAD) == (6, 4) and "model.mm_projector.weight" in joined


def test_lora_goes_on_top_of_what_was_trained_beside_it(tmp_path):
    base, extra = reader(tmp_path, "base", base_tensors()), reader(tmp_path, "non_lora", projector("0."))
    joined = with_lora(with_extra(base, extra), reader(tmp_path, "adapter", lora_tensors()), LORA)
    assert set(joined.names()) == set(base_tensors()) | set(projector("0."))
    assert not np.array_equal(whole(joined, Q.format(0)), base_tensors()[Q.format(0)])
    assert joined.path.name == "adapter.safetensors", "messages name what was asked for"


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"model.image_newline": numbers(4)}, "image_newline belongs neither to the base .*base.saf"),
        ({NORM: numbers(5)}, r"model.norm.weight has shape \(5,\), the base .* has \(4,\)"),
        ({EMBED: numbers(2, 4)}, r"embed_tokens.weight has shape \(2, 4\), the base .* has \(5, 4\)"),
        ({EMBED: numbers(5, 8)}, r"embed_tokens.weight has shape \(5, 8\)"),
        (projector("0.") | projector("0.", prefix="mm_projector."), "is there twice, as model.mm_projector.0"),
    ],
)
def test_a_tensor_without_a_place_is_named(tmp_path, extra, message):
    with pytest.raises(DataError, match=message):
        with_extra(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "extra", extra))


# delta weights


def test_a_delta_gives_back_what_it_was_made_from(tmp_path):
    """make_delta's rule: target - base, the added words' rows and the projector as they are."""
    target = {n: v + 3 for n, v in base_tensors().items()}
    target |= {EMBED: numbers(7, 4, seed=5), HEAD: numbers(7, 4, seed=6)} | projector("")
    base, delta = base_tensors(), {n: v.copy() for n, v in target.items()}
    for name, value in base.items():
        delta[name][: len(value)] -= value
    base["model.layers.0.self_attn.rotary_emb.inv_freq"] = numbers(3)  # only old files have it
    delta["model.layers.1.self_attn.rotary_emb.inv_freq"] = numbers(3)
    joined = with_delta(reader(tmp_path, "base", base), reader(tmp_path, "delta", delta, np.float16))
    for name, value in target.items():
        same(whole(joined, name).astype(np.float32), value)
        assert joined.shape(name) == value.shape
    for part in [(slice(3, 6), ALL), (slice(5, 7), slice(1, 2)), (slice(0, 2), slice(0, 3)), (slice(6, 6), ALL)]:
        same(joined.read(EMBED, part), target[EMBED][part])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_sum_of_halves_is_rounded_as_the_original_rounds_it(tmp_path, dtype):
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((64, 64), dtype=np.float32).astype(dtype) for _ in range(2))
    right[::2] *= dtype(2**-9)
    base, delta = reader(tmp_path, "base", {NORM: left}, dtype), reader(tmp_path, "delta", {NORM: right}, dtype)
    same(whole(with_delta(base, delta), NORM).astype(dtype), left + right)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(NORM), "delta.safetensors has no tensor model.norm.weight of the base"),
        (lambda t: t.update(new=numbers(2)), "tensor new belongs neither to the base"),
        (lambda t: t.update({NORM: numbers(6)}), r"model.norm.weight has shape \(6,\), the base .* has \(4,\)"),
        (lambda t: t.update({HEAD: numbers(4, 4)}), r"lm_head.weight has shape \(4, 4\), the base"),
    ],
)  # fmt: skip
def test_a_delta_of_another_base_is_refused(tmp_path, change, message):
    delta = base_tensors()
    change(delta)
    with pytest.raises(DataError, match=message):
        with_delta(reader(tmp_path, "base", base_tensors()), reader(tmp_path, "delta", delta))
