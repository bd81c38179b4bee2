"""Answers in two generations, like the original's answer prompter, for models trained on LEPA.

The model generates its reasoning up to "###". The second prompt appends the reasoning and " ###\\nANSWER:".
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llava_jax.api.model import LlavaModel
from llava_jax.evaluation.questions import TaskQuestion
from llava_jax.evaluation.runner import encode_rendered, render_question
from llava_jax.inference.engine import GenerationConfig, Prompt
from llava_jax.text.templates import Segment

REASONING_ENDS, ANSWER_CUE, ANSWER_TOKENS = "###", " ###\nANSWER:", 64


def encode_step(model: LlavaModel, question: TaskQuestion, reasoning: str | None = None) -> np.ndarray:
    """The ids int32[L] of the prompt, images expanded, of the first step or, with `reasoning`, of the second."""
    segments = render_question(model, question)
    last = segments[-1]
    if model.template == "llava_v0":  # its models generate ` Assistant:` themselves
        last = last._replace(text=last.text.removesuffix("Assistant:"))
    segments[-1] = last
    if reasoning is not None:
        more = reasoning.rstrip() + ANSWER_CUE
        if last.kind == "text":  # one text, which the original tokenizes as a whole
            segments[-1] = last._replace(text=last.text + more)
        else:
            segments.append(Segment(more))
    return encode_rendered(model, question, segments)


def generate_two_steps(
    model: LlavaModel, questions: Sequence[TaskQuestion], prompts: Sequence[Prompt], settings: GenerationConfig
) -> list[str]:
    """The reasoning and answer to each question. The answer is empty if the reasoning leaves no room for it."""
    settings = dataclasses.replace(settings, stop_strings=(REASONING_ENDS, *settings.stop_strings))
    reasonings = [answer.text for answer in model.answers(prompts, settings)]
    second = [
        prompt._replace(tokens=encode_step(model, question, reasoning))
        for question, prompt, reasoning in zip(questions, prompts, reasonings, strict=True)
    ]
    fits = [i for i, prompt in enumerate(second) if len(prompt.tokens) < model.config.llm.max_positions]
    settings = dataclasses.replace(settings, max_new_tokens=ANSWER_TOKENS)
    texts = dict.fromkeys(range(len(second)), "")
    for i, answer in zip(fits, model.answers([second[i] for i in fits], settings), strict=True):
        texts[i] = answer.text.strip()
    return [f"{reasoning.strip()}\n The answer is {texts[i]}" for i, reasoning in enumerate(reasonings)]
