"""python -m llava_jax eval scienceqa ask and judge: what a chat model behind an API is asked for the ensembles."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from llava_jax.cli.flags import Flat
from llava_jax.llm_client.settings import LLMSettings
from llava_jax.output.console import log, progress
from llava_jax.output.files import write_whole

MAX_LISTED = 20  # of the requests that failed


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
    """Asks a chat model the problems of a split as text, without the images: the OTHER of `ensemble`.

    Solved problems of the train split come first, in QCM-ALE (the answer, then why). What was answered is kept in a
    cache: a run that ended early goes on with the same command, and pays for nothing twice. Ends with 1 where an answer
    is missing.

    Args:
        problems: ScienceQA's folder: problems.json, pid_splits.json.
        out: The file to write: {"outputs": {id: text}}, with what was asked how.
        llm: Whom to ask, and for how much.
        split: Which problems: test, val, or another name in pid_splits.json.
        shots: How many solved problems come first; of the train split's without image, with an explanation.
        seed: Draws them.
        cache: Of replies. Default: OUT.cache.jsonl.
        dry_run: Prints how many requests there are, what they may cost and the first of them, and sends nothing.
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
    """Shows a chat model both answers where two files differ, and has it decide: the --judge of `ensemble`.

    Differing is what `ensemble` says: the letters, or that there is none. What was answered is kept in a cache: a run
    that ended early goes on with the same command, and pays for nothing twice. Ends with 1 where an answer is missing.

    Args:
        answers: A model's answers, Assistant 1: JSON Lines of {"question_id", "text"}, or a result file.
        other: GPT-4's answers, Assistant 2: {"outputs": {id: text}}, as of `ask`, or JSON Lines. Both answer all.
        problems: ScienceQA's folder: problems.json, pid_splits.json.
        out: The file to write: JSON Lines of {"question_id", "text"}.
        llm: Whom to ask, and for how much.
        split: Which problems: test, val, or another name in pid_splits.json.
        cache: Of replies. Default: OUT.cache.jsonl.
        dry_run: Prints how many requests there are, what they may cost and the first of them, and sends nothing.
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
        log("no judge is needed, and nothing is written")
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
    """What was answered, after telling it in words. An exit code where there is nothing to write: of a dry run, which
    shows what would be asked, and of one that had to end or was answered nothing."""
    from llava_jax.llm_client.cache import read_replies
    from llava_jax.llm_client.client import Unfinished, ask_llm
    from llava_jax.llm_client.settings import deduplicate, estimate_cost

    if dry_run:
        name, key = next(iter(deduplicate(requests, settings)[0].items()))
        log("\n".join(estimate_cost(requests, settings, read_replies(cache)[0])))
        log(f"the request of {name}, with {json.dumps(settings.parameters)}:")
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
    replies = result.replies.values()
    refused, truncated = sum(r.is_refused for r in replies), sum(r.finish == "length" for r in replies)
    log(
        f"{len(replies):,} answered, {result.new_count:,} of them now; {refused:,} refused or empty, "
        f"{truncated:,} cut at {settings.max_tokens:,} tokens; {len(result.failed):,} failed"
    )
    counts = [sum(getattr(r, name) or 0 for r in replies) for name in ("input_tokens", "output_tokens")]
    log(f"{counts[0]:,} input and {counts[1]:,} output tokens" + _cost_text(result, settings))
    for name, reason in list(result.failed.items())[:MAX_LISTED]:
        log(f"  {name}: {reason}")
    if len(result.failed) > MAX_LISTED:
        log(f"  and {len(result.failed) - MAX_LISTED:,} more")
    if result.failed:
        log("the same command asks these again, and nothing else")
    return result if result.replies else 1


def _cost_text(result, settings: LLMSettings) -> str:
    if settings.input_price is None:
        return ""
    lost = f", and at most ${result.lost:.4f} for tries without a reply" if result.lost else ""
    return f": ${result.spent:.4f}{lost}"
