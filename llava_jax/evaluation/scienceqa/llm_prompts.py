"""Prompts of a text-only chat model for the ensembles on ScienceQA (see `ensemble`).

question   solved problems as earlier turns, then the problem, in QCM-ALE: "The answer is A. BECAUSE: ..."
judge      the problem and the answers of two assistants, between which the model decides

The format of `question` is the paper's. Its judge's prompt and both system messages were not published: these are ours.
"""

import dataclasses
import random
from collections.abc import Sequence

from llava_jax.data.sources.scienceqa import Problem, conversation
from llava_jax.errors import ConfigError

FORMAT = "QCM-ALE"
ASK_SYSTEM = "You are a helpful assistant that answers questions of school science and explains the answers."
JUDGE_SYSTEM = "You are a careful and fair judge of answers to questions of school science."
# The ensemble parses a single sentence of this form; if there are two, it parses none.
JUDGE_INSTRUCTION = (
    "Two assistants answered this question; one or both may be wrong. Weigh what each of them says, and decide "
    "yourself which option is right. Explain your decision briefly, without repeating how the assistants state their "
    'answers. End with the sentence "The answer is X.", where X is the letter of one option. Write this sentence once.'
)
IMAGE_NOTE = "The question comes with an image, which only Assistant 1 has seen."


def draw_shots(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """Samples solved problems by `seed` from those with an explanation and without image: solutions that refer to an
    unseen image would teach the model to invent things. Raises ConfigError if there are fewer than `count`."""
    candidates = [problem for problem in problems if problem.image is None and (problem.lecture or problem.solution)]
    if count > len(candidates):
        raise ConfigError(f"--shots {count}: only {len(candidates)} train problems have an explanation and no image")
    return random.Random(seed).sample(candidates, count)


def question_messages(problem: Problem, shots: Sequence[Problem]) -> list[dict[str, str]]:
    """The messages of `question`: the shots, then the problem without its image."""
    messages = [_message("system", ASK_SYSTEM)]
    for shot in shots:
        question, answer = _question_and_answer(shot)
        messages += [_message("user", f"Can you explain {question}?"), _message("assistant", answer)]
    return [*messages, _message("user", f"Can you explain {_question_and_answer(problem)[0]}?")]


def judge_messages(problem: Problem, ours: str, other: str) -> list[dict[str, str]]:
    """The messages of `judge`. Assistant 1 is ours, Assistant 2 the other."""
    parts = [f"Question: {_question_and_answer(problem)[0]}"]
    for number, text in enumerate((ours, other), start=1):
        parts.append(f"[Assistant {number}]\n{text.strip() or '(no answer)'}\n[End of Assistant {number}]")
    parts.append(f"{IMAGE_NOTE} {JUDGE_INSTRUCTION}" if problem.image is not None else JUDGE_INSTRUCTION)
    return [_message("system", JUDGE_SYSTEM), _message("user", "\n\n".join(parts))]


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _question_and_answer(problem: Problem) -> tuple[str, str]:
    """(question, context and options; answer and explanation) as text."""
    question, answer = conversation(dataclasses.replace(problem, image=None), FORMAT)["conversations"]
    return question["value"], answer["value"]
