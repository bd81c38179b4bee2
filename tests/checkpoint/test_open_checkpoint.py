"""open_checkpoint opens every format, and opens and parses each small file once."""

import collections
import json
import sys
import tempfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llava_jax
from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.huggingface.processor import chat_template
from llava_jax.checkpoint.llava.export import save_original
from llava_jax.checkpoint.module_file import load_module
from llava_jax.checkpoint.native.workdir_model import save_workdir_model
from llava_jax.checkpoint.open_checkpoint import open_checkpoint, open_parameters
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.errors import DataError
from llava_jax.text.encode import stop_ids
from tests.checkpoint.gguf_files.gguf_files import gguf, write
from tests.fixtures.hf_models import hf_llama
from tests.fixtures.tiny_models import random_params, uneven

TOKENIZER = open_tokenizer("tiny")  # 500 tokens
CONFIG = uneven(llm=dict(vocab_size=512, max_positions=256))
PARAMS = random_params(CONFIG)
_recording: list[list[str]] = []


def _record(event: str, args: tuple) -> None:
    if event == "open" and _recording:
        _recording[-1].append(str(args[0]))


sys.addaudithook(_record)  # sees every file that Python opens; audit hooks cannot be removed


@pytest.fixture
def opened():
    """The paths of all files opened during the test, with repetitions."""
    _recording.append([])
    yield _recording[-1]
    _recording.pop()


def like(config=CONFIG) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        path: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=sharding) for path, x in random_params(config).items()
    }


def chatml_gguf(file):
    """Writes a GGUF with a byte-level tokenizer of 48 tokens and a ChatML chat template."""
    tokens = ["w", "o", "wo", *(f"word{i}" for i in range(42)), "<s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 45 + [3] * 3, "tokenizer.ggml.merges": ["w o"],
        "tokenizer.ggml.bos_token_id": 45, "tokenizer.ggml.eos_token_id": 47,
        "tokenizer.chat_template": chat_template("chatml"),
    }  # fmt: skip
    return write(file, tokenizer=tokenizer)


def test_each_small_file_of_a_folder_is_opened_once(tmp_path, opened):
    save_hf(tmp_path / "hf", PARAMS, CONFIG, TOKENIZER, "float32", template="llava_v1", aspect="pad")
    opened.clear()
    model = llava_jax.load(tmp_path / "hf", dtype=None)
    counts = collections.Counter(path.removeprefix(f"{tmp_path}/hf/") for path in opened)
    names = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    names.append("config.json")
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 1)
    assert (model.aspect, model.image_token_id) == ("pad", 500)
    assert model.source_info.hf_tower == "vision_tower.vision_model."


def test_gguf_header_is_parsed_once_without_temporary_files(tmp_path, monkeypatch, opened):
    file, parsed = chatml_gguf(tmp_path / "a.gguf"), []
    parse = gguf.GGUFReader.__init__
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *args: parsed.append(args[1]) or parse(*args))
    opened.clear()
    model = llava_jax.load(file)
    assert parsed == [file]
    assert {path for path in opened if path.startswith((str(tmp_path), tempfile.gettempdir()))} == {str(file)}
    assert (model.template, model.tokenizer.vocab_size, model.tokenizer.eos_id) == ("chatml", 48, 47)
    assert model.source_info.tokenizer == file


def test_every_format_opens_to_the_same_model(tmp_path):
    save_hf(tmp_path / "hf", PARAMS, CONFIG, TOKENIZER, "float32")
    save_original(tmp_path / "llava", PARAMS, CONFIG, TOKENIZER, TINY_TOKENIZER, "float32")
    save_workdir_model(tmp_path / "own", PARAMS, CONFIG, TOKENIZER, TINY_TOKENIZER, "llava_v1", "pad", 500, False)
    settings = {"hf": ("vicuna_v1", "crop", 500), "llava": ("vicuna_v1", "crop", 500), "own": ("llava_v1", "pad", 500)}
    for name, expected in settings.items():
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.config == CONFIG, name
        assert (checkpoint.template, checkpoint.aspect, checkpoint.image_token_id) == expected
        assert checkpoint.tokenizer.encode("what color") == TOKENIZER.encode("what color")
        params = checkpoint.parameters.load(like())
        assert all((params[path] == PARAMS[path]).all() for path in PARAMS), name


def test_module_loads_from_a_workdir(tmp_path):
    save_workdir_model(tmp_path / "own", PARAMS, CONFIG, TOKENIZER, None, "llava_v1", "pad", 500, False)
    params = load_module(str(tmp_path / "own"), "projector", like())
    assert params.keys() == {path for path in PARAMS if path.startswith("projector/")}
    assert all((params[path] == PARAMS[path]).all() for path in params)
    linear = like(uneven(llm=dict(vocab_size=512), projector="linear"))
    with pytest.raises(DataError, match=r"missing none, unexpected \['projector/linear_2/bias'"):
        load_module(str(tmp_path / "own"), "projector", linear)


def test_module_loads_without_tokenizer_or_valid_image_config(tmp_path):
    save_hf(tmp_path / "hf", PARAMS, CONFIG, TOKENIZER, "float32")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    (tmp_path / "hf" / "preprocessor_config.json").write_text("{")
    assert open_parameters(tmp_path / "hf").modules == ("vision", "projector", "llm")
    assert "llm/norm/scale" in load_module(str(tmp_path / "hf"), "llm", like())
    with pytest.raises(DataError, match="preprocessor_config.json cannot be read"):
        open_checkpoint(tmp_path / "hf")


def test_projector_uses_tokenizer_and_template_of_its_base(tmp_path):
    """The base may be a single weights file; its tokenizer is then in the same folder."""
    save_original(tmp_path / "whole", PARAMS, CONFIG, TOKENIZER, TINY_TOKENIZER, "float32")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    projector = {name: x for name, x in tensors.items() if "mm_projector" in name}
    save_file(projector, tmp_path / "stage1" / "mm_projector.safetensors")
    hf_llama(CONFIG.llm).save_pretrained(tmp_path / "base")
    for file in TINY_TOKENIZER.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    tokenizer_config = json.loads((TINY_TOKENIZER / "tokenizer_config.json").read_text()) | {
        "chat_template": chat_template("chatml")
    }
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tower = tmp_path / "clip"
    tower.mkdir()
    prefix = "model.vision_tower.vision_tower."
    clip = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    save_file(clip, tower / "model.safetensors")
    vision = json.loads((tmp_path / "whole" / "config.json").read_text())["vision_config"]
    (tower / "config.json").write_text(json.dumps(vision))
    for base in (tmp_path / "base", tmp_path / "base" / "model.safetensors"):
        checkpoint = open_checkpoint(tmp_path / "stage1", tower=tower, base=base)
        assert checkpoint.tokenizer.special == TOKENIZER.special
        assert (checkpoint.template, checkpoint.source_info.tokenizer) == ("chatml", tmp_path / "base")
    other = open_checkpoint(tmp_path / "stage1", tower=tower, base=tmp_path / "base", tokenizer="tiny")
    assert (other.template, other.source_info.tokenizer) == ("chatml", TINY_TOKENIZER)


def llm_folder(folder, generation_config=None, jinja=None):
    """Writes a language model alone whose tokenizer adds no BOS."""
    hf_llama(CONFIG.llm).save_pretrained(folder)
    for file in TINY_TOKENIZER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spec = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "generation_config.json").write_text(json.dumps(generation_config or {}))
    if jinja:
        (folder / "chat_template.jinja").write_text(jinja)
    return folder


def test_language_model_takes_template_bos_and_stops_of_its_files(tmp_path, capsys):
    with_bos = "{{ bos_token }}" + chat_template("mistral_v1")
    checkpoint = open_checkpoint(llm_folder(tmp_path, {"eos_token_id": [2, 7]}, with_bos))
    assert (checkpoint.template, stop_ids(checkpoint.tokenizer, "mistral_v1")) == ("mistral_v1", (2, 7))
    assert checkpoint.tokenizer.add_bos, "the chat template begins with it"
    (tmp_path / "chat_template.jinja").write_text(chat_template("mistral_v1"))
    assert not open_checkpoint(tmp_path).tokenizer.add_bos
    assert "warning" not in capsys.readouterr().err


def test_unknown_or_missing_chat_template_is_reported_unless_one_is_given(tmp_path, capsys):
    llm_folder(tmp_path)
    capsys.readouterr()
    assert open_checkpoint(tmp_path, template="chatml").template == "chatml"
    assert capsys.readouterr().err == ""
    assert open_checkpoint(tmp_path).template == "vicuna_v1"
    assert f"note: {tmp_path} has no chat template; vicuna_v1 is used" in capsys.readouterr().err
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert open_checkpoint(tmp_path, template="chatml").template == "chatml"
    assert capsys.readouterr().err == ""
    assert open_checkpoint(tmp_path).template == "vicuna_v1"
    assert f"warning: the chat template of {tmp_path} is none of this" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["llama_3_1", "vicuna_v1"])
def test_template_survives_the_original_format(tmp_path, template):
    """Also where the tokenizer's folder, whose files are copied, has another chat template."""
    source = tmp_path / "tokenizer"
    source.mkdir()
    for file in TINY_TOKENIZER.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "chat_template.jinja").write_text(chat_template("chatml"))
    save_original(tmp_path / "a", PARAMS, CONFIG, TOKENIZER, source, "float32", template=template)
    assert open_checkpoint(tmp_path / "a").template == template
