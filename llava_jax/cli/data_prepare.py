"""python -m llava_jax data build SRC... OUT | data captions PAIRS OUT | data scienceqa FOLDER OUT"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.console import log
from llava_jax.output.files import local_path, write_whole


def build(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC... OUT")],
    *,
    images: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    shard_rows: int = 4096,
    bad: Literal["error", "skip"] = "error",
    threads: int = 16,
) -> int:
    """Writes data and its images into ArrayRecord shards, which support fast random access.

    Each image is decoded once as a check and stored byte for byte. Shards and manifest.json appear only when they are
    complete. After a stop or kill, run the same command again: it resumes, and the result is byte-equal.

    Args:
        paths: LLaVA's JSON (Lines), Parquet, or folders of this command or TFDS, in order. Last: the folder to write.
        images: The folder or zip archive of the images: one for all SRC, or one for each in their order.
        shard_rows: Samples per shard. Aim for shards of 100 to 500 MB and at least four per host.
        bad: If an image is missing or broken: error fails; skip leaves its sample out and lists it in left_out.jsonl.
        threads: Images read and decoded in parallel.
    """
    if len(paths) < 2:
        raise ConfigError("data build needs at least two paths: SRC... OUT")
    if shard_rows < 1 or threads < 1:
        raise ConfigError("--shard-rows and --threads must be at least 1")
    *sources, out = paths
    local_path(out, "OUT")
    if len(images) not in (0, 1, len(sources)):
        raise ConfigError(f"{len(images)} --images for {len(sources)} SRC; give one, or one for each")
    from llava_jax.data.sources.combine import Concatenated
    from llava_jax.data.sources.open_source import open_source
    from llava_jax.data.write_shards import write_shards

    roots = list(images) if len(images) == len(sources) else [*(images or [""])] * len(sources)
    source = Concatenated([open_source(path, root) for path, root in zip(sources, roots, strict=True)])
    made_from = [{**_file_identity(path), "images": str(root)} for path, root in zip(sources, roots, strict=True)]
    start = time.perf_counter()
    try:
        manifest = write_shards(
            source, out, made_from=made_from, shard_rows=shard_rows, skip_bad=bad == "skip", threads=threads, log=log
        )
    except KeyboardInterrupt:
        log(f"stopped; run the same command again to resume {out}")
        raise
    except OSError as fault:  # e.g. a full disk
        message = f"{out} cannot be written ({fault.strerror or fault}); free space and run the same command to resume"
        raise DataError(message) from None
    log(
        f"{out}: {manifest['records']:,} records in {len(manifest['shards'])} shards, {manifest['left_out']:,} samples "
        f"left out ({time.perf_counter() - start:.0f} s)"
    )
    if manifest["left_out"]:
        log(f"samples left out and why: {out / 'left_out.jsonl'}")
    return 0


def captions(
    pairs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    images: Path | None = None,
    seed: int = 0,
) -> int:
    """Converts image-caption pairs to LLaVA's JSON for stage 1: a brief instruction, with the caption as its answer.

    Args:
        pairs: JSON Lines, or one JSON array, of {"image": ..., "caption": ...}.
        out: The file to write. It must not exist.
        images: The folder or zip archive of the images. If given, every image must exist.
        seed: Seed of the choice of instruction and of the image's place before or after it.
    """
    from llava_jax.data.sources.caption_pairs import caption_row, read_pairs
    from llava_jax.images.files import open_images

    if out.exists():
        raise ConfigError(f"{out} exists already; choose another file, or remove it first")
    rows = read_pairs(pairs)
    if images is not None:
        image_store = open_images(images, pairs)
        missing = [image for image, _ in rows if not _has_image(image_store, image)]
        if missing:
            raise DataError(
                f"{pairs}: {len(missing)} of {len(rows)} images are not in {images}; the first: {missing[0]!r}. "
                "Add them, or remove their lines."
            )
    _write_rows(out, [caption_row(image, caption, seed) for image, caption in rows])
    return 0


def scienceqa(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    split: str,
    prompt_format: str | None = None,
    jsonl: bool = False,
) -> int:
    """Converts a split of ScienceQA to LLaVA's JSON, as the original's converter does.

    Training does not need this file: data.path may be the ScienceQA folder (with data.split and data.prompt_format).

    Args:
        folder: The ScienceQA folder: problems.json, pid_splits.json, images.
        out: The file to write. It must not exist. Its image paths are relative to FOLDER/images.
        split: train, val, test, or another name in pid_splits.json.
        prompt_format: INPUT-OUTPUT, e.g. QCM-LEA, QCM-ALE, CQM-A, CQM-A_v1.5. Default: QCM-LEA; for --jsonl QCM-LEPA.
        jsonl: Writes the converter's other file: one {"id", "image", "instruction", "output"} per line.
    """
    from llava_jax.data.sources.scienceqa import ScienceQA, instruction

    if out.exists():
        raise ConfigError(f"{out} exists already; choose another file, or remove it first")
    source = ScienceQA(folder, split, prompt_format=prompt_format or ("QCM-LEPA" if jsonl else "QCM-LEA"))
    rows = [source.raw(index)[0] for index in range(len(source))]
    if source.path == folder and any("image" in row for row in rows):
        raise ConfigError(f"{folder}: its images are inside of Parquet, so a JSON cannot name them. Train on {folder}")
    if jsonl:
        _write_text(out, "".join(json.dumps(instruction(row)) + "\n" for row in rows), len(rows))
    else:
        _write_rows(out, rows)
    return 0


def _write_rows(out: Path, rows: list[dict]) -> None:
    _write_text(out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n", len(rows))


def _write_text(out: Path, text: str, samples: int) -> None:
    write_whole(out, text)
    log(f"{out}: {samples:,} samples")


def _has_image(images, name: str) -> bool:
    try:
        image = images.find(name, name)
    except DataError:
        return False
    return isinstance(image, bytes) or os.path.isfile(image)  # Path.is_file raises for a name that is too long


def _file_identity(path: Path) -> dict:
    """The identity of a source for the manifest, as JSON: its path, and name, size and mtime of its files."""
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.name in ("manifest.json", "dataset_info.json"))
    )
    files = files or sorted(path.glob("*.parquet"))
    return {"path": str(path), "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}
