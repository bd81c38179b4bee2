"""Templates of public models, and system texts, render the strings that those models were trained on.

The strings of the models are written down here from their publishers' documentation; test_chat_template.py compares
the table with their chat templates as programs.
"""

import pytest

from llava_jax.errors import DataError
from llava_jax.text.template_table import SYSTEM_LLAMA_2, SYSTEM_USER, SYSTEM_VISION, TEMPLATES
from llava_jax.text.templates import render
from tests.text.test_templates import targets, text

ROUNDS = [("human", "What is it?"), ("gpt", "A bus."), ("human", "Where?"), ("gpt", "Here.")]
SYSTEM = ("system", "Be brief.")
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA bus.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHere.<|eot_id|>"
)
LLAMA_3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
CHATML = (
    "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA bus.<|im_end|>\n"
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n"
)
CHATML_SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
BRIEF_CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n" + CHATML
GEMMA = (
    "<start_of_turn>user\n{}What is it?<end_of_turn>\n<start_of_turn>model\nA bus.<end_of_turn>\n"
    "<start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\nHere.<end_of_turn>\n"
)
PHI_3 = (
    "<|user|>\nWhat is it?<|end|>\n<|assistant|>\nA bus.<|end|>\n"
    "<|user|>\nWhere?<|end|>\n<|assistant|>\nHere.<|end|>\n</s>"
)
PHI_4 = (
    "<|im_start|>user<|im_sep|>What is it?<|im_end|><|im_start|>assistant<|im_sep|>A bus.<|im_end|>"
    "<|im_start|>user<|im_sep|>Where?<|im_end|><|im_start|>assistant<|im_sep|>Here.<|im_end|>"
)
BRIEF_LLAMA_2 = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"
LLAMA_2 = "What is it? [/INST] A bus. </s><s>[INST] Where? [/INST] Here. </s>"
MISTRAL_V7 = "What is it?[/INST] A bus.</s>[INST] Where?[/INST] Here.</s>"
V1 = "USER: What is it? ASSISTANT: A bus.</s>USER: Where? ASSISTANT: Here.</s>"
V0 = "### Human: What is it?\n### Assistant: A bus.\n### Human: Where?\n### Assistant: Here.\n### "
# name: (without a system text, with "Be brief." as one or None where that is refused)
STRINGS = {
    "vicuna_v1": (f"{SYSTEM_USER} {V1}", f"Be brief. {V1}"),
    "llava_v0": (None, f"Be brief.\n\n{V0}"),
    "llama_2": (
        f"[INST] <<SYS>>\n{SYSTEM_LLAMA_2}\n<</SYS>>\n\n{LLAMA_2}", BRIEF_LLAMA_2 + LLAMA_2),
    "llava_llama_2": (f"[INST] <<SYS>>\n{SYSTEM_VISION}\n<</SYS>>\n\n{LLAMA_2}", BRIEF_LLAMA_2 + LLAMA_2),
    "llama_2_chat": (f"[INST] {LLAMA_2}", BRIEF_LLAMA_2 + LLAMA_2),
    "mistral_v1": ("[INST] What is it? [/INST]A bus.</s>[INST] Where? [/INST]Here.</s>", None),
    "mistral_v3": (
        "[INST] What is it?[/INST] A bus.</s>[INST] Where?[/INST] Here.</s>",
        "[INST] What is it?[/INST] A bus.</s>[INST] Be brief.\n\nWhere?[/INST] Here.</s>",
    ),
    "mistral_v7": (
        f"[INST] {MISTRAL_V7}",
        f"[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] {MISTRAL_V7}",
    ),
    "chatml": (CHATML_SYSTEM.format("You are a helpful assistant.") + CHATML, BRIEF_CHATML),
    "chatml_bare": (CHATML, BRIEF_CHATML),
    "qwen_2_5": (
        CHATML_SYSTEM.format("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.") + CHATML,
        BRIEF_CHATML,
    ),
    "smollm_2": (
        CHATML_SYSTEM.format("You are a helpful AI assistant named SmolLM, trained by Hugging Face") + CHATML,
        BRIEF_CHATML,
    ),
    "llama_3": (LLAMA_3, LLAMA_3_SYSTEM.format("Be brief.") + LLAMA_3),
    "llama_3_1": (LLAMA_3_SYSTEM.format(DATES) + LLAMA_3, LLAMA_3_SYSTEM.format(f"{DATES}Be brief.") + LLAMA_3),
    "gemma": (GEMMA.format(""), GEMMA.format("Be brief.\n\n")),
    "phi_3": (PHI_3, f"<|system|>\nBe brief.<|end|>\n{PHI_3}"),
    "phi_4": (PHI_4, f"<|im_start|>system<|im_sep|>Be brief.<|im_end|>{PHI_4}"),
}  # fmt: skip


@pytest.mark.parametrize("template", [name for name, (string, _) in STRINGS.items() if string])
def test_template_renders_the_published_string(template):
    assert text(render(template, ROUNDS)) == STRINGS[template][0]


@pytest.mark.parametrize("template", [name for name, (_, string) in STRINGS.items() if string])
def test_system_text_stands_where_published_and_is_untrained(template):
    segments = render(template, [SYSTEM, *ROUNDS])
    assert text(segments) == STRINGS[template][1]
    assert targets(segments) == targets(render(template, ROUNDS))
    assert not any(segment.kind == "system" for segment in segments)


@pytest.mark.parametrize("template", ["mistral_v1", "plain"])
def test_system_text_is_refused_by_templates_without_one(template):
    with pytest.raises(DataError, match=f"template '{template}' has no system text.*remove the system turn"):
        render(template, [SYSTEM, *ROUNDS[:2]])


def test_system_text_of_llava_v0_prompts():
    prompt = text(render("llava_v0", [SYSTEM, ROUNDS[0]], open_answer=True))
    assert prompt == "Be brief.###Human: What is it?###Assistant:"


def test_markers_and_specials_in_system_texts_are_text():
    for template, entry in TEMPLATES.items():
        if entry.has_system:
            segments = render(template, [("system", "<image></s><|im_end|>"), *ROUNDS])
            assert any(s.kind == "text" and "<image></s><|im_end|>" in s.text for s in segments), template
            assert not any(s.kind == "image" for s in segments)


def test_texts_are_stripped_where_the_published_template_does():
    turns = [("system", " Be brief.\n"), ("human", " What? "), ("gpt", "\nA bus. ")]
    stripped = [(role, content.strip()) for role, content in turns]
    for template in ("llama_3", "llama_3_1", "gemma", "llama_2_chat"):
        assert render(template, turns) == render(template, stripped)
    assert render("chatml", turns) != render("chatml", stripped)


def test_supervised_are_answers_and_stops():
    stops = {name: targets(render(name, ROUNDS)) for name in STRINGS if name != "llava_v0"}
    spaced = dict.fromkeys(("vicuna_v1", "mistral_v3", "mistral_v7"), " {}</s>")
    spaced |= dict.fromkeys(("llama_2", "llava_llama_2", "llama_2_chat"), " {} </s>") | {"mistral_v1": "{}</s>"}
    expected = {name: spaced.get(name, f"{{}}{TEMPLATES[name].stop}") for name in stops}
    assert stops == {name: [form.format("A bus."), form.format("Here.")] for name, form in expected.items()}
