"""Reports of scores: text beside the published numbers, JSON, and the original's result and analysis files."""

import json
from collections.abc import Iterable, Sequence

from llava_jax.data.sources.scienceqa import LETTERS
from llava_jax.evaluation.metrics import Accuracy, interval_text, percent_text
from llava_jax.evaluation.scienceqa.files import Answers, result_json
from llava_jax.evaluation.scienceqa.score import AVERAGE, COLUMNS, Comparison, GradedAnswer, SplitScores
from llava_jax.text.templates import IMAGE_MARKER

TEST_COUNT = 4241  # problems of the test split, which all published rows cover
# arXiv 2304.08485; in the order of COLUMNS
PUBLISHED = {
    "Human": (90.23, 84.97, 87.48, 89.60, 87.50, 88.10, 91.59, 82.42, 88.40),
    "GPT-3.5 CoT": (75.44, 70.87, 78.09, 74.68, 67.43, 79.93, 78.23, 69.68, 75.17),
    "LLaMA-Adapter": (84.37, 88.30, 84.36, 83.72, 80.32, 86.90, 85.83, 84.05, 85.19),
    "MM-CoT large": (95.91, 82.00, 90.82, 95.26, 88.80, 92.89, 92.44, 90.31, 91.68),
    "GPT-4, text, 2-shot": (84.06, 73.45, 87.36, 81.87, 70.75, 90.73, 84.69, 79.10, 82.69),
    "LLaVA 13B v0": (90.36, 95.95, 88.00, 89.49, 88.00, 90.66, 90.93, 90.90, 90.92),
    "  + GPT-4 complement": (90.36, 95.50, 88.55, 89.05, 87.80, 91.08, 92.22, 88.73, 90.97),
    "  + GPT-4 judge": (91.56, 96.74, 91.09, 90.62, 88.99, 93.52, 92.73, 92.16, 92.53),
}
NAME_WIDTH, CELL_WIDTH, MAX_FLIPS = 22, 9, 20
MAX_DIFFERING = 20  # differing results that are printed


def accuracy_table(rows: dict[str, dict[str, Accuracy]]) -> list[str]:
    """Lines of `rows`, with intervals and counts, and of the published rows."""
    lines = ["".ljust(NAME_WIDTH) + "".join(name.rjust(CELL_WIDTH) for name in COLUMNS)]
    for name, shares in rows.items():
        lines.append(_line(name, [percent_text(share.percent) for share in shares.values()]))
        for label, end in (("  95%, from", 0), ("       to", 1)):
            lines.append(_line(label, [percent_text(s.interval[end] if s.interval else None) for s in shares.values()]))
        lines.append(_line("  right/all", [f"{share.correct}/{share.count}" for share in shares.values()]))
    lines += ["", f"published, of all {TEST_COUNT:,} test problems:"]
    return lines + [_line(name, [percent_text(value) for value in values]) for name, values in PUBLISHED.items()]


def topic_table(topics: dict[str, Accuracy]) -> list[str]:
    width = max(map(len, topics), default=0) + 2
    lines = ["topic".ljust(width) + "right/all".rjust(11) + "percent".rjust(9) + "  95% interval"]
    for topic, share in topics.items():
        counts = f"{share.correct}/{share.count}"
        lines.append(f"{topic:<{width}}{counts:>11}{percent_text(share.percent):>9}  {interval_text(share)}")
    return lines


def summary_lines(scores: SplitScores, split: str, parser: str, unparsed: str, seed: int) -> list[str]:
    """The lines above the tables: what was scored, how, and the baselines."""
    answers, graded, differing = scores.answers, scores.graded, scores.differing
    answered = [item for item in graded if item.status != "missing"]
    count = len(answers.results if parser == "results" else answers.texts)
    lines = [f"{answers.name}: {count:,} answers; scored: {len(answered):,} to problems of split {split}"]
    if count > len(answered):
        lines[-1] += f"; ignored: {count - len(answered):,} to other problems"
    failed = [item for item in answered if item.status == "unparsed"]
    none = sum(item.letter is None for item in failed)
    treatment = f"a random choice (seed {seed})" if unparsed == "random" else "wrong"
    lines.append(
        f"parser {parser}: {len(failed):,} of {len(answered):,} unparsed ({100 * len(failed) / len(answered):.2f}%), "
        f"{none:,} without a letter, {len(failed) - none:,} with a letter of no choice; they count as {treatment}"
    )
    if scores.missing:
        counts = "they count as wrong" if unparsed == "wrong" else "they do not count"
        lines.append(f"{len(scores.missing):,} problems have no answer, {counts}; the first: {scores.missing[0]}")
    if checked := scores.results_checked:
        agree = f"{checked - len(differing):,} of {checked:,} equal the index that the strict parser finds in the text"
        lines += [f"results in the file: {agree}", *(f"  {pid}: {why}" for pid, why in differing[:MAX_DIFFERING])]
    if len(differing) > MAX_DIFFERING:
        lines.append(f"  and {len(differing) - MAX_DIFFERING:,} more; --json lists all")
    if scores.shown is not None:
        lines.append(shown_line(scores.shown))
    return [*lines, baseline_line(*scores.baselines)]


def comparison_lines(comparison: Comparison, first: str, second: str) -> list[str]:
    c = comparison
    points = 100 * (c.only_first - c.only_second) / c.count if c.count else 0.0
    lines = [
        f"against {second}, on {c.count:,} problems: both right {c.both:,}, only {first} {c.only_first:,}, "
        f"only the other {c.only_second:,}, neither {c.neither:,}; {points:+.2f} points, exact McNemar p = {c.p:.3g}"
    ]
    if c.missing:
        lines.append(f"  the other has no answer to {c.missing:,} of them; these count as wrong")
    for a, b in c.flips[:MAX_FLIPS]:
        truth = LETTERS[a.problem.answer]
        lines.append(f"  {a.problem.pid}: {_letter_text(a)}, the other {_letter_text(b)}; right is {truth}")
    if len(c.flips) > MAX_FLIPS:
        lines.append(f"  and {len(c.flips) - MAX_FLIPS:,} more flips; --json lists all")
    return lines


def baseline_line(chance: float, letter: str, share: Accuracy) -> str:
    return (
        f"without a model: {percent_text(chance)} for a random choice; {percent_text(share.percent)} "
        f"({share.correct:,}/{share.count:,}, 95% {interval_text(share)}) for always {letter}, the most frequent letter"
    )


def baseline_json(chance: float, letter: str, share: Accuracy) -> dict:
    return {"random": chance, "letter": letter, "always_that_letter": share_json(share)}


def shown_line(share: Accuracy) -> str:
    return (
        f"IMG accuracy by prompt: {percent_text(share.percent)} ({share.correct:,}/{share.count:,}, 95% "
        f"{interval_text(share)}), of the answers whose prompt contains {IMAGE_MARKER}"
    )


def share_json(share: Accuracy) -> dict:
    return {"correct": share.correct, "count": share.count, "percent": share.percent, "interval": share.interval}


def scores_json(scores: SplitScores) -> dict:
    """All scores as JSON, without the answers and the comparison."""
    return {
        "missing": scores.missing,
        "unparsed_answers": [item.problem.pid for item in scores.graded if item.status == "unparsed"],
        "differing_results": dict(scores.differing),
        "columns": {name: share_json(share) for name, share in scores.shares.items()},
        "shown": scores.shown and share_json(scores.shown),
        "baselines": baseline_json(*scores.baselines),
        "topics": {name: share_json(share) for name, share in scores.topics.items()},
    }


def item_json(item: GradedAnswer) -> dict:
    return {
        "id": item.problem.pid,
        "text": item.text,
        "letter": item.letter,
        "index": item.index,
        "answer": item.problem.answer,
        "status": item.status,
        "right": item.is_right,
    }


def comparison_json(comparison: Comparison, second: str) -> dict:
    c = comparison
    record = {"file": second, "count": c.count, "both": c.both, "only_first": c.only_first}
    record |= {"only_second": c.only_second, "neither": c.neither, "second_missing": c.missing}
    record["p"] = c.p
    return record | {"flips": [{"first": item_json(a), "second": item_json(b)} for a, b in c.flips]}


def split_result_json(scores: SplitScores) -> str:
    """The original's result file of `scores`; without texts if the answers have none."""
    texts = {item.problem.pid: "FAILED" if item.text is None else item.text for item in scores.graded}
    indices = {item.problem.pid: item.index for item in scores.graded}
    return result_json(indices, texts if scores.answers.texts else {}, scores.shares[AVERAGE].correct)


def analysis_json(graded: Iterable[GradedAnswer], answers: Answers) -> str:
    """The original's analysis file (`--output-file`), byte for byte if the answers contain the prompts."""
    lists = {"correct": [], "incorrect": []}
    for item in graded:
        prompt = answers.prompts.get(item.problem.pid, "Unknown")
        lists["correct" if item.is_right else "incorrect"].append(
            {
                "question_id": item.problem.pid,
                "parsed_ans": item.letter or "FAILED",
                "ground_truth": LETTERS[item.problem.answer],
                "question": prompt,
                "pred": "FAILED" if item.text is None else item.text,
                "is_multimodal": "<image>" in prompt,
            }
        )
    return json.dumps(lists, indent=2)


def _letter_text(item: GradedAnswer) -> str:
    return "no answer" if item.status == "missing" else item.letter or "no letter"


def _line(name: str, cells: Sequence[str]) -> str:
    return name.ljust(NAME_WIDTH) + "".join(cell.rjust(CELL_WIDTH) for cell in cells)
