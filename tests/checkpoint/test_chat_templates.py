"""A model's conversation template and stop ids come from its own files, wherever they are."""

import dataclasses
import json

import pytest

from llava_jax.checkpoint.chat_templates import (
    chosen_template,
    gguf_stop_ids,
    model_chat_template,
    read_chat_template,
    stop_ids_of,
    warn,
    with_templates,
)
from llava_jax.checkpoint.gguf_files.file import GgufFile
from llava_jax.checkpoint.huggingface.processor import chat_template
from llava_jax.config.schema import Config, Data, Stage, Weights
from llava_jax.errors import DataError
from llava_jax.text.chat_template import Recognition
from tests.checkpoint.gguf_files.gguf_files import write
from tests.fixtures.tokenizers import TINY

CHATML, LLAMA_3, MISTRAL = (chat_template(name) for name in ("chatml", "llama_3", "mistral_v3"))
UNKNOWN = "{% for m in messages %}{{ m['role'] + '> ' + m['content'] }}{% endfor %}"
JSON_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")


def put(folder, **texts):
    """Writes files; the keys are names without `.json`, except jinja for chat_template.jinja."""
    for name, value in texts.items():
        file = "chat_template.jinja" if name == "jinja" else f"{name}.json"
        text = value if name == "jinja" else json.dumps({"chat_template": value})
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def template_of(folder):
    recognition = read_chat_template(folder, TINY, is_own=False)
    return recognition and recognition.template


@pytest.mark.parametrize("name", ["jinja", *(file.removesuffix(".json") for file in JSON_FILES)])
def test_chat_template_of_every_file_is_read(tmp_path, name):
    assert template_of(put(tmp_path, **{name: CHATML})) == "chatml"


def test_first_file_in_transformers_order_counts(tmp_path):
    put(tmp_path, tokenizer_config=CHATML)
    assert template_of(put(tmp_path, chat_template=LLAMA_3)) == "llama_3"
    assert template_of(put(tmp_path, jinja=MISTRAL)) == "mistral_v3"


def test_named_chat_templates_use_the_default(tmp_path):
    named = [{"name": "tool_use", "template": UNKNOWN}, {"name": "default", "template": LLAMA_3}]
    assert template_of(put(tmp_path, tokenizer_config=named)) == "llama_3"
    tokenizer = dataclasses.replace(TINY, chat_template=named)
    assert read_chat_template(tmp_path, tokenizer, is_own=True).template == "llama_3"


def test_folder_without_chat_template_has_none(tmp_path):
    assert read_chat_template(tmp_path, TINY, is_own=True) is None
    assert template_of(put(tmp_path, jinja=" \n", tokenizer_config=None)) is None


def test_pointer_instead_of_a_chat_template_is_named(tmp_path):
    put(tmp_path, jinja="version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "is a git-lfs pointer" in read_chat_template(tmp_path, TINY, is_own=False).fault


def test_gguf_and_its_folder_have_their_own_templates(tmp_path):
    put(tmp_path, jinja=CHATML)
    file = write(tmp_path / "a.gguf", tokenizer={"tokenizer.chat_template": LLAMA_3})
    assert model_chat_template(file, TINY).template == "llama_3"
    assert model_chat_template(tmp_path / "other.safetensors", TINY).template == "chatml"


def test_unknown_chat_template_warns_once_on_standard_error(capsys, tmp_path):
    warn.cache_clear()
    recognition = read_chat_template(put(tmp_path, jinja=UNKNOWN), TINY, is_own=False)
    for _ in range(2):
        assert chosen_template(recognition, tmp_path, "--template") == "vicuna_v1"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"warning: the chat template of {tmp_path} is none of this package's, and vicuna_v1 is used" in err
    assert "with --template. Reason: the nearest is" in err
    assert (
        chosen_template(Recognition("phi_3"), tmp_path, "") == "phi_3"
        and chosen_template(None, tmp_path, "") == "vicuna_v1"
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("value", "ids"), [(2, (2,)), ([2, 7, 499], (2, 7, 499)), (None, ()), ([], ())])
def test_eos_ids_of_generation_config(tmp_path, value, ids):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_ids_of(tmp_path, 500) == ids


@pytest.mark.parametrize(("value", "ids"), [([2, 500], (2,)), (-1, ()), ("2", ()), (True, ()), ([2, 3.0], (2,))])
def test_eos_ids_that_are_no_tokens_are_ignored_with_a_warning(tmp_path, capsys, value, ids):
    warn.cache_clear()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_ids_of(tmp_path, 500) == ids
    assert "generation_config.json: eos_token_id has [" in capsys.readouterr().err


def test_ends_of_turn_and_message_of_a_gguf_end_answers(tmp_path, capsys):
    warn.cache_clear()
    ids = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}
    file = GgufFile(write(tmp_path / "a.gguf", tokenizer=ids))
    assert gguf_stop_ids(file, 500) == (7, 9) and capsys.readouterr().err == ""
    assert gguf_stop_ids(file, 8) == (7,) and "the end of a turn has [9]" in capsys.readouterr().err


def test_broken_generation_config_is_named(tmp_path):
    assert stop_ids_of(tmp_path, 500) == ()
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(DataError, match="generation_config.json cannot be read"):
        stop_ids_of(tmp_path, 500)


def resolve(llm="", recorded=None, **templates):
    """Returns (template of each stage, log lines) of a run with these `data.template`s."""
    stages, lines = {name: Stage(data=Data(template=value)) for name, value in templates.items()}, []
    config = Config(load=Weights(llm=str(llm)), run=tuple(stages), stages=stages)
    config = with_templates(config, recorded or {}, TINY, lines.append, is_main=True)
    return {name: stage.data.template for name, stage in config.stages.items()}, lines


def test_training_without_a_template_takes_that_of_the_folder(tmp_path):
    put(tmp_path, jinja=LLAMA_3)
    templates, lines = resolve(tmp_path, one="plain", two="")
    assert templates == {"one": "plain", "two": "llama_3"}
    assert lines == [f"two: data.template is llama_3, the chat template of {tmp_path}"]


def test_training_reports_a_template_that_differs_from_the_folder(tmp_path):
    put(tmp_path, jinja=LLAMA_3)
    templates, lines = resolve(tmp_path, one="vicuna_v1", two="llama_3")
    assert templates == {"one": "vicuna_v1", "two": "llama_3"}
    assert lines == ["one: data.template=vicuna_v1 is used; the chat template of load.llm is llama_3"]


def test_training_keeps_the_template_of_its_workdir(tmp_path):
    recorded = {"stages": {"one": {"data": {"template": "llava_v1"}}}}
    assert resolve(put(tmp_path, jinja=LLAMA_3), recorded, one="", two="")[0] == {"one": "llava_v1", "two": "llama_3"}
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{")  # a resume needs nothing of the folder
    assert resolve(tmp_path, recorded, one="")[0] == {"one": "llava_v1"}


def test_training_from_nothing_has_the_default_template(tmp_path, capsys):
    warn.cache_clear()
    for llm in ("", tmp_path, tmp_path / "missing"):
        assert resolve(llm, one="") == ({"one": "vicuna_v1"}, ["one: data.template is vicuna_v1, the default"])
    assert capsys.readouterr().err == ""
    assert resolve(put(tmp_path, jinja=UNKNOWN), one="")[0] == {"one": "vicuna_v1"}
    assert "--config.stages.one.data.template" in capsys.readouterr().err
