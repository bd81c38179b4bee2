"""python -m llava_jax data build SRC... OUT, data captions PAIRS OUT, and data scienceqa FOLDER OUT"""

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.console import log
from llava_jax.output.files import write_whole


def build(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC... OUT")],
    *,
    images: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    shard_rows: int = 4096,
    bad: Literal["error", "skip"] = "error",
    threads: int = 16,
) -> int:
    """Packs data and its images into ArrayRecord shards, which are read in any order at full speed.

    Each image goes in byte for byte, after it was decoded once. A shard appears when it is complete, manifest.json when
    all are. Stopped or killed at any point, the same command goes on, and ends with the same bytes.

    Args:
        paths: What to read, one behind the other: LLaVA's JSON, Parquet, folders that this command or TFDS made. Last,
            the folder to write.
        images: The folder or zip archive of the images: one for all SRC, or one for each in their order.
        shard_rows: Samples per shard. Best are shards of 100 to 500 MB, and at least four for each host.
        bad: What becomes of a sample whose image is missing or does not decode: it ends the build, or it is left out
            and listed in OUT/left_out.jsonl.
        threads: Images read and decoded at a time.
    """
    if len(paths) < 2:
        raise ConfigError("data build takes at least two paths: SRC... OUT")
    if shard_rows < 1 or threads < 1:
        raise ConfigError("--shard-rows and --threads must be at least 1")
    *sources, out = paths
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
        log(f"stopped; the same command continues {out}")
        return 130
    except OSError as fault:  # a full disk, say
        raise DataError(f"{out} cannot be written ({fault.strerror or fault}); the same command continues it") from None
    log(
        f"{out}: {manifest['records']:,} records in {len(manifest['shards'])} shards, {manifest['left_out']:,} samples "
        f"left out ({time.perf_counter() - start:.0f} s)"
    )
    if manifest["left_out"]:
        log(f"left out, with their faults: {out / 'left_out.jsonl'}")
    return 0


def captions(
    pairs: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    *,
    images: Path | None = None,
    seed: int = 0,
) -> int:
    """Makes LLaVA's chat.json for stage 1 of image-caption pairs: a brief instruction, the caption as its answer.

    Args:
        pairs: JSON Lines, or one JSON array, of {"image": ..., "caption": ...}.
        out: The file to write, which does not exist yet.
        images: The folder or zip archive of the images, to check that every image is there.
        seed: Together with image and caption it decides which instruction is used, and whether the image stands before
            or behind it.
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
                "Bring them, or remove their lines."
            )
    _write_rows(out, [caption_row(image, caption, seed) for image, caption in rows])
    return 0


def scienceqa(
    folder: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    *,
    split: str,
    prompt_format: str | None = None,
    jsonl: bool = False,
) -> int:
    """Makes LLaVA's JSON of a split of ScienceQA, as the original's converter does. Training needs no such file: it
    takes the folder itself (data.path, data.split, data.prompt_format).

    Args:
        folder: ScienceQA's: problems.json, pid_splits.json, images.
        out: The file to write, which does not exist yet. Its image paths are below FOLDER/images.
        split: train, val, test, or another name in pid_splits.json.
        prompt_format: INPUT-OUTPUT, such as QCM-LEA, QCM-LEPA, QCM-ALE, CQM-A; or CQM-A_v1.5, the layout of v1.5. Where
            this is not given QCM-LEA, with --jsonl QCM-LEPA.
        jsonl: Writes the converter's other file: an object {"id", "image", "instruction", "output"} a line.
    """
    from llava_jax.data.sources.scienceqa import ScienceQA, instruction

    if out.exists():
        raise ConfigError(f"{out} exists already; choose another file, or remove it first")
    source = ScienceQA(folder, split, prompt_format=prompt_format or ("QCM-LEPA" if jsonl else "QCM-LEA"))
    rows = [source.raw(index)[0] for index in range(len(source))]
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
    return isinstance(image, bytes) or image.is_file()


def _file_identity(path: Path) -> dict:
    """What tells this data from other data, fit for JSON: path, and size and time of its file or files."""
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.name in ("manifest.json", "dataset_info.json"))
    )
    files = files or sorted(path.glob("*.parquet"))
    return {"path": str(path), "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]}
