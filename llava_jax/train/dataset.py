"""Builds the data of a stage from its config: sources, rows, and the batches of this process."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from llava_jax.config.architectures import VisionConfig
from llava_jax.config.schema import Data, Stage
from llava_jax.data.example import Example
from llava_jax.data.mixture import Mixture, MixtureComponent
from llava_jax.data.packing import PackedRows, buckets, digest, fill_unknown_sizes, pack
from llava_jax.data.pipeline import Batches, make_batches, read_rows, steps_per_run
from llava_jax.data.rows import RowFormat, Rows, Sizes
from llava_jax.data.sources.combine import Concatenated, Subset, train_eval_split
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.sources.scenes import SceneSource, exam
from llava_jax.data.sources.scienceqa import is_scienceqa
from llava_jax.errors import ConfigError
from llava_jax.output.console import log
from llava_jax.text.templates import find_template
from llava_jax.text.tokenizer import Tokenizer

MIN_HELD_OUT = 64  # examples; the loss of fewer says little
MAX_WITHOUT_WORKERS = 10_000  # samples; measuring so few takes less time than starting worker processes
AHEAD = 512  # samples that are measured ahead


@dataclasses.dataclass(frozen=True)
class StageData:
    """held_out: None where nothing is held out. exam: questions of known kinds, for scenes only."""

    train: Rows
    held_out: Rows | None
    exam: list[Example]
    steps: int
    samples: int  # number of samples shown in all steps
    buckets: np.ndarray | None = None  # int32[rows of train], the length of each row; None: one length


def open_stage(name: str, stage: Stage, seed: int, tokenizer: Tokenizer, vision: VisionConfig) -> StageData:
    """Opens and checks the data of a stage. Raises DataError for missing or broken files, ConfigError for settings that
    contradict each other."""
    d = stage.data
    find_template(d.template)
    check_row_length(name, d, vision)
    row_format = RowFormat(
        tokenizer, d.template, d.length, d.max_images, vision.features, vision.image_size, d.aspect, d.overlong, d.exif
    )

    def rows_of(source) -> Rows:
        return Rows(source, row_format, replace=d.bad == "replace", seed=seed)

    if d.source == "scenes":
        train = SceneSource(d.scenes, seed, False, vision.image_size)
        held_out = open_held_out(stage, seed, vision.image_size)
        questions = exam(seed, vision.image_size, stage.eval.questions)
        return StageData(rows_of(train), rows_of(held_out), questions, stage.steps, stage.steps * stage.batch)
    if stage.eval.questions:
        raise ConfigError(
            f"stages.{name}.eval.questions needs data.source=scenes: only scenes have questions of known kinds"
        )
    train, held_out, parts = _open_files(d)
    rows, lengths_needed = _group_rows(name, d, rows_of(train), parts, seed)
    in_epoch = rows_of_an_epoch(rows)
    steps = stage.steps or steps_per_run(in_epoch, stage.batch, stage.epochs)
    samples = round(stage.steps * stage.batch * len(train) / in_epoch) or len(train) * stage.epochs
    out = held_out and rows_of(held_out)
    if out and d.packing == "pack":
        out = _shorten(out, stage.eval.samples, math.lcm(16, stage.loss_chunks))
    return StageData(rows, out, [], steps, samples, lengths_needed)


def open_held_out(stage: Stage, seed: int, image_size: int):
    """The source of a stage's held-out examples, None where nothing is held out. image_size: the side of scenes, in
    pixels. Raises DataError for missing or broken files, ConfigError for settings that contradict each other."""
    if stage.data.source == "scenes":
        return SceneSource(stage.data.scenes, seed, True, image_size, length=stage.eval.samples)
    return _open_files(stage.data)[1]


def check_row_length(name: str, d: Data, vision: VisionConfig) -> None:
    """Raises ConfigError where images leave no room for text in the rows of stage `name`."""
    if d.max_images * vision.features >= d.length:
        raise ConfigError(
            f"stages.{name}.data.length={d.length} leaves no room for text beside {d.max_images} images of "
            f"{vision.features} patches; raise it or lower max_images"
        )


def _shorten(rows: Rows, count: int, multiple: int) -> Rows:
    """Shortens unpacked `rows` to the longest of the first `count` samples; packed rows are far longer."""
    longest = max(int(rows.size(i)[0]) for i in range(min(count, len(rows))))
    length = min(rows.format.length, math.ceil(max(longest, 1) / multiple) * multiple)
    return dataclasses.replace(rows, format=dataclasses.replace(rows.format, length=length))


def _open(path: str, images: str, d: Data):
    """Opens one source of `d`. In a mixture, split and prompt format apply to ScienceQA folders only."""
    if d.mixture and not is_scienceqa(Path(path)):
        return open_source(path, images)
    return open_source(path, images, split=d.split, prompt_format=d.prompt_format)


def _split(source, d: Data, minimum: int) -> tuple[object, object | None]:
    return train_eval_split(source, d.held_out, minimum) if d.held_out > 0 else (source, None)


def _open_files(d: Data) -> tuple[object, object | None, list[tuple[str, int, float]]]:
    """(training source; held-out source; of a mixture, what `_open_mixture` returns of each path)."""
    if d.mixture:
        return _open_mixture(d)
    return (*_split(_open(d.path, d.image_folder, d), d, MIN_HELD_OUT), [])


def _open_mixture(d: Data) -> tuple[Concatenated, object | None, list[tuple[str, int, float]]]:
    """(training sources, concatenated; held-out split of all sources; (path, training examples, weight) of each)."""
    if (d.split or d.prompt_format) and not any(is_scienceqa(Path(path)) for path, _, _ in d.mixture):
        raise ConfigError(
            "data.mixture has no ScienceQA folder; correct its path, or leave out data.split and data.prompt_format"
        )
    minimum = math.ceil(MIN_HELD_OUT / len(d.mixture))
    # Sorted by path, so that the order in the config does not matter.
    opened = [(path, _split(_open(path, root, d), d, minimum), weight) for path, root, weight in sorted(d.mixture)]
    train = Concatenated([kept for _, (kept, _), _ in opened])
    held_out = None
    if d.held_out > 0:
        joined = Concatenated([out for _, (_, out), _ in opened])
        # Shuffled, because evaluation uses the first examples, which should come from every source.
        held_out = Subset(joined, np.argsort(np.random.Philox(0).random_raw(len(joined)), kind="stable"))
    return train, held_out, [(path, len(kept), weight) for path, (kept, _), weight in opened]


def _group_rows(
    name: str, data: Data, rows: Rows, parts: list[tuple[str, int, float]], seed: int
) -> tuple[Rows, np.ndarray | None]:
    """(rows, packed or mixed; int32 length of each, None for one length). Measures the samples where that is needed.
    parts: of a mixture, in the order of concatenation."""
    if data.packing == "none" and not data.lengths:
        return (dataclasses.replace(rows, groups=_make_mixture(parts, None, data, seed)) if parts else rows), None
    started = time.perf_counter()
    sizes = measure(rows, data.threads, data.workers)
    _check_readable(rows, sizes, parts)
    seconds, unreadable = time.perf_counter() - started, int((sizes[:, 0] == 0).sum())
    message = f"{name}: measured {len(sizes):,} samples in {seconds:.1f} s"
    message += f", {unreadable} cannot be read" if unreadable else ""
    # Source by source, so that the rows of a source do not depend on the others.
    ends = np.cumsum([count for _, count, _ in parts])[:-1]
    sizes = np.concatenate([fill_unknown_sizes(part) for part in np.split(sizes, ends)])
    rows, lengths_needed = dataclasses.replace(rows, sizes=sizes), None
    if data.packing == "pack":
        groups = _make_mixture(parts, sizes, data, seed) if parts else pack(sizes, data.length, data.max_images, seed)
        rows = dataclasses.replace(rows, groups=groups)
        count = rows_of_an_epoch(rows)
        full, images = sizes[:, 0].sum() / (count * data.length), sizes[:, 1].sum() / count
        message += f"; packed into {count:,} rows of {data.length} tokens, {100 * full:.1f}% full"
        message += f", {images:.1f} of {data.max_images} image slots used"
    else:
        lengths_needed = buckets(sizes, (*data.lengths, data.length))
        counts = [f"{(lengths_needed == length).sum():,} x {length}" for length in np.unique(lengths_needed)]
        message += f"; row lengths: {', '.join(counts)}"
    if jax.process_index() == 0:
        log(message)
    return rows, lengths_needed


def _check_readable(rows: Rows, sizes: np.ndarray, parts: list[tuple[str, int, float]]) -> None:
    """Raises DataError, that of its first sample, for a source without any readable sample."""
    first = 0
    for _, count, _ in parts or [("", len(sizes), 1.0)]:
        if not sizes[first : first + count, 0].any():
            rows.format.tokens(rows.source[first])
        first += count


def _make_mixture(parts: list[tuple[str, int, float]], sizes: np.ndarray | None, data: Data, seed: int) -> Mixture:
    """A mixture of examples, or with `sizes` of packed rows, each source packed by itself. parts: (path, examples,
    weight) of each source. sizes: int32[all examples, 2], see `measure`."""
    components, first = [], 0
    for path, count, weight in parts:
        if sizes is None:
            components.append(MixtureComponent(path, range(first, first + count), weight))
        else:
            groups = pack(sizes[first : first + count], data.length, data.max_images, seed)
            contents = digest(groups.members, groups.starts)
            # Weights count samples: the more samples a row of this source holds, the fewer of its rows are drawn.
            rows = dataclasses.replace(groups, members=groups.members + first)
            components.append(MixtureComponent(path, rows, weight * len(rows) / count, contents))
        first += count
    return Mixture(components, seed)


def rows_of_an_epoch(rows: Rows) -> int:
    """Number of rows that hold every example once. (A mixture never ends, but its components do.)"""
    return sum(len(part.source) for part in rows.groups.parts) if isinstance(rows.groups, Mixture) else len(rows)


def measure(rows: Rows, threads: int, workers: int) -> np.ndarray:
    """int32[examples, 2]: tokens and images of every example of unpacked `rows`; 0, 0 where it has to be replaced. Each
    process tokenizes a share. All of them raise DataError if an example cannot be read and `rows` replaces none."""
    replaced = dataclasses.replace(rows, replace=True)  # raising now would leave the other processes waiting
    count, processes = len(rows.source), jax.process_count()
    share = -(-count // processes)
    first = min(jax.process_index() * share, count)
    own_rows = Sizes(replaced, range(first, min(first + share, count)))
    sizes = np.zeros((share, 2), np.int32)  # the same shape on every process
    sample_sizes = read_rows(
        own_rows, 0, threads=threads, ahead=AHEAD, workers=workers if count > MAX_WITHOUT_WORKERS else 0
    )
    for i, size in enumerate(sample_sizes):
        sizes[i] = size
    sample_sizes.close()
    if processes > 1:
        sizes = np.asarray(multihost_utils.process_allgather(sizes, tiled=True))[:count]
    if not rows.replace and not sizes[:, 0].all():
        rows.size(int(np.argmin(sizes[:, 0])))
    return sizes


def training_batches(stage: Stage, data: StageData, seed: int) -> Batches:
    """The shuffled batches of this process: endless for a mixture or with `stage.steps`, else `stage.epochs` epochs."""
    groups = data.train.groups
    metadata = {"packing": digest(groups.members, groups.starts)} if isinstance(groups, PackedRows) else None
    is_mixture = isinstance(groups, Mixture)  # shuffles each source itself and never ends
    return make_batches(
        range(len(data.train)), data.train.row, batch_size=stage.batch, seed=seed, shuffle=not is_mixture,
        epochs=None if stage.steps or is_mixture else stage.epochs, process_index=jax.process_index(),
        process_count=jax.process_count(), threads=stage.data.threads, prefetch=2, workers=stage.data.workers,
        buckets=data.buckets, metadata=metadata,
    )  # fmt: skip


def data_state_of(data: StageData, batches: Batches) -> dict:
    """The iterator state for the checkpoint, as JSON values: that of the batches, and of a mixture."""
    groups = data.train.groups
    return batches.get_state() | ({"mixture": groups.state()} if isinstance(groups, Mixture) else {})


def resume_data(data: StageData, data_state: dict) -> StageData:
    """Restores a mixture, whose sources may have changed, from `data_state_of(...)`. Other data needs nothing. Raises
    ConfigError where the length of a source has changed."""
    groups = data.train.groups
    if not isinstance(groups, Mixture) or "mixture" not in data_state:
        return data
    groups = groups.resumed(data_state["mixture"], data_state["step"] * data_state["batch_size"])
    return dataclasses.replace(data, train=dataclasses.replace(data.train, groups=groups))
