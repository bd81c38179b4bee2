"""Ensembles of LLaVA and a text-only GPT-4 on ScienceQA, as in the paper, from their answers files.

complement   GPT-4's answer, or ours if it has none
judge        a third answer (GPT-4 sees both), or ours if there is none; requested only if the two differ

As in the original's two scripts, only a single "The answer is X." is parsed from a text, and a letter that is no choice
counts as an answer with an unknown index. The original samples an unknown index; `unparsed="wrong"` makes it wrong.
"""

import dataclasses
from collections.abc import Sequence

from llava_jax.data.sources.scienceqa import Problem
from llava_jax.errors import DataError
from llava_jax.evaluation.scienceqa.files import Answers
from llava_jax.evaluation.scienceqa.parse import index_of, stated_letter
from llava_jax.evaluation.scienceqa.score import draw_choice


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The ensembles on a list of problems."""

    problems: list[Problem]
    indices: dict[str, list[int]]  # of ours, other, complement and (if any) judge: a choice per problem, -1 if unknown
    unread: list[str]  # ids of problems for which ours has no letter
    silent: list[str]  # the same for other
    differing: list[str]  # ids for which the two letters differ, so that a judge decides
    judged: list[str]  # ids that the judge answered

    def marks(self, name: str) -> list[tuple[Problem, bool]]:
        """(problem, whether `name` is right) for each problem. "upper bound" is right if ours or other is; for other it
        uses, like the original's two scripts, the sampled choice with a judge, and complement's without one."""
        if name == "upper bound":
            other_indices = self.indices["other" if "judge" in self.indices else "complement"]
            pairs = zip(self.problems, self.indices["ours"], other_indices, strict=True)
            return [(problem, problem.answer in (ours, other)) for problem, ours, other in pairs]
        return [(problem, problem.answer == i) for problem, i in zip(self.problems, self.indices[name], strict=True)]


def combine(
    problems: Sequence[Problem],
    ours: Answers,
    other: Answers,
    judge: Answers | None = None,
    unparsed: str = "random",
    seed: int = 0,
) -> Ensemble:
    """Computes both ensembles. Without a judge, only problems that both files answer count, as in the original; with
    one, both must answer all problems. A sampled choice depends on `seed`, the problem's id and the answer's source.

    Raises DataError if a required answer is missing, and if no problem is left.
    """
    if judge is None:
        problems = [p for p in problems if p.pid in ours.texts and p.pid in other.texts]
        if not problems:
            raise DataError(f"{ours.name} and {other.name}: no problem of this split is answered by both.")
    for answers in (ours, other):
        if missing := [p.pid for p in problems if p.pid not in answers.texts]:
            raise DataError(
                f"{answers.name}: {len(missing):,} of {len(problems):,} problems have no answer, the first: "
                f"{missing[0]}. With a judge, both files must answer all problems."
            )
    result = Ensemble(list(problems), {"ours": [], "other": [], "complement": []}, [], [], [], [])
    if judge is not None:
        result.indices["judge"] = []
    for problem in problems:
        pid = problem.pid
        our_letter, our_index = _answer(problem, ours.texts[pid], "ours", unparsed, seed)
        other_letter, other_index = _answer(problem, other.texts[pid], "other", unparsed, seed)
        result.indices["ours"].append(our_index)
        result.indices["other"].append(other_index)
        result.indices["complement"].append(our_index if other_letter is None else other_index)
        if our_letter is None:
            result.unread.append(pid)
        if other_letter is None:
            result.silent.append(pid)
        if our_letter != other_letter:
            result.differing.append(pid)
        if judge is not None:
            letter, index = _answer(problem, judge.texts.get(pid, ""), "judge", unparsed, seed)
            result.indices["judge"].append(our_index if letter is None else index)
            if letter is not None:
                result.judged.append(pid)
    return result


def _answer(problem: Problem, text: str, source: str, unparsed: str, seed: int) -> tuple[str | None, int]:
    letter = stated_letter(text)
    index = index_of(letter, len(problem.choices))
    if index < 0 and unparsed == "random":
        index = draw_choice(len(problem.choices), seed, problem.pid, source)
    return letter, index
