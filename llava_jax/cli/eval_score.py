"""python -m llava_jax eval scienceqa score|ensemble: scores answers files and combines them with GPT-4's."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.cli import eval_llm
from llava_jax.cli.eval_predict import predict
from llava_jax.errors import ConfigError
from llava_jax.output.console import log
from llava_jax.output.files import date_of, write_whole

ANSWERS = Annotated[Path, tyro.conf.arg(metavar="ANSWERS")]
OTHER = Annotated[Path, tyro.conf.arg(metavar="OTHER")]


def score(
    answers: ANSWERS,
    /,
    *,
    problems: Path,
    split: str = "test",
    parser: Literal["strict", "lenient", "results"] = "strict",
    unparsed: Literal["wrong", "random"] = "wrong",
    seed: int = 0,
    against: Path | None = None,
    image_folder: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    page: Path | None = None,
    result: Path | None = None,
    analysis: Path | None = None,
) -> int:
    """Prints the accuracy by subject, context, grade and topic, beside the published numbers.

    Each accuracy has its count and its 95% interval (Wilson). If the file contains both indices and texts, they are
    compared. Exits with 1 if problems of the split have no answer.

    Args:
        answers: JSON Lines of {"question_id", "text"}, or the original's result or analysis file.
        problems: The ScienceQA folder: problems.json, pid_splits.json, images; or Parquet files of the Hub.
        split: The split: test, val, or another name in pid_splits.json.
        parser: strict: published rule. lenient: also "(b)", "Answer: B", a full choice. results: the file's indices.
        unparsed: An unparsed answer is wrong, or random: a sampled choice (as in the paper; missing ones do not count).
        seed: Seed of the sampled choices.
        against: A second answers file, compared problem by problem.
        image_folder: The folder or zip archive of the images for the page. Default: PROBLEMS/images.
        json_file: Writes all numbers and answers as JSON.
        page: Writes an HTML page with every answer and its image.
        result: Writes the original's result file, which ScienceQA's own tool reads.
        analysis: Writes the original's analysis file.
    """
    from llava_jax.data.sources.scienceqa import scienceqa_images
    from llava_jax.evaluation.scienceqa import report
    from llava_jax.evaluation.scienceqa import score as scoring
    from llava_jax.evaluation.scienceqa.files import read_answers
    from llava_jax.evaluation.scienceqa.page import scores_page
    from llava_jax.images.files import open_images

    grading = dict(parser=parser, unparsed=unparsed, seed=seed)
    answer_texts, problem_list = read_answers(answers), scoring.read_problems(problems, split)
    graded = _grade(answers, answer_texts, problem_list, split, problems, grading)
    scores = scoring.score_split(problem_list, answer_texts, graded)
    comparison = None
    if against is not None:
        graded_against = _grade(against, read_answers(against), problem_list, split, problems, grading)
        comparison = scoring.compare_answers(scores.graded, graded_against)
    images = open_images(image_folder, problems) if image_folder else scienceqa_images(problems)
    lines = report.summary_lines(scores, split, **grading)
    shares, topics = scores.shares, scores.topics
    if json_file is not None:
        record = {"answers": str(answers), "problems": str(problems), "split": split, **grading}
        record |= report.scores_json(scores)
        record["against"] = comparison and report.comparison_json(comparison, str(against))
        record["items"] = [report.item_json(item) for item in graded]
        write_whole(json_file, json.dumps(record, indent=1) + "\n")
    if page is not None:
        title = f"ScienceQA: {answers.name}"
        facts = {"problems": str(problems), "split": split, "parser": parser, "answers of": date_of(answers)}
        facts |= {"other file": against.name} if against else {}
        write_whole(page, scores_page(title, lines, shares, topics, graded, images, comparison, facts))
    if result is not None:
        write_whole(result, report.split_result_json(scores))
    if analysis is not None:
        write_whole(analysis, report.analysis_json(graded, scores.answers))
    name = answers.name[: report.NAME_WIDTH - 2]
    lines += ["", *report.accuracy_table({name: shares}), "", *report.topic_table(topics)]
    if comparison:
        lines += ["", *report.comparison_lines(comparison, answers.name, against.name)]
    log("\n".join(lines))
    return 1 if scores.missing else 0


def ensemble(
    answers: ANSWERS,
    other: OTHER,
    /,
    *,
    problems: Path,
    judge: Path | None = None,
    split: str = "test",
    unparsed: Literal["random", "wrong"] = "random",
    seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    result: Path | None = None,
) -> int:
    """Combines a model's answers with those of a text-only GPT-4, as in the paper.

    complement: GPT-4's answer, or the model's if GPT-4 has none. judge: the judge's answer, or the model's if the judge
    has none. Only a single "The answer is X." in a text is parsed.

    Args:
        answers: A model's answers: JSON Lines of {"question_id", "text"}, or the original's result file.
        other: GPT-4's answers: {"outputs": {id: text}}, or JSON Lines.
        problems: The ScienceQA folder: problems.json, pid_splits.json; or Parquet files of the Hub.
        judge: A judge's answers, in any format of ANSWERS, to the problems where both differ (--json lists these).
        split: The split: test, val, or another name in pid_splits.json.
        unparsed: An answer without a valid letter is a random choice (as in the original), or wrong.
        seed: Seed of the random choices.
        json_file: Writes the numbers and the ids of differing problems as JSON.
        result: Writes the original's result file: the judge's indices, or without --judge those of complement.
    """
    from llava_jax.evaluation.scienceqa import report
    from llava_jax.evaluation.scienceqa.ensemble import combine
    from llava_jax.evaluation.scienceqa.files import read_answers, result_json
    from llava_jax.evaluation.scienceqa.score import AVERAGE, read_problems, shares

    files = [read_answers(path) if path else None for path in (answers, other, judge)]
    problem_list = read_problems(problems, split)
    combined = combine(problem_list, *files, unparsed=unparsed, seed=seed)
    rows = {name: shares(combined.marks(name)) for name in (*combined.indices, "upper bound")}
    count = len(combined.problems)
    treatment = f"an unknown choice is sampled (seed {seed})" if unparsed == "random" else "an unknown choice is wrong"
    silent = [
        f"{whose} has no answer to {len(pids):,} ({100 * len(pids) / count:.2f}%)"
        for whose, pids in (("ours", combined.unread), ("the other", combined.silent))
    ]
    lines = [f"{count:,} of {len(problem_list):,} problems of split {split}; {'; '.join(silent)}; {treatment}"]
    lines.append(f"the two differ on {len(combined.differing):,}")
    if judge is not None:
        decided = len(set(combined.judged) & set(combined.differing))
        others = len(combined.judged) - decided
        lines[-1] += f", of which the judge answered {decided:,}; it also answered {others:,} others"
    if json_file is not None:
        record = {"answers": str(answers), "other": str(other), "judge": judge and str(judge)}
        record |= {"problems": str(problems), "split": split, "unparsed": unparsed, "seed": seed, "count": count}
        record["columns"] = {n: {c: report.share_json(share) for c, share in row.items()} for n, row in rows.items()}
        record |= {
            "unread": combined.unread,
            "silent": combined.silent,
            "differing": combined.differing,
            "judged": combined.judged,
        }
        write_whole(json_file, json.dumps(record, indent=1) + "\n")
    if result is not None:
        name = "complement" if judge is None else "judge"
        indices = dict(zip((p.pid for p in combined.problems), combined.indices[name], strict=True))
        write_whole(result, result_json(indices, {}, rows[name][AVERAGE].correct))
    log("\n".join([*lines, "", *report.accuracy_table(rows)]))
    return 0


SCIENCEQA = {  # of `python -m llava_jax eval scienceqa`
    "predict": predict,
    "score": score,
    "ensemble": ensemble,
    "ask": eval_llm.ask,
    "judge": eval_llm.judge,
}


def _grade(file: Path, answers, problem_list: list, split: str, problems: Path, grading: dict) -> list:
    """The graded answer to each problem. Raises ConfigError if `file` answers no problem."""
    from llava_jax.evaluation.scienceqa.score import grade

    graded = grade(problem_list, answers, **grading)
    if all(item.status == "missing" for item in graded):
        raise ConfigError(f"{file}: no answer to a problem of split {split!r} of {problems}")
    return graded
