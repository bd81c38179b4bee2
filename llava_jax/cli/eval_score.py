"""python -m llava_jax eval scienceqa: score files of answers, and join them with GPT-4's; eval_predict makes them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.cli import eval_llm
from llava_jax.cli.eval_predict import predict
from llava_jax.errors import ConfigError, harmless
from llava_jax.output.files import write_whole

ANSWERS = Annotated[Path, tyro.conf.arg(metavar="ANSWERS")]
OTHER = Annotated[Path, tyro.conf.arg(metavar="OTHER")]
DIFFERING = 20  # results that are named beside their texts


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
    from llava_jax.evaluation.scienceqa.files import read_answers, result_json
    from llava_jax.evaluation.scienceqa.page import page as make_page
    from llava_jax.images.files import ImageFolder, open_images

    found, known = read_answers(answers), scoring.read_problems(problems, split)
    how = dict(parser=parser, unparsed=unparsed, seed=seed)
    graded = scoring.grade(known, found, **how)
    answered = {item.problem.pid for item in graded if item.status != "missing"}
    if not answered:
        raise ConfigError(f"{answers}: no answer to a problem of split {split!r} of {problems}")
    comparison = None
    if against is not None:
        others = scoring.grade(known, read_answers(against), **how)
        if all(item.status == "missing" for item in others):
            raise ConfigError(f"{against}: no answer to a problem of split {split!r} of {problems}")
        comparison = scoring.compare(graded, others)
    images = open_images(image_folder, problems) if image_folder else ImageFolder(problems / "images")

    marks = scoring.marks_of(graded)
    shares, topics = scoring.shares(marks), scoring.topic_shares(marks)
    missing = [problem.pid for problem in known if problem.pid not in answered]
    lines = _about(found, graded, missing, split, parser, unparsed, seed)
    side, differing = scoring.differing_results(found, known)
    if side:
        agree = f"{side - len(differing):,} of {side:,} are the index that the strict parser finds in their text"
        lines += [f"results in the file: {agree}", *(f"  {pid}: {why}" for pid, why in differing[:DIFFERING])]
    if len(differing) > DIFFERING:
        lines.append(f"  and {len(differing) - DIFFERING:,} more; --json has all")
    shown = scoring.shown_share(graded, found)
    if found.prompts:
        lines.append(report.shown_line(shown))
    without = scoring.baselines([item.problem for item in graded])
    lines.append(report.baseline_line(*without))
    if json_file is not None:
        told = {"answers": str(answers), "problems": str(problems), "split": split, **how, "missing": missing}
        told["unparsed_answers"] = [item.problem.pid for item in graded if item.status == "unparsed"]
        told["differing_results"] = dict(differing)
        told["columns"] = {name: report.share_json(share) for name, share in shares.items()}
        told["shown"] = report.share_json(shown) if found.prompts else None
        told["baselines"] = report.baseline_json(*without)
        told["topics"] = {name: report.share_json(share) for name, share in topics.items()}
        told["against"] = comparison and report.comparison_json(comparison, str(against))
        told["items"] = [report.item_json(item) for item in graded]
        write_whole(json_file, json.dumps(told, indent=1) + "\n")
    if page is not None:
        write_whole(page, make_page(f"ScienceQA: {answers.name}", lines, shares, topics, graded, images, comparison))
    if result is not None:
        indices = {item.problem.pid: item.index for item in graded}
        texts = {item.problem.pid: "FAILED" if item.text is None else item.text for item in graded if found.texts}
        write_whole(result, result_json(indices, texts, shares[scoring.AVERAGE].correct))
    if analysis is not None:
        write_whole(analysis, report.analysis_json(graded, found))
    lines += ["", *report.table({answers.name[: report.NAME - 2]: shares}), "", *report.topic_table(topics)]
    if comparison:
        lines += ["", *report.comparison_lines(comparison, answers.name, against.name)]
    print(harmless("\n".join(lines)))
    return 1 if missing else 0


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
    known = read_problems(problems, split)
    joined = combine(known, *files, unparsed=unparsed, seed=seed)
    rows = {name: shares(joined.marks(name)) for name in (*joined.indices, "upper bound")}
    count = len(joined.problems)
    drawn = f"an unknown choice is drawn (seed {seed})" if unparsed == "random" else "an unknown choice is wrong"
    silent = [
        f"{whose} has no answer to {len(pids):,} ({100 * len(pids) / count:.2f}%)"
        for whose, pids in (("ours", joined.unread), ("the other", joined.silent))
    ]
    lines = [f"{count:,} of {len(known):,} problems of split {split}; {'; '.join(silent)}; {drawn}"]
    lines.append(f"the two differ on {len(joined.differing):,}")
    if judge is not None:
        among = len(set(joined.judged) & set(joined.differing))
        lines[-1] += f", of which the judge answered {among:,}; it also answered {len(joined.judged) - among:,} others"
    if json_file is not None:
        told = {"answers": str(answers), "other": str(other), "judge": judge and str(judge), "problems": str(problems)}
        told |= {"split": split, "unparsed": unparsed, "seed": seed, "count": count}
        told["columns"] = {n: {c: report.share_json(share) for c, share in row.items()} for n, row in rows.items()}
        told |= {
            "unread": joined.unread,
            "silent": joined.silent,
            "differing": joined.differing,
            "judged": joined.judged,
        }
        write_whole(json_file, json.dumps(told, indent=1) + "\n")
    if result is not None:
        name = "complement" if judge is None else "judge"
        indices = dict(zip((p.pid for p in joined.problems), joined.indices[name], strict=True))
        write_whole(result, result_json(indices, {}, rows[name][AVERAGE].correct))
    print(harmless("\n".join([*lines, "", *report.table(rows)])))
    return 0


SCIENCEQA = {  # of `python -m llava_jax eval scienceqa`
    "predict": predict,
    "score": score,
    "ensemble": ensemble,
    "ask": eval_llm.ask,
    "judge": eval_llm.judge,
}


def _about(found, graded, missing: list[str], split: str, parser: str, unparsed: str, seed: int) -> list[str]:
    answered = [item for item in graded if item.status != "missing"]
    count = len(found.results if parser == "results" else found.texts)
    lines = [f"{found.name}: {count:,} answers; {len(answered):,} to problems of split {split}, which are scored"]
    if count > len(answered):
        lines[-1] += f"; {count - len(answered):,} to others, which are left out"
    failed = [item for item in answered if item.status == "unparsed"]
    none = sum(item.letter is None for item in failed)
    way = f"drawn at random (seed {seed})" if unparsed == "random" else "wrong"
    lines.append(
        f"parser {parser}: {len(failed):,} of {len(answered):,} unparsed ({100 * len(failed) / len(answered):.2f}%), "
        f"{none:,} without a letter, {len(failed) - none:,} with one of no choice; they count as {way}"
    )
    if missing:
        counts = "they count as wrong" if unparsed == "wrong" else "they do not count"
        lines.append(f"{len(missing):,} problems have no answer, {counts}; the first: {missing[0]}")
    return lines
