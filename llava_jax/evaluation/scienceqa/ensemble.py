"""LLaVA and a text-only GPT-4 together on ScienceQA, as in the paper, from files of their answers.

complement   GPT-4's answer, and ours where it has none
judge        a third answer (GPT-4's, shown both), and ours where there is none; asked only where the two differ

As in the original's two scripts, of a text nothing but one "The answer is X." is read, and a letter of no choice counts
as an answer whose index is unknown. An unknown index is drawn at random there; `unparsed="wrong"` makes it wrong.
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
    """`indices`: of ours, other, complement and, where there was one, judge: the choice of every problem, -1 for none.
    `unread` and `silent`: problems that ours and the other have no letter for. `differing`: those that a judge is to be
    asked about, ours and the other's letters not being the same; `judged`: those that it answered."""

    problems: list[Problem]
    indices: dict[str, list[int]]
    unread: list[str]
    silent: list[str]
    differing: list[str]
    judged: list[str]

    def marks(self, name: str) -> list[tuple[Problem, bool]]:
        """Each problem, and whether `name` has it right; also of "upper bound": that ours or the other has.

        What is drawn for the other where it has no answer may lift that bound with a judge, and not without: each of
        the original's two scripts has its own way.
        """
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
    """Both ways at once. Without a judge only problems that both answered count, as in the original; with one, both
    must have answered every problem. What is drawn depends on `seed`, the problem's id and whose answer it is.

    Raises DataError where an answer is missing that must be there, and where no problem is left.
    """
    if judge is None:
        problems = [p for p in problems if p.pid in ours.texts and p.pid in other.texts]
        if not problems:
            raise DataError(f"{ours.name} and {other.name}: answer no problem of this split both.")
    for answers in (ours, other):
        if missing := [p.pid for p in problems if p.pid not in answers.texts]:
            raise DataError(
                f"{answers.name}: {len(missing):,} of {len(problems):,} problems have no answer, the first: "
                f"{missing[0]}. With a judge both must answer all."
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
