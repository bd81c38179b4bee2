"""A model's chat template is recognised by what it renders, and never harms or stops the program."""

import re
import resource
import signal
from pathlib import Path

import pytest

from llava_jax.checkpoint.huggingface.processor import chat_template
from llava_jax.errors import DataError
from llava_jax.text import chat_template as recognition
from llava_jax.text import chat_template_process, chat_template_program
from llava_jax.text.chat_template import Recognition, default_chat_template, recognise
from llava_jax.text.chat_template_process import RenderedChat, render_chats
from llava_jax.text.template_table import TEMPLATES

# Written after the structure that the models' publishers use; each file is one Jinja text.
FOLDER = Path(__file__).parent / "chat_templates"
KNOWN = {
    "gemma_2": "gemma", "gemma_3": "gemma", "hermes_2": "chatml_bare", "internlm_2": "chatml_bare",
    "llama_2_chat": "llama_2_chat", "llama_2_with_default": "llama_2", "llama_3": "llama_3", "llama_3_1": "llama_3_1",
    "llama_3_2": "llama_3_1", "llama_3_cue_always": "llama_3", "llava_1_5_hf": "vicuna_v1",
    "mistral_v0_2": "mistral_v1", "mistral_v0_3": "mistral_v3", "mistral_v7": "mistral_v7", "phi_3": "phi_3",
    "phi_3_first_release": "phi_3", "phi_4": "phi_4", "qwen_2": "chatml", "qwen_2_5": "qwen_2_5",
    "smollm_2": "smollm_2", "yi": "chatml_bare",
}  # fmt: skip
WITH_BOS = {
    "gemma_2", "gemma_3", "internlm_2", "llama_2_chat", "llama_2_with_default", "llama_3", "llama_3_1", "llama_3_2",
    "llama_3_cue_always", "mistral_v0_2", "mistral_v0_3", "mistral_v7", "phi_3_first_release",
}  # fmt: skip
# None of ours, with what the warning calls the nearest where it is one edit away.
OTHERS = {
    "alpaca": "", "chatglm_4": "", "chatml_direct": "chatml", "command_r": "", "deepseek_coder": "", "deepseek_v3": "",
    "dolphin": "chatml", "falcon": "", "gemma_3_one_newline": "gemma", "granite_3": "",
    "llama_3_one_newline": "llama_3", "llava_next_mistral_hf": "", "llava_onevision_hf": "chatml_bare",
    "mistral_nemo": "mistral_v3", "mistral_v0_1_spaced": "", "mixtral_space_after_answer": "mistral_v1", "olmo": "",
    "openchat": "", "phi_2": "", "qwen_3": "chatml_bare", "solar": "", "vicuna_newlines": "vicuna_v1", "zephyr": "",
}  # fmt: skip
ENDED = f"its process ended with {-signal.SIGPROF}"  # by the limit of CPU time, which other processes do not change
# name: (chat template, what ends it)
HOSTILE = {
    "endless loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}", ENDED,
    ),
    "a large power": ("{{ (9 ** (9 ** 9)) | length }}", ENDED),
    "1 GB of output": ("{% for i in range(10000) %}{{ 'a' * 100000 }}{% endfor %}", "it writes more than 1 MiB"),
    "a string of 1 GB": ("{{ ('a' * 10**9) | length }}", "MemoryError"),
    "a string doubled 60 times": (
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "Mem|ended",
    ),
    "attribute access": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a range of 10**9": ("{{ range(10**9) | list }}", "Range too big"),
}  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Renders in this process, which starting a child for each of 40 templates would slow down."""
    jinja = chat_template_program.environment()

    def render(template, conversations, variables):
        request = {"template": template, "conversations": conversations, "variables": variables}
        return [RenderedChat(*result) for result in chat_template_program.render_all(jinja, request)]

    monkeypatch.setattr(recognition, "render_chats", render)
    return recognise.__wrapped__  # without the cache


def jinja_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def test_every_chat_template_has_an_expectation():
    assert KNOWN.keys() | OTHERS.keys() == {file.stem for file in FOLDER.iterdir()}
    assert not KNOWN.keys() & OTHERS.keys() and len(KNOWN) + len(OTHERS) >= 30


@pytest.mark.parametrize("name", KNOWN)
def test_published_chat_template_is_recognised(in_process, name):
    assert in_process(jinja_of(name), "<s>", "</s>") == Recognition(KNOWN[name], begins_with_bos=name in WITH_BOS)


@pytest.mark.parametrize("name", OTHERS)
def test_other_chat_template_is_none_of_ours(in_process, name):
    result = in_process(jinja_of(name), "<s>", "</s>")
    assert result.template == ""
    assert result.fault.startswith(f"the nearest is {OTHERS[name]}")


def test_fault_shows_where_the_nearest_differs(in_process):
    assert in_process(jinja_of("mistral_nemo"), "<s>", "</s>").fault == (
        "the nearest is mistral_v3, but the model's has '<s>[INST]The first question.[/INS' where it has "
        "'<s>[INST] The first question.[/IN'"
    )
    assert "with a system text the model's has" in in_process(jinja_of("gemma_3_one_newline"), "<s>", "</s>").fault
    assert "after the last answer the model's has" in in_process(jinja_of("qwen_3"), "", "</s>").fault


def test_bos_that_begins_a_message_is_no_separate_token(in_process):
    """SmolLM2's tokenizer calls `<|im_start|>` its BOS."""
    assert in_process(jinja_of("smollm_2"), "<|im_start|>", "<|im_end|>") == Recognition("smollm_2")


def test_eos_is_that_of_the_tokenizer(in_process):
    assert in_process(jinja_of("mistral_v0_2"), "<s>", "<end>").template == "mistral_v1"
    hermes_with_eos = jinja_of("llama_2_chat").replace("eos_token", "'</s>'")
    assert in_process(hermes_with_eos, "<s>", "<end>").template == ""


@pytest.mark.parametrize("wraps_images", [False, True])
@pytest.mark.parametrize("name", [name for name, entry in TEMPLATES.items() if not entry.text_is_dropped])
def test_own_export_is_recognised_exactly(in_process, name, wraps_images):
    exported = chat_template(name, wraps_images, "<begin>", "<end>")
    assert in_process(exported, "<begin>", "<end>") == Recognition(name, wraps_images=wraps_images)


def test_export_without_a_system_role_is_recognised(in_process):
    """As written before there was one: any role but `user` is an answer."""
    old = chat_template("llava_v1").replace("{% if m['role'] == 'system' %}", "{% if false %}")
    old = old.replace("{% elif loop.previtem['role'] != 'system' %}", "{% else %}")
    assert in_process(old, "<s>", "</s>").template == "llava_v1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{{ x }}", "{{ x }}"), (None, ""), ("", ""), ([], ""),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ({"tool_use": "t", "default": "d"}, "d"),
    ],
)  # fmt: skip
def test_default_of_named_templates_is_used(value, text):
    assert default_chat_template(value) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"name": "tool_use", "template": "t"}], "templates named 'tool_use', but none named 'default'"),
        (["{{ x }}"], "type list"), (7, "type int"), ([{"name": "default", "template": 7}], "type int"), (True, "bool"),
    ],
)  # fmt: skip
def test_chat_template_of_another_type_is_named(value, message):
    with pytest.raises(DataError, match=message):
        default_chat_template(value)


def test_child_process_renders_as_this_one(in_process):
    for name in ("llama_3_2", "qwen_2_5", "llava_1_5_hf"):
        arguments = jinja_of(name), [recognition._request(recognition.COMPLETE, True)], {"bos_token": "<s>"}
        assert render_chats(*arguments) == recognition.render_chats(*arguments)


REPORTER = """
import json, os, sys
sys.path += [{folder!r}, *sys.argv[1:]]
import chat_template_program
print("r", end="", flush=True)
sys.stdin.read()
chat_template_program.limit()
opened = "a file"
try:
    open({folder!r} + "/encode.py")
except OSError as error:
    opened = str(error.strerror)
print(json.dumps([[opened, os.environ.get("SECRET_OF_TEST", "none")]]))
"""


def test_child_process_opens_no_file_and_has_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_TEST", "x")
    program = tmp_path / "program.py"
    program.write_text(REPORTER.format(folder=str(Path(chat_template_program.__file__).parent)))
    monkeypatch.setattr(chat_template_process, "PROGRAM", program)
    assert render_chats("", [], {}) == [("Too many open files", "none")]


@pytest.mark.parametrize("text", ["{% include '/etc/hosts' %}", "{% for %}", "{{ 1 // 0 }}"])
def test_faulty_chat_template_is_reported(in_process, text):
    assert in_process(text).fault.startswith("it cannot be rendered (")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_chat_template_ends_within_a_second(name):
    text, end = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = recognise.__wrapped__(text)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.template == "" and re.search(end, result.fault)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1, f"{seconds:.2f} s of CPU time"


def test_limit_of_cpu_time_holds_where_the_parent_ignores_its_signal():
    text, _ = HOSTILE["endless loop"]
    previous = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    try:
        assert "ended with -27" in recognise.__wrapped__(text).fault
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.signal(signal.SIGPROF, previous)
