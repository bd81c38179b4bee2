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

LISTED = 20  # of the requests that failed


def ask(
    *,
    problems: Path,
    out: Path,
    terms: Flat[LLMSettings],
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
        terms: Whom to ask, and for how much.
        split: Which problems: test, val, or another name in pid_splits.json.
        shots: How many solved problems come first; of the train split's without image, with an explanation.
        seed: Draws them.
        cache: Of replies. Default: OUT.cache.jsonl.
        dry_run: Prints how many requests there are, what they may cost and the first of them, and sends nothing.
    """
    from llava_jax.evaluation.scienceqa import llm_prompts as chat
    from llava_jax.evaluation.scienceqa.score import read_problems

    known = read_problems(problems, split)
    shown = chat.draw_shots(read_problems(problems, "train") if shots else [], shots, seed)
    requests = {problem.pid: chat.question_messages(problem, shown) for problem in known}
    asked = _ask(requests, terms, cache or _beside(out), dry_run)
    if isinstance(asked, int):
        return asked
    told = {"model": terms.model, "server": terms.url, **terms.parameters, "split": split, "format": chat.FORMAT}
    told |= {"answered_as": dict(Counter(reply.model for reply in asked.replies.values()))}
    told |= {"seed": seed, "shots": [problem.pid for problem in shown]}
    told |= {"refused": [pid for pid, reply in asked.replies.items() if reply.is_refused], "failed": asked.failed}
    told["outputs"] = {pid: reply.text for pid, reply in asked.replies.items()}
    write_whole(out, json.dumps(told, indent=1) + "\n")
    log(f"{out}: {len(asked.replies):,} answers")
    return 1 if asked.failed else 0


def judge(
    answers: Annotated[Path, tyro.conf.arg(metavar="ANSWERS")],
    other: Annotated[Path, tyro.conf.arg(metavar="OTHER")],
    /,
    *,
    problems: Path,
    out: Path,
    terms: Flat[LLMSettings],
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
        terms: Whom to ask, and for how much.
        split: Which problems: test, val, or another name in pid_splits.json.
        cache: Of replies. Default: OUT.cache.jsonl.
        dry_run: Prints how many requests there are, what they may cost and the first of them, and sends nothing.
    """
    from llava_jax.evaluation.scienceqa.ensemble import combine
    from llava_jax.evaluation.scienceqa.files import Answers, read_answers
    from llava_jax.evaluation.scienceqa.llm_prompts import judge_messages
    from llava_jax.evaluation.scienceqa.score import read_problems

    ours, theirs = read_answers(answers), read_answers(other)
    known = {problem.pid: problem for problem in read_problems(problems, split)}
    differing = combine(list(known.values()), ours, theirs, judge=Answers("no judge yet", {})).differing
    log(f"the two differ on {len(differing):,} of {len(known):,} problems of split {split}")
    if not differing:
        log("no judge is needed, and nothing is written")
        return 0
    requests = {pid: judge_messages(known[pid], ours.texts[pid], theirs.texts[pid]) for pid in differing}
    asked = _ask(requests, terms, cache or _beside(out), dry_run)
    if isinstance(asked, int):
        return asked
    rows = [{"question_id": p, "text": reply.text, "model": reply.model} for p, reply in asked.replies.items()]
    write_whole(out, "".join(json.dumps(row) + "\n" for row in rows))
    log(f"{out}: {len(rows):,} answers")
    return 1 if asked.failed else 0


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.cache.jsonl")


def _ask(requests: dict[str, list[dict[str, str]]], terms: LLMSettings, cache: Path, dry_run: bool):
    """What was answered, after telling it in words. An exit code where there is nothing to write: of a dry run, which
    shows what would be asked, and of one that had to end or was answered nothing."""
    from llava_jax.llm_client.cache import read_replies
    from llava_jax.llm_client.client import Unfinished
    from llava_jax.llm_client.client import ask_llm as ask_api
    from llava_jax.llm_client.settings import by_key, estimate_cost

    if dry_run:
        name, key = next(iter(by_key(requests, terms)[0].items()))
        log("\n".join(estimate_cost(requests, terms, read_replies(cache)[0])))
        log(f"the request of {name}, with {json.dumps(terms.parameters)}:")
        for turn in by_key(requests, terms)[1][key]:
            log(f"\n[{turn['role']}]\n{turn['content']}")
        log("\nnothing was sent")
        return 0
    try:
        with progress("answered") as each:
            asked = ask_api(requests, terms, cache, say=log, each=each)
    except Unfinished as e:
        log(f"error: {e}", to_stderr=True)
        return 1
    replies = asked.replies.values()
    refused, cut = sum(r.is_refused for r in replies), sum(r.finish == "length" for r in replies)
    log(
        f"{len(replies):,} answered, {asked.sent:,} of them now; {refused:,} refused or empty, {cut:,} cut at "
        f"{terms.max_tokens:,} tokens; {len(asked.failed):,} failed"
    )
    counts = [sum(getattr(r, name) or 0 for r in replies) for name in ("input_tokens", "output_tokens")]
    log(f"{counts[0]:,} input and {counts[1]:,} output tokens" + _cost(asked, terms))
    for name, why in list(asked.failed.items())[:LISTED]:
        log(f"  {name}: {why}")
    if len(asked.failed) > LISTED:
        log(f"  and {len(asked.failed) - LISTED:,} more")
    if asked.failed:
        log("the same command asks these again, and nothing else")
    return asked if asked.replies else 1


def _cost(asked, terms: LLMSettings) -> str:
    if terms.input_price is None:
        return ""
    lost = f", and at most ${asked.lost:.4f} for tries without a reply" if asked.lost else ""
    return f": ${asked.spent:.4f}{lost}"
