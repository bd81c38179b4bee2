"""Grades and scores answers to ScienceQA as its own tool does, and compares two answers files."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llava_jax.data.sources.scienceqa import LETTERS, Problem, ScienceQA
from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.metrics import Accuracy
from llava_jax.evaluation.scienceqa.files import Answers
from llava_jax.evaluation.scienceqa.parse import index_of, read_letter, strict
from llava_jax.output.intervals import mcnemar
from llava_jax.text.templates import IMAGE_MARKER

SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
GRADES = {"G1-6": [f"grade{i}" for i in range(1, 7)], "G7-12": [f"grade{i}" for i in range(7, 13)]}
AVERAGE = "Avg"
# In the order of the published tables. A problem's context is a text (TXT), an image (IMG), both, or neither (NO).
COLUMNS: dict[str, Callable[[Problem], bool]] = {
    "NAT": lambda p: p.subject == SUBJECTS["NAT"],
    "SOC": lambda p: p.subject == SUBJECTS["SOC"],
    "LAN": lambda p: p.subject == SUBJECTS["LAN"],
    "TXT": lambda p: p.hint != "",
    "IMG": lambda p: p.image is not None,
    "NO": lambda p: p.hint == "" and p.image is None,
    "G1-6": lambda p: p.grade in GRADES["G1-6"],
    "G7-12": lambda p: p.grade in GRADES["G7-12"],
    AVERAGE: lambda p: True,
}


@dataclasses.dataclass(frozen=True)
class GradedAnswer:
    """The answer to a problem."""

    problem: Problem
    text: str | None  # None if the file has none
    letter: str | None  # the parsed letter, which may be no choice
    index: int  # the choice that counts, -1 for none; of an unparsed answer it may be sampled
    status: str  # parsed | unparsed | missing

    @property
    def is_right(self) -> bool:
        return self.index == self.problem.answer


@dataclasses.dataclass(frozen=True)
class SplitScores:
    """All reported scores of an answers file."""

    answers: Answers
    graded: list[GradedAnswer]
    missing: list[str]  # ids of problems without an answer
    shares: dict[str, Accuracy]
    topics: dict[str, Accuracy]
    results_checked: int  # texts with an index in the file
    differing: list[tuple[str, str]]  # see `differing_results`
    shown: Accuracy | None  # see `shown_share`; None if the file has no prompts
    baselines: tuple[float, str, Accuracy]  # see `baselines`


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two files compared on the problems graded for both."""

    both: int  # problems that both answer correctly
    neither: int
    missing: int  # problems that the second file does not answer
    flips: list[tuple[GradedAnswer, GradedAnswer]]  # exactly one of the two is right

    @property
    def only_first(self) -> int:
        return sum(first.is_right for first, _ in self.flips)

    @property
    def only_second(self) -> int:
        return len(self.flips) - self.only_first

    @property
    def count(self) -> int:
        return self.both + self.neither + len(self.flips)

    @property
    def p(self) -> float:
        return mcnemar(self.only_first, self.only_second)


def read_problems(folder: str | Path, split: str) -> list[Problem]:
    """The problems of a split, each once. Raises DataError and ConfigError as `ScienceQA` does, and DataError for an
    unknown subject or grade."""
    source = ScienceQA(folder, split)
    problems = list({(problem := source.problem(i)).pid: problem for i in range(len(source))}.values())
    allowed = {"subject": list(SUBJECTS.values()), "grade": [grade for grades in GRADES.values() for grade in grades]}
    for problem in problems:
        for key, values in allowed.items():
            if getattr(problem, key) not in values:
                raise DataError(
                    f'{source.path}: problem {problem.pid}: key "{key}" is {getattr(problem, key)!r}, '
                    f"not one of {', '.join(values)}.",
                    "broken row",
                )
    return problems


def grade(
    problems: Iterable[Problem], answers: Answers, parser: str = "strict", unparsed: str = "wrong", seed: int = 0
) -> list[GradedAnswer]:
    """Grades the answers to `problems`, in their order.

    parser: "strict" or "lenient" (see `parse`), or "results" (the indices of the file, without parsing). unparsed:
    "wrong": answers without a valid letter and missing answers are wrong. "random": as in the original before October
    2023 and in the paper, a choice is sampled for the former, and the latter do not count; the sample depends only on
    `seed` and the problem's id.

    Raises ConfigError if the file does not contain what the parser needs.
    """
    available = answers.results if parser == "results" else answers.texts
    if not available:
        other = "strict or lenient" if parser == "results" else "results"
        raise ConfigError(
            f"{answers.name}: has no {'indices (results)' if parser == 'results' else 'texts'}; try --parser {other}"
        )
    graded = []
    for problem in problems:
        pid, choices = problem.pid, len(problem.choices)
        text = answers.texts.get(pid)
        if pid not in available:
            if unparsed == "wrong":
                graded.append(GradedAnswer(problem, text, None, -1, "missing"))
            continue
        if parser == "results":
            letter = LETTERS[answers.results[pid]] if 0 <= answers.results[pid] < len(LETTERS) else None
        else:
            letter = read_letter(text, problem.choices, parser)
        index = index_of(letter, choices)
        status = "unparsed" if index < 0 else "parsed"
        if status == "unparsed" and unparsed == "random":
            index = draw_choice(choices, seed, pid)
        graded.append(GradedAnswer(problem, text, letter, index, status))
    return graded


def score_split(problems: Sequence[Problem], answers: Answers, graded: list[GradedAnswer]) -> SplitScores:
    """The scores of `graded`, the output of `grade` for `problems` and `answers`."""
    answered = {item.problem.pid for item in graded if item.status != "missing"}
    marks = marks_of(graded)
    return SplitScores(
        answers,
        graded,
        [problem.pid for problem in problems if problem.pid not in answered],
        shares(marks),
        topic_shares(marks),
        *differing_results(answers, problems),
        shown_share(graded, answers) if answers.prompts else None,
        baselines([item.problem for item in graded]),
    )


def draw_choice(count: int, seed: int, *parts: str) -> int:
    """A random index below `count` that depends only on `seed` and `parts`."""
    return random.Random(" ".join([str(seed), *parts])).randrange(count)


def shares(marks: Sequence[tuple[Problem, bool]]) -> dict[str, Accuracy]:
    """The accuracies of the eight columns and of all problems. marks: (problem, whether its answer is right)."""
    return {name: _accuracy([mark for problem, mark in marks if fits(problem)]) for name, fits in COLUMNS.items()}


def topic_shares(marks: Sequence[tuple[Problem, bool]]) -> dict[str, Accuracy]:
    """The accuracy of each topic, sorted by name (ScienceQA has 26)."""
    topics = sorted({problem.topic for problem, _ in marks})
    return {topic: _accuracy([mark for problem, mark in marks if problem.topic == topic]) for topic in topics}


def shown_share(graded: Iterable[GradedAnswer], answers: Answers) -> Accuracy:
    """The original evaluator's "IMG accuracy": over the answers whose recorded prompt contains an image. The column IMG
    covers all problems that have an image, whether the model saw it or not."""
    return _accuracy([item.is_right for item in graded if IMAGE_MARKER in answers.prompts.get(item.problem.pid, "")])


def baselines(problems: Sequence[Problem]) -> tuple[float, str, Accuracy]:
    """(expected percentage of random choices, the most frequent answer letter, the accuracy of always choosing it)."""
    chance = 100 * sum(1 / len(problem.choices) for problem in problems) / len(problems)
    counts = Counter(problem.answer for problem in problems)
    most = min(counts, key=lambda index: (-counts[index], index))
    return chance, LETTERS[most], Accuracy(counts[most], len(problems))


def marks_of(graded: Iterable[GradedAnswer]) -> list[tuple[Problem, bool]]:
    return [(item.problem, item.is_right) for item in graded]


def compare_answers(first: Iterable[GradedAnswer], second: Iterable[GradedAnswer]) -> Comparison:
    others = {item.problem.pid: item for item in second}
    pairs = [(item, others[item.problem.pid]) for item in first if item.problem.pid in others]
    flips = [(a, b) for a, b in pairs if a.is_right != b.is_right]
    both = sum(a.is_right and b.is_right for a, b in pairs)
    missing = sum(b.status == "missing" for _, b in pairs)
    return Comparison(both, len(pairs) - both - len(flips), missing, flips)


def differing_results(answers: Answers, problems: Iterable[Problem]) -> tuple[int, list[tuple[str, str]]]:
    """(the number of texts with an index in `results`, [(id, reason)] where it differs from that of the strict parser).
    For a problem that is not in `problems`, every letter counts as a choice."""
    choices = {problem.pid: len(problem.choices) for problem in problems}
    both = [pid for pid in answers.results if pid in answers.texts]
    differing = []
    for pid in both:
        count, letter, given = choices.get(pid, len(LETTERS)), strict(answers.texts[pid]), answers.results[pid]
        if index_of(letter, count) != given:
            message = f"the text says {letter}" if letter else "the text says no letter"
            if index_of(letter, count) < 0:
                message += f", none of {count} choices" if letter else ""
                why = "" if given < 0 else "; the original drew one at random where it found none, before October 2023"
            elif pid not in choices:
                why = (
                    "; how many choices it has is not known here, it is not among the problems. For a letter beyond "
                    "them the original drew one at random, before October 2023"
                )
            else:
                why = ""
            in_letters = f" ({LETTERS[given]})" if 0 <= given < len(LETTERS) else ""
            differing.append((pid, f"{message}, results has {given}{in_letters}{why}"))
    return len(both), differing


def _accuracy(marks: list[bool]) -> Accuracy:
    return Accuracy(sum(marks), len(marks))
