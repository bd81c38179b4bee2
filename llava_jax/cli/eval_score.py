"""python -m llava_jax eval scienceqa: score files of answers, and join them with GPT-4's; eval_predict makes them."""

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
    """Prints how many answers are right, by subject, context and grade beside the published numbers, and by topic.

    Each share comes with its count and its 95% interval (Wilson). A file in which results and texts stand side by side
    is checked for whether they agree. Ends with 1 where problems of the split have no answer.

    Args:
        answers: JSON Lines of {"question_id", "text"}, or a result or analysis file of the original's.
        problems: ScienceQA's folder: problems.json, pid_splits.json, images.
        split: Which problems: test, val, or another name in pid_splits.json.
        parser: How a letter is found in a text. strict: as published. lenient: also "(b)", "Answer: B", "the answer is
            b" twice, a choice in full. results: no parsing, the indices that the file has.
        unparsed: What an answer without a letter of a choice is. wrong. random: drawn, and problems without an answer
            do not count, as in the paper's numbers (until October 2023).
        seed: Of what is drawn.
        against: Another file of answers, to compare problem by problem.
        image_folder: Where the images are, a folder or a zip archive, if not in PROBLEMS/images. For the page.
        json_file: Writes everything, each answer included.
        page: Writes an HTML file that shows every answer with its image.
        result: Writes the original's result file, which ScienceQA's own tool reads.
        analysis: Writes the original's analysis file.
    """
    from llava_jax.evaluation.scienceqa import report
    from llava_jax.evaluation.scienceqa import score as scoring
    from llava_jax.evaluation.scienceqa.page import scores_page
    from llava_jax.images.files import ImageFolder, open_images

    grading = dict(parser=parser, unparsed=unparsed, seed=seed)
    problem_list = scoring.read_problems(problems, split)
    scores = scoring.score_split(problem_list, *_grade_file(answers, problem_list, split, problems, grading))
    comparison = None
    if against is not None:
        _, graded_against = _grade_file(against, problem_list, split, problems, grading)
        comparison = scoring.compare_answers(scores.graded, graded_against)
    images = open_images(image_folder, problems) if image_folder else ImageFolder(problems / "images")
    lines = report.summary_lines(scores, split, **grading)
    shares, topics, graded = scores.shares, scores.topics, scores.graded
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
    """Joins a model's answers with those of a text-only GPT-4, as in the paper: complement, and judge where given.

    complement: the other's answer, ours where it has none. judge: the judge's, ours where it has none. Of a text only
    one "The answer is X." is read.

    Args:
        answers: A model's answers: JSON Lines of {"question_id", "text"}, or a result file of the original's.
        other: GPT-4's answers: {"outputs": {id: text}}, or JSON Lines.
        problems: ScienceQA's folder: problems.json, pid_splits.json, images.
        judge: The judge's answers, as of ANSWERS; needed for the problems where the two differ (--json lists them).
        split: Which problems: test, val, or another name in pid_splits.json.
        unparsed: What an answer without a letter of a choice is. random: drawn, as in the original. wrong.
        seed: Of what is drawn.
        json_file: Writes the numbers, and which problems differ.
        result: Writes the original's result file of the judge's indices, or without a judge of complement's.
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
    treatment = f"an unknown choice is drawn (seed {seed})" if unparsed == "random" else "an unknown choice is wrong"
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


def _grade_file(file: Path, problem_list: list, split: str, problems: Path, grading: dict):
    """(the answers of a file, each problem's graded answer). Raises ConfigError where it answers none of them."""
    from llava_jax.evaluation.scienceqa.files import read_answers
    from llava_jax.evaluation.scienceqa.score import grade

    answers = read_answers(file)
    graded = grade(problem_list, answers, **grading)
    if all(item.status == "missing" for item in graded):
        raise ConfigError(f"{file}: no answer to a problem of split {split!r} of {problems}")
    return answers, graded
