"""python -m llava_jax datagen filter: selects captions for stage 1 by their noun phrases."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.cli.flags import CPUS, Workers
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.console import log, progress
from llava_jax.output.files import date_of, make_writable, write_whole


def filter_captions(
    captions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTIONS")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    key: Literal["chunk", "lemma", "head"] = "lemma",
    spacy_model: str | None = None,
    min_count: int = 3,
    cap: int = 100,
    seed: int = 0,
    phrases: Path | None = None,
    against: Path | None = None,
    page: Path | None = None,
    workers: Workers = CPUS,
) -> int:
    """Selects captions as the paper made 595K pairs of CC3M: rare noun phrases all, frequent ones up to a cap.

    Writes the selected rows in the order of the file, as JSON Lines for `data captions`, and prints phrases and pairs
    for each of the three keys beside the published numbers. Noun phrases are cached: a stopped run resumes, and another
    key, cap or seed costs seconds.

    Args:
        captions: JSON Lines or one JSON array of {"image": ..., "caption": ...}, or the TSV of CC3M (caption, URL).
        out: The file to write. It must not exist.
        key: When two phrases are the same: chunk, lower case; lemma, base forms without determiners; head, the noun.
        spacy_model: An installed spaCy model, e.g. en_core_web_sm, as in the paper. Default: rules without spaCy.
        min_count: Captions that a phrase needs to be kept.
        cap: The number of captions drawn for a kept phrase that has more.
        seed: Seed of the draw.
        phrases: The folder of cached noun phrases, for any number of files. Default: OUT.phrases.
        against: A released selection, e.g. metadata.json of LLaVA-CC3M-Pretrain-595K: prints the rows in both.
        page: Also writes this HTML page with plots of the coverage (needs matplotlib).
    """
    from llava_jax.datagen.caption_filter import rows_in, select_captions
    from llava_jax.datagen.caption_rows import row_lines
    from llava_jax.datagen.filter_page import filter_page, phrase_rows
    from llava_jax.datagen.noun_phrases import extractor_name
    from llava_jax.datagen.phrase_cache import load_phrases
    from llava_jax.output.plots import check_matplotlib

    if min_count < 1 or cap < 1:
        raise ConfigError("--min-count and --cap must be at least 1")
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another file, or remove it first")
    extractor = extractor_name(spacy_model)
    if page is not None:
        check_matplotlib()
    folder = phrases or out.with_name(f"{out.name}.phrases")
    rows = _open(captions, folder)
    is_released = rows_in(rows, _open(against, folder)) if against else None
    for parent in {out.parent, *([page.parent] if page else [])}:
        make_writable(parent)
    if spacy_model is None:
        log("noun phrases by rules; the paper used spaCy: --spacy-model (docs/data_generation.md)", to_stderr=True)
    with progress("parsed", "captions", len(rows)) as on_progress:
        tables = load_phrases(rows, folder, spacy_model, workers, on_progress)
    options = {"min_count": min_count, "cap": cap, "seed": seed}
    selections = {name: select_captions(table, rows.row_keys, **options) for name, table in tables.items()}
    selection = selections[key]
    for line in _aligned(phrase_rows(selections, min_count)):
        log(line)
    if not len(selection.rows):
        raise ConfigError(f"no noun phrase is in {min_count} captions; nothing is written. Lower --min-count")
    if is_released is not None:
        _log_overlap(is_released, selection.rows)
    write_whole(out, "".join(row_lines(rows, selection.rows)))
    log(f"{out}: {len(selection.rows):,} of {len(rows):,} pairs, by the key {key}")
    if page is not None:
        facts = {"phrases by": extractor, "cap": str(cap), "seed": str(seed), "data of": date_of(captions)}
        title = f"selection of {captions}"
        write_whole(page, filter_page(title, key, selections, len(rows), min_count, facts))
        log(f"{page}: the same with plots")
    return 0


def _open(path: Path, cache: Path):
    """Opens a file of captions; one that cannot be used is a faulty command line (exit code 2)."""
    from llava_jax.datagen.caption_rows import open_captions

    try:
        return open_captions(path, cache)
    except DataError as fault:
        raise ConfigError(str(fault)) from None
    except OSError as fault:
        raise ConfigError(f"{cache}: cannot be written to ({fault.strerror}). Pass another --phrases.") from None


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _log_overlap(is_released, selected) -> None:
    known, both = int(is_released.sum()), int(is_released[selected].sum())
    log(
        f"--against: {known:,} of CAPTIONS are in it, {both:,} of them selected ({both / known:.1%}); "
        f"a random selection of this size would share {known * len(selected) / len(is_released):,.0f}"
    )
