"""The page of a run of `datagen instruct`: its numbers, examples of rejects, and random samples."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from llava_jax.datagen.prompts import KINDS
from llava_jax.datagen.quality import FAULTS
from llava_jax.datagen.report import (
    PUBLISHED_WORDS,
    QUESTION_TYPES,
    InstructRun,
    Record,
    Usage,
    answer_words,
    by_kind,
    faulty,
    first_words,
    is_exact_duplicate,
    marker_first,
    question_types,
    reasons,
    record_key,
    usage,
)
from llava_jax.datagen.sample_cards import sample_card
from llava_jax.datagen.truth import ALL, Share, Truth
from llava_jax.errors import DataError
from llava_jax.images.files import ImageFolder
from llava_jax.images.thumbnail import thumbnail
from llava_jax.output.html_page import Markup, document, element, join
from llava_jax.output.page_parts import share_bar, table, tile, tiles

EXAMPLES = 3  # of a reason, a check or a duplicate
EXAMPLE_LENGTH = 600  # characters
FIRST_WORDS = 12
IMAGE_SIDE = 512  # of a sample, in pixels
TRUTH_ROWS = {  # field of Truth: its name, what it is
    "precision": ("precision of existence", "claims that there is an object, which have a box of its category"),
    "with_captions": ("or in a caption", "the same; an object that a caption names counts too, as boxes miss objects"),
    "recall": ("recall of existence", "categories with a box that the text names, of all with a box"),
    "absence": ("absence", "claims that there is no object of a category, which has no box"),
    "count": ("counts", "numbers of objects that equal the number of boxes"),
    "at_least": ("at least", "lower bounds that the number of boxes reaches"),
    "relation": ("sides", "left, right, above, below: as the centers of the boxes lie"),
}
TRUTH_NOTE = (
    "Of all replies in the grammar, kept or not. Not checked, and in no share: vague and hedged claims, and claims "
    "that the boxes cannot decide. The intervals are 95%, as if claims were independent."
)
PAGE_NOTE = (
    "The checks describe rows. A row is dropped for a check only if --drop names it: dropping by such scores can make "
    "a model worse."
)


def report_page(
    run: InstructRun, truths: Mapping[str, Truth], images: Path | None, count: int, seed: int, facts: Mapping[str, str]
) -> str:
    """Returns the HTML page; it depends on the arguments and on the images only.

    truths: by kind, see `report.truths`. images: the image folder; None: samples show boxes without images. count,
    seed: of the random samples. facts: further entries of the header, by name.
    """
    duplicates = sum(record["duplicate_of"] is not None for record in run.parsed)
    parts = [  # title, its anchor, content, count in the table of contents
        ("Yield", "yield", _yield(run), f"{len(run.records):,}"),
        ("Not kept", "rejects", _rejects(run), f"{len(run.records) - len(run.rows):,}"),
        ("Checks of the text", "checks", _checks(run), ""),
        ("Truth", "truth", _truth(truths), ""),
        ("Words of an answer", "lengths", _lengths(run), ""),
        ("Questions", "questions", _questions(run), ""),
        ("Duplicates", "duplicates", _duplicates(run), f"{duplicates:,}"),
        ("Random samples", "samples", _samples(run, images, count, seed), f"{min(count, len(run.rows)):,}"),
    ]
    body, contents = [], []
    for title, anchor, content, number in parts:
        if content:
            body += [element("h2", title, id=anchor), *content]
            contents.append((anchor, title, number))
    settings = {"model": str(run.settings.get("model", "")), "seed": str(run.settings.get("seed", ""))}
    return document(
        "Instruction data", body, label="data generation", facts=settings | dict(facts),
        summary=_summary(run, truths), contents=contents,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- summary


def _summary(run: InstructRun, truths: Mapping[str, Truth]) -> Markup:
    requests, kept = len(run.records), len(run.rows)
    shares = {
        "rows kept": (Share(kept, requests), "requests"),
        "<image> first": (Share(marker_first(run), kept), "rows"),
    }
    if ALL in truths:
        shares["objects that exist"] = truths[ALL].precision, "claims"
        shares["counts that are right"] = truths[ALL].count, "claims"
    items = [_share_tile(label, share, noun) for label, (share, noun) in shares.items() if share.count]
    items.append(_cost_tile(kept, usage(run)))
    return tiles(items)


def _share_tile(label: str, share: Share, noun: str) -> Markup:
    low, high = share.interval
    note = f"{share.right:,} of {share.count:,} {noun}, 95% {low:.0f} to {high:.0f}"
    return tile(label, f"{share.percent:.1f}%", note, bar=share_bar(share.percent, share.interval))


def _cost_tile(kept: int, used: Usage) -> Markup:
    tokens = f"{used.input_tokens:,} input and {used.output_tokens:,} output tokens"
    if not kept:
        return tile("cost", "-", tokens)
    if used.dollars is None:
        per_row = (used.input_tokens + used.output_tokens) / kept
        return tile("tokens a row", f"{per_row:,.0f}", f"{tokens}; no prices are known")
    return tile("cost of 1,000 rows", f"${1000 * used.dollars / kept:,.2f}", f"${used.dollars:,.2f} for {tokens}")


# ---------------------------------------------------------------------------------------------------- sections


def _yield(run: InstructRun) -> list[Markup]:
    rows = [["kind", "requests", "in the grammar", "kept", "%", "kept, of requests"]]
    for kind, records in by_kind(run.records).items():
        kept = Share(sum(record["kept"] for record in records), len(records))
        parsed = sum(bool(record["pairs"]) for record in records)
        numbers = [f"{kept.count:,}", f"{parsed:,}", f"{kept.right:,}", f"{kept.percent:.1f}"]
        rows.append([kind, *numbers, share_bar(kept.percent, kept.interval)])
    return [table(rows, "yield by kind")]


def _rejects(run: InstructRun) -> list[Markup]:
    groups = reasons(run)
    if not groups:
        return [element("p", "Every reply was kept.")]
    rows = [["reason", "requests", "%"]]
    rows += [[name, f"{len(group):,}", f"{100 * len(group) / len(run.records):.1f}"] for name, group in groups.items()]
    examples = [_examples(name, [_reply(record) for record in group[:EXAMPLES]]) for name, group in groups.items()]
    return [table(rows, "reasons"), *(example for example in examples if example)]


def _checks(run: InstructRun) -> list[Markup]:
    groups, parsed = faulty(run), len(run.parsed)
    if not parsed:
        return []
    rows = [["check", "replies", "%", "95%", "what it is"]]
    for name, group in groups.items():
        share = Share(len(group), parsed)
        rows.append([name, f"{share.right:,}", f"{share.percent:.1f}", _interval(share), FAULTS[name]])
    if opinions := [record["supported"] for record in run.parsed if {True, False} & set(record["supported"])]:
        share = Share(sum(False in verdicts for verdicts in opinions), len(opinions))
        what = "a second model says that captions and boxes do not support a question and answer"
        rows.append(["unsupported", f"{share.right:,}", f"{share.percent:.1f}", _interval(share), what])
    examples = [_examples(name, [_reply(record) for record in group[:EXAMPLES]]) for name, group in groups.items()]
    note = element("p", PAGE_NOTE, class_="note")
    return [note, table(rows, "checks of the text"), *(example for example in examples if example)]


def _interval(share: Share) -> str:
    return f"{share.interval[0]:.1f} to {share.interval[1]:.1f}"


def _truth(truths: Mapping[str, Truth]) -> list[Markup]:
    kinds = [kind for kind in [*KINDS, ALL] if kind in truths]
    if not kinds:
        return []
    rows = [["claims", *kinds, "what is right"]]
    for name, (label, what) in TRUTH_ROWS.items():
        shares = [getattr(truths[kind], name) for kind in kinds]
        if any(share.count for share in shares):
            rows.append([label, *map(_share_cell, shares), what])
    rows.append(["not checked", *(_numbers(f"{truths[kind].uncertain.total():,}") for kind in kinds), ""])
    return [table(rows, "claims that boxes confirm, by kind"), element("p", TRUTH_NOTE, class_="note")]


def _share_cell(share: Share) -> Markup:
    """A share with its interval and its number of claims; empty without claims."""
    if not share.count:
        return Markup()
    return join(
        _numbers(f"{share.percent:.1f}%", f" of {share.count:,}"),
        share_bar(share.percent, share.interval),
        _numbers("", _interval(share)),
    )


def _numbers(value: str, note: str = "") -> Markup:
    """A line of a cell, which is not wrapped."""
    return element("div", join(element("b", value), element("small", note)), class_="numbers")


def _lengths(run: InstructRun) -> list[Markup]:
    rows = [["kind", "answers", "mean", "GPT-4's mean", "5%", "median", "95%"]]
    for kind, records in by_kind(run.kept).items():
        lengths = answer_words(records)
        points = [lengths[round(share * (len(lengths) - 1))] for share in (0.05, 0.5, 0.95)]
        mean = f"{sum(lengths) / len(lengths):.1f}"
        rows.append(
            [kind, f"{len(lengths):,}", mean, f"{PUBLISHED_WORDS[kind]:g}", *(f"{point:,}" for point in points)]
        )
    note = "GPT-4's mean: of the released answers to LLaVA-Bench (COCO), 30 of each kind."
    return [table(rows, "words of an answer by kind"), element("p", note, class_="note")] if len(rows) > 1 else []


def _questions(run: InstructRun) -> list[Markup]:
    types, beginnings = question_types(run), first_words(run)
    if not types:
        return []
    shown = Counter(dict(beginnings.most_common(FIRST_WORDS)))
    tables = [
        _shares("type", [(name, types[name]) for name in QUESTION_TYPES], types.total()),
        _shares("first word", [*shown.items(), ("all others", beginnings.total() - shown.total())], beginnings.total()),
    ]
    note = element("p", "Without those of descriptions, which come from a fixed list.", class_="note")
    return [note, element("div", join(*tables), class_="grid", style="--card:20rem")]


def _shares(name: str, counts: Sequence[tuple[str, int]], total: int) -> Markup:
    rows = [[name, "", "questions", "%"]]
    for label, count in counts:
        if count:
            percent = 100 * count / total
            rows.append([label, share_bar(percent), f"{count:,}", f"{percent:.1f}"])
    return table(rows, f"questions by {name}")


def _duplicates(run: InstructRun) -> list[Markup]:
    by_key = {record_key(record): record for record in run.records}
    rows, examples = [["kind", "replies", "near duplicates", "%", "of them word for word"]], []
    for kind, records in by_kind(run.parsed).items():
        pairs = [(r, by_key[r["duplicate_of"]]) for r in records if r["duplicate_of"] in by_key]
        exact, share = sum(is_exact_duplicate(*pair) for pair in pairs), Share(len(pairs), len(records))
        rows.append([kind, f"{share.count:,}", f"{share.right:,}", f"{share.percent:.1f}", f"{exact:,}"])
        texts = [f"{record_key(a)}:\n{_reply(a)}\n\n{record_key(b)}:\n{_reply(b)}" for a, b in pairs[:EXAMPLES]]
        examples.append(_examples(kind, texts))
    note = element("p", "80% or more of their runs of three words are the same as of an earlier reply.", class_="note")
    return [note, table(rows, "duplicates by kind"), *(example for example in examples if example)]


def _reply(record: Record) -> str:
    """What the teacher wrote: the pairs of a reply, or the reply that is outside of the grammar."""
    pairs = record["pairs"] or [("", record.get("reply") or "")]
    text = "\n".join(line for question, answer in pairs for line in (question, answer) if line)
    return text if len(text) <= EXAMPLE_LENGTH else f"{text[:EXAMPLE_LENGTH]} ..."


def _examples(name: str, texts: Sequence[str]) -> Markup:
    """Texts that open at a click; nothing if they are empty."""
    texts = [text for text in texts if text]
    if not texts:
        return Markup()
    blocks = (element("div", element("div", text, class_="code"), class_="example") for text in texts)
    return element(
        "details", join(element("summary", f"{name}: {len(texts)} example{'s' * (len(texts) > 1)}"), *blocks)
    )


def _samples(run: InstructRun, images: Path | None, count: int, seed: int) -> list[Markup]:
    kept, vocabulary = run.kept, run.vocabulary
    chosen = sorted(random.Random(seed).sample(range(len(kept)), min(count, len(kept))))
    folder = None if images is None else ImageFolder(images)
    cards = []
    for i in chosen:
        context = run.contexts[kept[i]["id"]]
        cards.append(sample_card(kept[i], context, vocabulary, _open_image(folder, context.image)))
    if not cards:
        return []
    legend = Markup(
        f"{element('mark', 'right', class_='good')} {element('mark', 'wrong', class_='bad')} "
        f"{element('mark', 'not checked', class_='warn')}: what the boxes say of a claim about objects"
    )
    return [element("p", legend, class_="note"), *cards]


def _open_image(folder: ImageFolder | None, name: str) -> Image.Image | None:
    """A thumbnail; None for a missing or unreadable image, or a name that leads out of the folder."""
    try:
        return None if folder is None else thumbnail(folder.find(name, name), name, IMAGE_SIDE)
    except DataError:
        return None
