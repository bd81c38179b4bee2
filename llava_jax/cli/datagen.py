"""python -m llava_jax datagen instruct CONTEXTS OUT | scenes OUT | report OUT: instruction data by a chat model."""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro

from llava_jax.cli.datagen_filter import filter_captions
from llava_jax.cli.flags import CPUS, Flat, Workers
from llava_jax.cli.llm_result import log_result
from llava_jax.errors import ConfigError
from llava_jax.llm_client.settings import LLMSettings
from llava_jax.output.console import log, progress
from llava_jax.output.files import write_whole

# Long texts are constants, because tyro keeps the line breaks of a docstring.
SIZE_HELP = "How many images get a row of this kind: a number, or with a point a share (0.5) of all that can."
CONTEXTS_HELP = (
    "COCO's captions_*.json (with instances_*.json beside it), the released caps_boxes_*.jsonl, or any JSON Lines of "
    '{"image", "captions"[, "boxes"][, "id"]}.'
)
DROP_HELP = (
    "Rows that fail one of these checks are not kept: empty, refusal, meta-reply, source-leak, roles, too-short, "
    "too-long, language, duplicate, false-claim (about objects with boxes), unsupported (with --verify-model). Replies "
    "outside of the grammar are never kept."
)
Size = Annotated[int | float, tyro.conf.arg(help=SIZE_HELP)]


@dataclasses.dataclass(frozen=True)
class OpinionFlags:
    """The second model."""

    verify_model: str | None = None
    """Another model of the server, which is asked whether captions and boxes support each question and answer."""
    verify_input_price: float | None = None
    """US dollars per million input tokens of this model. Default: --input-price."""
    verify_output_price: float | None = None
    """US dollars per million output tokens of this model. Default: --output-price."""

    def settings(self, llm: LLMSettings) -> LLMSettings | None:
        """The settings of the second model; None without one."""
        if self.verify_model is None:
            return None
        prices = {"input_price": self.verify_input_price, "output_price": self.verify_output_price}
        prices = {name: price for name, price in prices.items() if price is not None}
        tokens = llm.max_tokens if llm.reasoning else 8
        return dataclasses.replace(llm, model=self.verify_model, temperature=0.0, max_tokens=tokens, **prices)


def instruct(
    contexts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONTEXTS", help=CONTEXTS_HELP)],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    llm: Flat[LLMSettings] = LLMSettings(tyro.MISSING, temperature=0.2, max_tokens=1024),  # noqa: B008
    conversation_rows: Size = 1.0,
    detail_rows: Size = 1.0,
    reasoning_rows: Size = 1.0,
    instances: Path | None = None,
    exclude: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    shots: Path | None = None,
    seed: int = 0,
    drop: Annotated[tuple[str, ...], tyro.conf.arg(help=DROP_HELP)] = (),
    avoidance: float = 0.0,
    opinion: Flat[OpinionFlags] = OpinionFlags(),  # noqa: B008
    limit: int | None = None,
    batch: bool = False,
    dry_run: bool = False,
) -> int:
    """Makes LLaVA's instruction data from captions and boxes with a chat model, as the paper did with GPT-4.

    Each image becomes up to three rows: a conversation (from its captions), a detailed description and a question that
    needs reasoning (from captions and boxes). OUT/instruct.json holds the rows that were kept, OUT/checks.jsonl says of
    every request what became of it. Every reply is on disk before it is used: the same command resumes and pays for no
    reply again. Exits with 1 if a request has no reply.

    Args:
        out: The folder to write.
        llm: The chat model and the cost limit.
        instances: COCO's boxes, if they are not beside its captions.
        exclude: Files that name images to leave out, by line or as JSON Lines with "image", e.g. an evaluation set.
        shots: A folder of other prompts, laid out as the original's playground/data/prompts.
        seed: Seed of the choice of images, of the questions of descriptions, and of the position of <image>.
        avoidance: The share of conversations that get a question about an absent object, answered so. Needs boxes.
        opinion: The second model.
        limit: Sends only this many requests, the first in the order of CONTEXTS. Without it the rest follows.
        batch: Uses OpenAI's Batch API: half the price, within 24 hours. If stopped, the same command collects.
        dry_run: Prints the number of requests, their estimated cost and the first of each kind. Sends nothing.
    """
    from llava_jax.datagen import prompts
    from llava_jax.datagen.assemble import RowOptions, vocabulary_of
    from llava_jax.datagen.avoidance import AbsentObjects
    from llava_jax.datagen.context_files import read_contexts, read_excluded
    from llava_jax.datagen.instruct import contexts_text, open_folder, plan_requests, without_excluded
    from llava_jax.llm_client.response import import_openai, read_api_key

    options = RowOptions(seed, drop, avoidance)
    if limit is not None and limit < 1:
        raise ConfigError("--limit must be at least 1")
    images = read_contexts(contexts, instances)
    known = without_excluded(images, set().union(*map(read_excluded, exclude)))
    sizes = {"conversation": conversation_rows, "detail": detail_rows, "reasoning": reasoning_rows}
    requests, candidates = plan_requests(known, sizes, seed)
    counts = Counter(request.kind for request in requests)
    log(f"{contexts}: {len(images):,} images, {len(images) - len(known):,} excluded")
    log("rows to make: " + ", ".join(f"{counts[k]:,} {k} (of {candidates[k]:,} images)" for k in prompts.KINDS))
    if not requests:
        raise ConfigError("no rows to make: detail and reasoning need boxes, and --conversation-rows is 0")
    teacher = prompts.read_prompts(shots or prompts.OUR_SHOTS, [kind for kind in prompts.KINDS if counts[kind]])
    text, sent = contexts_text(requests), requests[:limit]
    messages = {r.id: prompts.request_messages(teacher[r.kind], r.context, r.kind) for r in sent}
    if dry_run:
        _log_plan(messages, sent, llm, out, batch, opinion)
        return 0
    settings = {
        "model": llm.model, **llm.parameters, "seed": seed, "kinds": {kind: counts[kind] for kind in prompts.KINDS},
        "contexts_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "prompts_sha256": prompts.prompts_hash(teacher), "server": llm.url,
        "rows": {"drop": options.drop, "avoidance": avoidance, "verify_model": opinion.verify_model},
        "prices": {"input": llm.input_price, "output": llm.output_price},
    }  # fmt: skip
    import_openai()
    read_api_key(llm)  # before anything is written
    open_folder(out, json.loads(json.dumps(settings)), text)
    objects = AbsentObjects(known, vocabulary_of(known))
    return _run(out, sent, messages, llm, opinion.settings(llm), options, objects, batch)


def _run(out: Path, requests: list, messages: dict, llm: LLMSettings, second, options, objects, batch: bool) -> int:
    """Gets the replies and writes the rows. Returns the exit code. A run that stops early writes the rows so far."""
    from llava_jax.datagen.assemble import ROWS, parsed_pairs, row_records, write_rows
    from llava_jax.datagen.instruct import LEDGER
    from llava_jax.datagen.second_opinion import opinion_requests
    from llava_jax.llm_client.batch import ask_batches
    from llava_jax.llm_client.cache import read_replies
    from llava_jax.llm_client.client import Unfinished, ask_llm
    from llava_jax.llm_client.settings import deduplicate

    ask = ask_batches if batch else ask_llm
    opinions, spent, stopped = {}, 0.0, None

    def replies_to(messages: dict, settings: LLMSettings, verb: str) -> dict:
        nonlocal spent, stopped
        try:
            with progress(verb) as on_progress:
                result = ask(messages, settings, out / LEDGER, spent_before=spent, log=log, on_progress=on_progress)
        except Unfinished as fault:
            stopped = fault
            log(f"error: {fault}", to_stderr=True)
            stored, _ = read_replies(out / LEDGER)
            return {name: stored[key] for name, key in deduplicate(messages, settings)[0].items() if key in stored}
        log_result(result, settings)
        spent += result.spent + result.lost
        return result.replies

    replies = replies_to(messages, llm, "answered")
    if second is not None and stopped is None:
        questions = {}
        for request in requests:
            pairs, _ = parsed_pairs(request, replies.get(request.id), options.seed)
            questions |= opinion_requests(request.id, request.context, pairs)
        if questions:
            opinions = replies_to(questions, second, "verified")
    with progress("checked", "rows", len(requests)) as on_progress:
        records = row_records(requests, replies, opinions, options, objects, on_progress)
    kept = write_rows(out, requests, records, options.seed)
    _log_rows(records, kept)
    log(f"{out / ROWS}: {kept.total():,} rows of {len(records):,} requests")
    return 1 if stopped is not None or len(replies) < len(requests) else 0


def _log_rows(records: list[dict], kept: Counter) -> None:
    """Logs the number of rows by kind, and why the others were not kept."""
    for kind, count in Counter(record["kind"] for record in records).items():
        log(f"{kind}: {kept[kind]:,} of {count:,} kept")
    for reason, count in Counter(record["reason"] for record in records if not record["kept"]).most_common():
        log(f"  not kept, {reason}: {count:,}")


def _log_plan(messages: dict, requests: list, llm: LLMSettings, out: Path, batch: bool, opinion: OpinionFlags) -> None:
    """Logs what a run would send and cost, and the first request of each kind."""
    from llava_jax.datagen.instruct import LEDGER
    from llava_jax.llm_client.cache import read_replies
    from llava_jax.llm_client.settings import estimate_cost

    log("\n".join(estimate_cost(messages, llm, read_replies(out / LEDGER)[0], batch)))
    if opinion.verify_model is not None:
        log(f"besides, one request to {opinion.verify_model} for each question and answer of the replies")
    first: dict[str, str] = {}
    for request in requests:
        first.setdefault(request.kind, request.id)
    for kind, row_id in first.items():
        log(f"\nthe first request for {kind}, {row_id}, with {json.dumps(llm.parameters)}:")
        for turn in messages[row_id]:
            log(f"\n[{turn['role']}]\n{turn['content']}")
    log("\nnothing was sent")


def scenes(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    count: int = 1000,
    seed: int = 0,
    image_size: int = 224,
    held_out: bool = False,
) -> int:
    """Writes synthetic scenes as contexts, to try `datagen instruct` without a data set: images whose captions and
    boxes are exact.

    Writes OUT/contexts.jsonl, the CONTEXTS of `instruct`, and OUT/images.

    Args:
        out: The folder to write. It must not exist.
        count: The number of scenes.
        seed: Seed of the scenes.
        image_size: The side of the images in pixels.
        held_out: Scenes that never occur among those of training.
    """
    from llava_jax.data.sources import scene_world
    from llava_jax.datagen.contexts import context_record
    from llava_jax.datagen.scene_contexts import scene_context

    if count < 1 or image_size < 8:
        raise ConfigError("--count must be at least 1, --image-size at least 8")
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder, or remove it first")
    lines = []
    try:
        (out / "images").mkdir(parents=True)
        for index in range(count):
            scene = scene_world.draw_scene(seed, index, held_out)
            context = scene_context(scene, seed, index, held_out)
            scene_world.render_scene(scene, image_size).save(out / "images" / context.image)
            lines.append(json.dumps(context_record(context)) + "\n")
    except OSError as fault:
        raise ConfigError(f"{out}: cannot be written ({fault.strerror or fault}). Remove it and try again.") from None
    write_whole(out / "contexts.jsonl", "".join(lines))  # last: it marks the folder as complete
    log(f"{out}: {count:,} scenes")
    return 0


def report(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    images: Path | None = None,
    samples: int = 24,
    seed: int = 0,
    page: Path | None = None,
    workers: Workers = CPUS,
) -> int:
    """Writes an HTML page on what `instruct` made: yield, cost, rejects, checks, truth against boxes, random samples.

    Prints the truth table too. The page is one file, which can be shared: it loads nothing and runs no script.

    Args:
        out: The folder of `datagen instruct`.
        images: The image folder. Without it, samples show their boxes only.
        samples: The number of random samples.
        seed: Seed of the random samples.
        page: The HTML file to write. Default: OUT/report.html.
    """
    from llava_jax.datagen.report import read_run, truths
    from llava_jax.datagen.report_page import report_page
    from llava_jax.datagen.truth import truth_lines
    from llava_jax.output.files import date_of

    if samples < 0:
        raise ConfigError("--samples must not be negative")
    if images is not None and not images.is_dir():
        raise ConfigError(f"--images {images} is no folder")
    run = read_run(out)
    with progress("checked", "replies", len(run.parsed)) as on_progress:
        measured = truths(run, workers, on_progress)
    log("\n".join(truth_lines(measured)))
    page, facts = page or out / "report.html", {"folder": str(out), "data of": date_of(out / "instruct.json")}
    write_whole(page, report_page(run, measured, images, samples, seed, facts))
    log(f"{page}: {len(run.rows):,} rows of {len(run.records):,} requests")
    return 0


VERBS = {
    "instruct": instruct,
    "report": report,
    "filter": filter_captions,
    "scenes": scenes,
}  # of `python -m llava_jax datagen`
