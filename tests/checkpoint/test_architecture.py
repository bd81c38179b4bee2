"""The architecture of a run: the files in `load.*` against the names in `model`, and `folder`."""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from llava_jax.checkpoint.architecture import FROM_FILES, planned_model, resolve_model, run_model
from llava_jax.checkpoint.architecture_json import architecture_from_json, architecture_to_json
from llava_jax.checkpoint.module_file import save_module
from llava_jax.config import Config, Data, Model, Stage, Weights, architectures
from llava_jax.config.architectures import LlamaConfig, ModelConfig, RopeScaling, VisionConfig
from llava_jax.config.validate import check_config
from llava_jax.errors import ConfigError, DataError
from tests.checkpoint.gguf_files import gguf_files
from tests.fixtures.hf_models import hf_clip, hf_llama, hf_llava
from tests.fixtures.tiny_models import EVEN, LLM, VISION, changed

IMAGE = 500


@pytest.fixture(autouse=True)
def named_here(monkeypatch):
    """The architecture `here` is that of the fixtures' files."""
    monkeypatch.setitem(architectures.VISION, "here", VISION)
    monkeypatch.setitem(architectures.LLM, "here", LLM)


def config(load: dict, length: int = 32, **model) -> Config:
    names = dict(
        vision="here", llm="here", projector="mlp2x_gelu", dtype="float32", feature_dtype="float32", remat="none"
    )
    stages = {"one": Stage(data=Data(length=length))}
    weights = Weights(**{module: str(path) for module, path in load.items()})
    return Config(model=Model(**names | model), load=weights, run=("one",), stages=stages)


def refusal(run: Config) -> str:
    with pytest.raises(ConfigError) as fault:
        resolve_model(run)
    return str(fault.value)


def edit(file: Path, **values) -> None:
    """Changes keys of a JSON file; `vision_config__hidden_act` is a key of a group."""
    content = json.loads(file.read_text())
    for path, value in values.items():
        *groups, key = path.split("__")
        group = content
        for name in groups:
            group = group[name]
        group[key] = value
    file.write_text(json.dumps(content))


def other(value):
    """Another value of the type of a field."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 2
        case str():
            return "gelu"
        case RopeScaling():
            return dataclasses.replace(value, factor=other(value.factor))
        case None:
            return RopeScaling("linear", 4.0)
    raise NotImplementedError(value)


FIELDS = [("vision", f.name) for f in dataclasses.fields(VisionConfig)]
FIELDS += [("llm", f.name) for f in dataclasses.fields(LlamaConfig)]


@pytest.mark.parametrize("module, field", FIELDS)
def test_every_field_of_the_files_is_compared(tmp_path, module, field):
    stored = changed(**{module: {field: other(getattr(getattr(EVEN, module), field))}})
    file = save_module(str(tmp_path / "w.safetensors"), module, {}, "float32", stored)
    run = config({module: file})
    if field in FROM_FILES:
        assert getattr(getattr(resolve_model(run), module), field) == getattr(getattr(stored, module), field)
        return
    message = refusal(run)
    expected, value = (getattr(getattr(model, module), field) for model in (EVEN, stored))
    assert f"{field} " in message and str(file) in message
    if field in ("select_layer", "select_feature"):
        assert f"--config.model.{field}={value}" in message
        return
    shown = "factor 4.0" if field == "rope_scaling" else str(value)
    assert shown in message and f"not {expected}" in message and f"--config.model.{module}=folder" in message


@pytest.mark.parametrize("module, field", FIELDS)
def test_folder_has_every_field_of_the_files(tmp_path, module, field):
    stored = changed(**{module: {field: other(getattr(getattr(EVEN, module), field))}})
    file = save_module(str(tmp_path / "w.safetensors"), module, {}, "float32", stored)
    selection = {key: getattr(stored.vision, key) for key in ("select_layer", "select_feature")}
    model = resolve_model(config({module: file}, **{module: "folder"}, **selection))
    assert getattr(model, module) == getattr(stored, module)


def folders(tmp_path: Path) -> dict[str, Path]:
    """A CLIP, a language model and a whole LLaVA, written by transformers."""
    for name, model in (("clip", hf_clip(VISION)), ("llm", hf_llama(LLM)), ("llava", hf_llava(EVEN, IMAGE))):
        model.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("clip", "llm", "llava")}


ROPE = {"rope_type": "default", "rope_theta": 5e5}
CHANGES = [  # folder, module, changed keys of its config.json, what the message must contain
    ("llm", "llm", dict(rope_parameters=ROPE), "rope_base is 500000.0, not 10000.0"),
    ("llm", "llm", dict(rms_norm_eps=1e-6), "norm_eps is 1e-06, not 1e-05"),
    ("llm", "llm", dict(num_attention_heads=8, head_dim=4), "heads is 8, not 4; head_size is 4, not 8"),
    ("llm", "llm", dict(model_type="qwen2", head_dim=None), "qkv_bias is True, not False"),
    ("clip", "vision", dict(hidden_act="gelu"), "activation is gelu, not quick_gelu"),
    ("clip", "vision", dict(layer_norm_eps=1e-6), "norm_eps is 1e-06, not 1e-05"),
    ("clip", "vision", dict(num_attention_heads=8), "heads is 8, not 4"),
    ("llava", "vision", dict(vision_config__hidden_act="gelu"), "activation is gelu, not quick_gelu"),
    ("llava", "vision", dict(vision_feature_layer=-1), "with select_layer -1, model.select_layer is -2"),
    ("llava", "projector", dict(vision_feature_layer=-1), "--config.model.select_layer=-1"),
    ("llava", "projector", dict(vision_feature_select_strategy="full"), "--config.model.select_feature=cls_patch"),
    ("llava", "llm", dict(text_config__rms_norm_eps=1e-6), "norm_eps is 1e-06, not 1e-05"),
]


def test_changed_config_of_a_folder_is_refused_by_name(tmp_path):
    paths = folders(tmp_path)
    assert resolve_model(config({"vision": paths["clip"], "llm": paths["llm"]})) == EVEN
    assert resolve_model(config(dict.fromkeys(("vision", "projector", "llm"), paths["llava"]))) == EVEN
    for name, module, changes, message in CHANGES:
        file = paths[name] / "config.json"
        before = file.read_text()
        edit(file, **changes)
        assert message in refusal(config({module: paths[name]})), (name, changes)
        file.write_text(before)


def test_image_normalization_of_the_tower_must_be_clips(tmp_path):
    hf_clip(VISION).save_pretrained(tmp_path)
    mean, std = ([round(x, 6) for x in values] for values in (architectures.MEAN, architectures.STD))
    for name, settings in (
        ("preprocessor_config.json", {"image_mean": mean, "image_std": std}),
        ("processor_config.json", {"image_processor": {"image_mean": mean, "image_std": std}}),
    ):
        (tmp_path / name).write_text(json.dumps(settings))
        resolve_model(config({"vision": tmp_path}))
        (tmp_path / name).write_text(json.dumps(settings).replace(json.dumps(std), "[0.5, 0.5, 0.5]"))
        with pytest.raises(DataError, match=rf"{name}.*image_std=\[0.5, 0.5, 0.5\]"):
            resolve_model(config({"vision": tmp_path}))
        (tmp_path / name).unlink()


def test_projector_type_and_module_are_compared(tmp_path):
    file = save_module(str(tmp_path / "p.safetensors"), "projector", {}, "float32", changed(projector="linear"))
    message = refusal(config({"projector": file}))
    assert "holds the projector linear, model.projector is mlp2x_gelu" in message
    assert "--config.model.projector=linear" in message
    with pytest.raises(DataError, match="holds the weights of `projector`, not of `llm`"):
        resolve_model(config({"llm": file}))


def test_original_llava_without_tower_is_compared(tmp_path):
    tensors = {name: x for name, x in gguf_files.hf_tensors(LLM).items()}
    save_file(tensors | {"model.mm_projector.0.bias": tensors["model.norm.weight"]}, tmp_path / "model.safetensors")
    values = hf_llama(LLM).config.to_dict() | dict(
        model_type="llava_llama", mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-1
    )
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "with select_layer -1, model.select_layer is -2" in refusal(config({"projector": tmp_path}))
    edit(tmp_path / "config.json", mm_vision_select_layer=-2, mm_vision_select_feature="cls_patch")
    assert "--config.model.select_feature=cls_patch" in refusal(config({"projector": tmp_path}))
    assert resolve_model(config({"llm": tmp_path})) == EVEN
    edit(tmp_path / "config.json", rms_norm_eps=1e-6)
    assert "norm_eps is 1e-06, not 1e-05" in refusal(config({"llm": tmp_path}))


def test_values_rounded_to_float32_are_equal(tmp_path):
    hf_llama(LLM).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", rms_norm_eps=9.999999747378752e-06)
    assert resolve_model(config({"llm": tmp_path})) == EVEN


def test_gguf_is_compared(tmp_path):
    file = gguf_files.write(tmp_path / "m.gguf", config=dataclasses.replace(LLM, norm_eps=1e-5))
    assert resolve_model(config({"llm": file})).llm.norm_eps == 1e-5
    file = gguf_files.write(tmp_path / "other.gguf", config=dataclasses.replace(LLM, rope_base=5e5))
    assert "rope_base is 500000.0, not 10000.0" in refusal(config({"llm": file}))
    assert resolve_model(config({"llm": file}, llm="folder")).llm.rope_base == 5e5


def test_larger_vocabulary_and_positions_are_those_of_the_files(tmp_path):
    padded = dataclasses.replace(LLM, vocab_size=LLM.vocab_size + 64, max_positions=64)
    hf_llama(padded).save_pretrained(tmp_path)
    lines = []
    assert resolve_model(config({"llm": tmp_path}), log=lines.append).llm == padded
    assert len(lines) == 2 and f"vocab_size 576, as in load.llm={tmp_path}; model.llm=here has 512" in lines[0]
    assert "stages.one.data.length=65 exceeds the 64 positions" in refusal(config({"llm": tmp_path}, length=65))
    assert resolve_model(config({"llm": tmp_path}, llm="folder", length=64)).llm == padded
    smaller = dataclasses.replace(LLM, vocab_size=LLM.vocab_size - 1)
    hf_llama(smaller).save_pretrained(tmp_path)
    assert "vocab_size is 511, not 512" in refusal(config({"llm": tmp_path}))


def test_scaled_positions_limit_the_rows(tmp_path):
    for kind, limit in (("linear", 128), ("yarn", 96), ("llama3", 64)):
        scaling = RopeScaling(kind, 2.0, original_max_positions=48)
        scaled = changed(llm=dict(rope_scaling=scaling, max_positions=64))
        file = save_module(str(tmp_path / "llm.safetensors"), "llm", {}, "float32", scaled)
        resolve_model(config({"llm": file}, llm="folder", length=limit))
        assert f"the {limit} positions" in refusal(config({"llm": file}, llm="folder", length=limit + 1))


def test_folder_without_files_names_the_missing_setting(tmp_path):
    rates = ((".*", 1e-3),)
    for module in ("vision", "llm"):
        run = config({}, **{module: "folder"})
        run = dataclasses.replace(run, stages={"one": Stage(learning_rates=rates, data=Data(path="x.json"))})
        with pytest.raises(ConfigError, match=f"config.model.{module}='folder' needs files; set config.load.{module}"):
            check_config(run)
        check_config(dataclasses.replace(run, load=Weights(**{module: "anything"})))
    with pytest.raises(ConfigError, match="not a known architecture"):
        check_config(dataclasses.replace(run, model=Model(llm="foldr")))


def test_module_file_without_architecture_is_used_as_named(tmp_path):
    file = tmp_path / "llm.safetensors"
    for metadata in (None, {"about": '{"architecture": "tiny", "module": "llm"}'}, {"about": "by someone else"}):
        save_file({}, file, metadata=metadata)
        assert resolve_model(config({"llm": file})) == EVEN
        message = refusal(config({"llm": file}, llm="folder"))
        assert str(file) in message and "set model.llm to the name" in message


@pytest.mark.parametrize(
    "load, error, message",
    [
        ({"llm": "gone"}, DataError, r"weights file gone \(for `llm`\) does not exist"),
        ({"llm": "gs://bucket/llm"}, ConfigError, r"load.llm: gs://bucket/llm is a URL"),
    ],
)
def test_missing_files_and_urls_are_refused(load, error, message):
    with pytest.raises(error, match=message):
        resolve_model(config(load, llm="folder"))


def test_folder_of_another_module_is_refused(tmp_path):
    hf_clip(VISION).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="load.llm=.* has no llm"):
        resolve_model(config({"llm": tmp_path}))


def test_resumed_run_keeps_its_architecture_without_its_files(tmp_path):
    recorded = changed(llm=dict(vocab_size=576, rope_base=5e5))
    gone = dict.fromkeys(("vision", "llm", "projector"), "gone")
    run = config(gone, vision="folder", llm="folder")
    (tmp_path / "architecture.json").write_text(json.dumps(architecture_to_json(recorded)))
    with pytest.raises(DataError, match="gone .* does not exist"):  # nothing is saved yet: it starts over
        run_model(run, "cpu", tmp_path, print)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert run_model(run, "cpu", tmp_path, print) == recorded
    (tmp_path / "architecture.json").unlink()  # as in a workdir of an earlier version
    assert run_model(config(gone), "cpu", tmp_path, print) == EVEN


def test_plan_reads_only_towers_named_folder(tmp_path):
    hf_llama(dataclasses.replace(LLM, rope_base=5e5)).save_pretrained(tmp_path)
    run = config({"vision": "gone", "projector": "gone", "llm": tmp_path}, llm="folder")
    assert planned_model(run, "cpu").llm.rope_base == 5e5
    assert planned_model(config({"llm": "gone"}), "cpu") == EVEN


def test_architecture_survives_json_and_refuses_other_keys():
    text_only = ModelConfig(None, EVEN.llm, None, "float32", "float32", "none", False, "xla")
    scaled = changed(llm=dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)))
    for model in (EVEN, text_only, scaled):
        values = json.loads(json.dumps(architecture_to_json(model)))
        assert architecture_from_json(values, "file") == model
    for values, name in (({"llm": {"depth": 1}}, "depth"), ({}, "vision"), ({"llm": 3}, "llm")):
        with pytest.raises(DataError, match=f"config.json holds no architecture .*{name}"):
            architecture_from_json(values, "config.json")
