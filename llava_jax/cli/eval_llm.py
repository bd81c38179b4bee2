"""python -m llava_jax eval scienceqa ask|judge: queries a chat API for the inputs of `ensemble`."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from llava_jax.cli.flags import Flat
from llava_jax.cli.llm_result import log_result
from llava_jax.llm_client.settings import LLMSettings
from llava_jax.output.console import log, progress
from llava_jax.output.files import write_whole


def ask(
    *,
    problems: Path,
    out: Path,
    llm: Flat[LLMSettings],
    split: str = "test",
    shots: int = 2,
    seed: int = 3,
    cache: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Asks a chat model the problems of a split as text, without images: the OTHER file of `ensemble`.

    Each prompt begins with solved problems of the train split, in the format QCM-ALE (answer, then explanation).
    Replies are cached: the same command resumes and pays for no reply again. Exits with 1 if an answer is missing.

    Args:
        problems: The ScienceQA folder: problems.json, pid_splits.json; or Parquet files of the Hub.
        out: The file to write: {"outputs": {id: text}} and the settings.
        llm: The chat model and the cost limit.
        split: The split: test, val, or another name in pid_splits.json.
        shots: The number of solved problems in a prompt, from train problems with an explanation and without image.
        seed: Seed of the choice of solved problems.
        cache: The file of cached replies. Default: OUT.cache.jsonl.
        dry_run: Prints the number of requests, their estimated cost and the first one. Sends nothing.
    """
    from llava_jax.evaluation.scienceqa import llm_prompts
    from llava_jax.evaluation.scienceqa.score import read_problems

    problem_list = read_problems(problems, split)
    solved = llm_prompts.draw_shots(read_problems(problems, "train") if shots else [], shots, seed)
    requests = {problem.pid: llm_prompts.question_messages(problem, solved) for problem in problem_list}
    result = _send_requests(requests, llm, cache or _default_cache(out), dry_run)
    if isinstance(result, int):
        return result
    record = {"model": llm.model, "server": llm.url, **llm.parameters, "split": split, "format": llm_prompts.FORMAT}
    record |= {"answered_as": dict(Counter(reply.model for reply in result.replies.values()))}
    record |= {"seed": seed, "shots": [problem.pid for problem in solved]}
    record |= {"refused": [pid for pid, reply in result.replies.items() if reply.is_refused], "failed": result.failed}
    record["outputs"] = {pid: reply.text for pid, reply in result.replies.items()}
    write_whole(out, json.dumps(record, indent=1) + "\n")
    log(f"{out}: {len(result.replies):,} answers")
    return 1 if result.failed else 0


def judge(
    answers: Annotated[Path, tyro.conf.arg(metavar="ANSWERS")],
    other: Annotated[Path, tyro.conf.arg(metavar="OTHER")],
    /,
    *,
    problems: Path,
    out: Path,
    llm: Flat[LLMSettings],
    split: str = "test",
    cache: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Asks a chat model to decide between two answers where two files differ: the --judge file of `ensemble`.

    Two answers differ if `ensemble` parses different letters, or a letter in only one of them. Replies are cached: the
    same command resumes and pays for no reply again. Exits with 1 if an answer is missing.

    Args:
        answers: A model's answers to all problems, Assistant 1: JSON Lines of {"question_id", "text"} or a result file.
        other: GPT-4's answers to all problems, Assistant 2: {"outputs": {id: text}}, e.g. of `ask`, or JSON Lines.
        problems: The ScienceQA folder: problems.json, pid_splits.json; or Parquet files of the Hub.
        out: The file to write: JSON Lines of {"question_id", "text"}.
        llm: The chat model and the cost limit.
        split: The split: test, val, or another name in pid_splits.json.
        cache: The file of cached replies. Default: OUT.cache.jsonl.
        dry_run: Prints the number of requests, their estimated cost and the first one. Sends nothing.
    """
    from llava_jax.evaluation.scienceqa.ensemble import combine
    from llava_jax.evaluation.scienceqa.files import Answers, read_answers
    from llava_jax.evaluation.scienceqa.llm_prompts import judge_messages
    from llava_jax.evaluation.scienceqa.score import read_problems

    ours, theirs = read_answers(answers), read_answers(other)
    by_id = {problem.pid: problem for problem in read_problems(problems, split)}
    differing = combine(list(by_id.values()), ours, theirs, judge=Answers("no judge yet", {})).differing
    log(f"the two differ on {len(differing):,} of {len(by_id):,} problems of split {split}")
    if not differing:
        log("no judge is needed; nothing is written")
        return 0
    requests = {pid: judge_messages(by_id[pid], ours.texts[pid], theirs.texts[pid]) for pid in differing}
    result = _send_requests(requests, llm, cache or _default_cache(out), dry_run)
    if isinstance(result, int):
        return result
    rows = [{"question_id": p, "text": reply.text, "model": reply.model} for p, reply in result.replies.items()]
    write_whole(out, "".join(json.dumps(row) + "\n" for row in rows))
    log(f"{out}: {len(rows):,} answers")
    return 1 if result.failed else 0


def _default_cache(out: Path) -> Path:
    return out.with_name(f"{out.name}.cache.jsonl")


def _send_requests(requests: dict[str, list[dict[str, str]]], settings: LLMSettings, cache: Path, dry_run: bool):
    """Sends the requests and logs a summary. Returns an LLMResult, or an exit code if there is nothing to write: after
    a dry run, after a run that stopped early, and if no request was answered."""
    from llava_jax.llm_client.cache import read_replies
    from llava_jax.llm_client.client import Unfinished, ask_llm
    from llava_jax.llm_client.settings import deduplicate, estimate_cost

    if dry_run:
        name, key = next(iter(deduplicate(requests, settings)[0].items()))
        log("\n".join(estimate_cost(requests, settings, read_replies(cache)[0])))
        log(f"the request of problem {name}, with {json.dumps(settings.parameters)}:")
        for turn in deduplicate(requests, settings)[1][key]:
            log(f"\n[{turn['role']}]\n{turn['content']}")
        log("\nnothing was sent")
        return 0
    try:
        with progress("answered") as on_progress:
            result = ask_llm(requests, settings, cache, log=log, on_progress=on_progress)
    except Unfinished as e:
        log(f"error: {e}", to_stderr=True)
        return 1
    log_result(result, settings)
    return result if result.replies else 1
