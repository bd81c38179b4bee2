"""python -m llava_jax data check|show|stats: looks at a data set before training. The other verbs: data_prepare."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from llava_jax.cli.data_prepare import build, captions, scienceqa
from llava_jax.cli.flags import CPUS, DatasetFlags, Flat, Tokenizer, Workers
from llava_jax.errors import DataError
from llava_jax.output.console import log, progress
from llava_jax.output.files import date_of, make_writable, write_whole
from llava_jax.text.encode import encode_row


def check(
    *,
    dataset: Flat[DatasetFlags],
    tokenizer: str | None = None,
    max_images: int | None = None,
    report_folder: Path = Path("data-report"),
    workers: Workers = CPUS,
) -> int:
    """Reads every row, decodes every image and reports all errors and warnings.

    Prints a table and writes report.json (every finding) and report.html (with images). Exits with 1 if there are
    errors, which would stop a run or train on wrong data. Warnings (e.g. an EXIF rotation) do not change the exit code.

    Args:
        tokenizer: The model's tokenizer, as for `data show`. Without it, lengths are not checked.
        max_images: Image slots of a row. Default: no limit.
        report_folder: The folder of the two reports.
    """
    from llava_jax.data.inspection.check import Duplicates, Limits, check_rows
    from llava_jax.data.inspection.check_report import Report
    from llava_jax.images.metadata import EXIF_RULES

    dataset.check()
    source = open_data(dataset.data, dataset.image_folder)
    dataset, _, encode = _open_tokenizer(tokenizer, dataset) if tokenizer else (dataset, None, None)
    limits = Limits(encode, dataset.length, max_images)
    settings = {"tokenizer": tokenizer or "none (lengths not checked)", "template": dataset.template or "none"}
    settings |= {"length": dataset.length, "image size": dataset.image_size, "patch size": dataset.patch_size}
    settings |= {"EXIF orientation": dataset.exif}
    report, duplicates = Report(str(dataset.data), settings), Duplicates()
    make_writable(report_folder)
    check_range = partial(check_rows, source=source, limits=limits)
    for checked in _map_with_progress(check_range, len(source), workers, "checked"):
        report.rows += 1
        report.images += len(checked.images)
        report.findings += [*checked.findings, *duplicates.findings(checked)]
    write_whole(report_folder / "report.json", report.to_json())
    write_whole(report_folder / "report.html", report.to_html(source, {"data of": date_of(dataset.data)}))
    if report.findings:
        _print_table(report.summary())
    if turned := sum(report.counts().get("EXIF-rotated", {}).values()):
        log(f"{turned:,} images have an EXIF orientation: {EXIF_RULES[dataset.exif]}")
    log(report.total())
    log(f"{report_folder / 'report.json'} has every finding; report.html shows them")
    return 1 if report.errors else 0


def show(
    *,
    dataset: Flat[DatasetFlags],
    tokenizer: Tokenizer,
    count: int = 16,
    seed: int = 0,
    id: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    page: Path = Path("samples.html"),
) -> None:
    """Writes an HTML page of samples as the model gets them: image, text, supervised tokens in colour, ids, lengths.

    Args:
        count: The number of random samples.
        seed: Seed of the random samples.
        id: The id of a sample to show instead of random ones.
        page: The HTML file to write.
    """
    import numpy as np

    from llava_jax.data.inspection.samples_page import samples_page
    from llava_jax.data.rows import build_row

    dataset.check()
    source = open_data(dataset.data, dataset.image_folder)
    dataset, opened, encode = _open_tokenizer(tokenizer, dataset)
    if id:
        indices = _find_ids(source, id)
    else:
        indices = np.random.default_rng(seed).choice(len(source), min(max(count, 0), len(source)), replace=False)
        indices = sorted(indices.tolist())
    # As many image slots as fit in a row: the model's limit does not matter here.
    make_row = partial(
        build_row, tokenizer=opened, template=dataset.template, length=dataset.length, overlong="truncate",
        max_images=max(1, dataset.length // dataset.features), features=dataset.features, image_size=dataset.image_size,
        aspect=dataset.aspect, exif=dataset.exif,
    )  # fmt: skip
    make_writable(page.parent)
    title, facts = f"samples of {dataset.data}", _header_facts(tokenizer, dataset)
    write_whole(page, samples_page(title, source, indices, make_row, encode, opened, facts))
    log(f"{page}: {len(indices)} samples of {len(source):,}")


def stats(
    *,
    dataset: Flat[DatasetFlags],
    tokenizer: Tokenizer,
    count: int = 0,
    slots: int = 0,
    page: Path | None = None,
    workers: Workers = CPUS,
) -> None:
    """Prints token lengths, image sizes, the share of supervised tokens, and how full padded and packed rows would be.

    Args:
        count: The number of random samples to measure; 0: all.
        slots: Image slots of a packed row; 0: as many as fit in its length.
        page: Also writes this HTML file with plots (needs matplotlib).
    """
    import numpy as np

    from llava_jax.data.inspection.stats import Stats, measure_rows
    from llava_jax.data.inspection.stats_page import stats_page
    from llava_jax.output.plots import check_matplotlib

    dataset.check()
    if page is not None:
        check_matplotlib()
        make_writable(page.parent)
    source = open_data(dataset.data, dataset.image_folder)
    dataset, _, encode = _open_tokenizer(tokenizer, dataset)
    indices = np.arange(len(source))
    if 0 < count < len(source):
        indices = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
    measure = partial(_measure_some, measure_rows, indices, source=source, encode=encode)
    measured = list(_map_with_progress(measure, len(indices), workers, "measured"))
    result = Stats.of(measured, dataset.length, slots or max(1, dataset.length // dataset.features))
    log("\n".join(result.lines()))
    if page is not None:
        write_whole(page, stats_page(str(dataset.data), result, _header_facts(tokenizer, dataset)))
        log(f"{page}: the same with plots")


VERBS = {  # of `python -m llava_jax data`
    "check": check,
    "show": show,
    "stats": stats,
    "build": build,
    "captions": captions,
    "scienceqa": scienceqa,
}


def open_data(data: Path, image_folder: Path | None):
    """Opens DATA, by its content. Invalid rows of a JSON keep their index. Raises as `open_source` does."""
    from llava_jax.data.sources.open_source import open_source
    from llava_jax.data.sources.scienceqa import ScienceQA, is_scienceqa

    if is_scienceqa(data):
        return ScienceQA(data, image_folder=image_folder)
    return open_source(data, image_folder or "", is_strict=False)


def _open_tokenizer(tokenizer: str, dataset: DatasetFlags):
    """(dataset with a template, the tokenizer, a function of a conversation to its ids). Without a template, it is that
    of the tokenizer's chat template. Raises ConfigError if they do not match."""
    from llava_jax.checkpoint.chat_templates import chosen_template, model_chat_template
    from llava_jax.checkpoint.tokenizer import open_tokenizer, tokenizer_location  # imports jax: it also reads GGUF

    opened, path = open_tokenizer(tokenizer), tokenizer_location(tokenizer)
    if not dataset.template:
        template = chosen_template(model_chat_template(path, opened), path, "--template")
        dataset = dataclasses.replace(dataset, template=template)
        log(f"template {template}")
    encode = partial(encode_row, tokenizer=opened, template=dataset.template, features=dataset.features)
    encode((("human", ""), ("gpt", "")), 0)
    return dataset, opened, encode


def _header_facts(tokenizer: str, dataset: DatasetFlags) -> dict[str, str]:
    """The header of a page: settings by name, and the date of the data."""
    facts = {"tokenizer": tokenizer, "template": dataset.template, "length": f"{dataset.length:,}"}
    facts |= {"image size": str(dataset.image_size), "patch size": str(dataset.patch_size), "aspect": dataset.aspect}
    facts |= {"EXIF orientation": dataset.exif}
    return facts | {"data of": date_of(dataset.data)}


def _measure_some(measure_rows: Callable, indices, positions: range, **options) -> list:
    return measure_rows(indices[positions.start : positions.stop].tolist(), **options)


def _find_ids(source, ids: tuple[str, ...]) -> list[int]:
    indices, read_id = {}, getattr(source, "example_id", lambda index: source[index].id)
    for index in range(len(source)):
        with contextlib.suppress(DataError):
            if (name := read_id(index)) in ids:
                indices.setdefault(name, index)
    if missing := [name for name in ids if name not in indices]:
        raise DataError(f"no readable sample has the id {missing[0]!r}.")
    return [indices[name] for name in ids]


def _map_with_progress(work: Callable[[range], list], rows: int, workers: int, verb: str) -> Iterator:
    """The results of `work` for all rows, in order, with progress on standard error."""
    from llava_jax.data.inspection.parallel import map_rows

    done = 0
    with progress(verb, "rows", rows) as report_progress:
        for results in map_rows(work, rows, workers):
            yield from results
            done += len(results)
            report_progress(done)


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        log("  ".join(cells).rstrip())
