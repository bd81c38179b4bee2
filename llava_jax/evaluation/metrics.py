"""Metrics of a task: accuracy with its interval, the scores of an answers file, and the lines of a report."""

import dataclasses
from collections.abc import Mapping

from llava_jax.evaluation.task import Metric, Task
from llava_jax.output.intervals import wilson


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A metric: `correct` of `count` problems."""

    correct: int
    count: int

    @property
    def percent(self) -> float | None:
        return 100 * self.correct / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, in percent."""
        return wilson(self.correct, self.count)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of an answers file."""

    metrics: dict[str, Metric]  # see `Task.metrics`
    missing: list[str]  # ids of problems without an answer
    unparsed: list[str]  # ids of unparsed answers


def score_answers(task: Task, texts: Mapping[str, str]) -> Scores:
    """Scores answers. texts: the model's answers by problem id, see `answers_file.read_texts`."""
    problems = {problem.pid: problem for problem in task.problems()}
    answers = {pid: task.parse(problem, texts[pid]) for pid, problem in problems.items() if pid in texts}
    metrics = task.metrics([(problem, answers.get(pid)) for pid, problem in problems.items()])
    missing = [pid for pid in problems if pid not in texts]
    return Scores(metrics, missing, [pid for pid, answer in answers.items() if answer is None])


def metric_lines(metrics: Mapping[str, Metric]) -> list[str]:
    """A table of name, value in percent, 95% interval and number of problems."""
    width = max(map(len, metrics), default=0) + 2
    lines = ["".ljust(width) + "percent".rjust(9) + "95% interval".rjust(20) + "problems".rjust(10)]
    for name, metric in metrics.items():
        lines.append(f"{name:<{width}}{percent_text(metric.percent):>9}{interval_text(metric):>20}{metric.count:>10,}")
    return lines


def percent_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def interval_text(metric: Metric) -> str:
    return "-" if metric.interval is None else f"{metric.interval[0]:.2f} to {metric.interval[1]:.2f}"
