"""What a chat model without eyes is asked for the ensembles on ScienceQA (`scienceqa_ensemble`).

question   two solved problems as earlier turns, then the problem, in QCM-ALE: "The answer is A. BECAUSE: ..."
judge      the problem and the answers of two assistants, to be weighed

The paper's GPT-4 was asked in the first way; its judge's prompt and both system messages are not known. These are ours.
"""

import dataclasses
import random
from collections.abc import Sequence

from llava_jax.data.sources.scienceqa import Problem, conversation
from llava_jax.errors import ConfigError

FORMAT = "QCM-ALE"
HELPFUL = "You are a helpful assistant that answers questions of school science and explains the answers."
FAIR = "You are a careful and fair judge of answers to questions of school science."
# One sentence of this form is what the ensemble reads; of two it reads none.
VERDICT = (
    "Two assistants answered this question; one or both may be wrong. Weigh what each of them says, and decide "
    "yourself which option is right. Explain your decision briefly, without repeating how the assistants state their "
    'answers. End with the sentence "The answer is X.", where X is the letter of one option. Write this sentence once.'
)
UNSEEN = "The question comes with an image, which only Assistant 1 has seen."


def draw_shots(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """Problems to show solved, drawn by `seed` from those that need no image and have an explanation: of an image that
    is not shown a model would learn to make things up. Raises ConfigError where they are too few."""
    fit = [problem for problem in problems if problem.image is None and (problem.lecture or problem.solution)]
    if count > len(fit):
        raise ConfigError(f"--shots {count}: the train split has {len(fit)} problems without image, with explanation")
    return random.Random(seed).sample(fit, count)


def question_messages(problem: Problem, shots: Sequence[Problem]) -> list[dict[str, str]]:
    """The problem, without its image, behind the shots."""
    messages = [_turn("system", HELPFUL)]
    for shot in shots:
        asked, told = _as_text(shot)
        messages += [_turn("user", f"Can you explain {asked}?"), _turn("assistant", told)]
    return [*messages, _turn("user", f"Can you explain {_as_text(problem)[0]}?")]


def judge_messages(problem: Problem, ours: str, other: str) -> list[dict[str, str]]:
    """Assistant 1 is ours, Assistant 2 the other."""
    parts = [f"Question: {_as_text(problem)[0]}"]
    for number, said in enumerate((ours, other), start=1):
        parts.append(f"[Assistant {number}]\n{said.strip() or '(no answer)'}\n[End of Assistant {number}]")
    parts.append(f"{UNSEEN} {VERDICT}" if problem.image is not None else VERDICT)
    return [_turn("system", FAIR), _turn("user", "\n\n".join(parts))]


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _as_text(problem: Problem) -> tuple[str, str]:
    """(question, context and options; answer and explanation)"""
    asked, told = conversation(dataclasses.replace(problem, image=None), FORMAT)["conversations"]
    return asked["value"], told["value"]
