"""Writes ArrayRecord shards; a build that was killed resumes and ends with the same bytes.

Shard k has the examples [k * shard_rows, (k + 1) * shard_rows) of the source, and only they decide its bytes. It gets
its final name when it is complete. Its metadata is in NAME.json until the manifest is written.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from llava_jax.data.example import id_hash
from llava_jax.data.sources.array_record import FORMAT, IDS, MANIFEST, encode_record, read_manifest
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.preprocess import load_image
from llava_jax.output.files import atomic_path, write_atomically
from llava_jax.output.json_text import parse_json

LEFT_OUT = "left_out.jsonl"
BUILD_PLAN = "building.json"  # the plan of an unfinished build; locked while a process builds
WRITER_OPTIONS = "group_size:1,uncompressed"  # one record per read, as Grain needs; images do not compress


def write_shards(
    source, out: Path, *, made_from: dict, shard_rows: int, skip_bad: bool, threads: int, log: Callable[[str], None]
) -> dict:
    """Writes the examples of `source` to `out`, resuming an unfinished build -> the manifest.

    made_from: JSON-serialisable description of the source; an unfinished build of another source is refused. threads:
    to read and decode samples. Every image is decoded once. A sample that raises DataError ends the build, or with
    `skip_bad` is left out and listed in left_out.jsonl.

    Raises ConfigError if `out` belongs to another build or another process writes it, DataError for a sample, OSError
    if the disk is full.
    """
    plan = {"from": made_from, "examples": len(source), "shard_rows": shard_rows, "skip_bad": skip_bad}
    with _locked_folder(out, plan):
        if not (out / MANIFEST).exists():
            count = -(-len(source) // shard_rows)
            shards = []
            with ThreadPoolExecutor(threads) as pool:
                for k in range(count):
                    file = out / f"shard-{k:05d}-of-{count:05d}.array_record"
                    shard = _read_complete_shard(file)
                    if shard is None:
                        rows = range(k * shard_rows, min((k + 1) * shard_rows, len(source)))
                        shard = _write(source, file, rows, skip_bad, pool, 4 * threads)
                    shards.append(shard)
                    left_out = f", {len(shard['left_out'])} left out" if shard["left_out"] else ""
                    log(f"{file.name}: {shard['records']} records, {shard['bytes'] / 1e6:,.1f} MB{left_out}")
            _finish(out, plan, shards)
        for file in out.glob("shard-*.array_record.json"):
            file.unlink()
        (out / BUILD_PLAN).unlink(missing_ok=True)
    return read_manifest(out)


@contextlib.contextmanager
def _locked_folder(out: Path, plan: dict) -> Iterator[None]:
    """Creates and locks the folder, or resumes one with the same plan."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()}
        if names and not names & {BUILD_PLAN, MANIFEST}:
            raise ConfigError(f"{out} holds other files; choose a new folder")
        handle = open(out / BUILD_PLAN, "a+", encoding="utf-8")
    except OSError as fault:
        raise ConfigError(f"{out} cannot be written ({os.strerror(fault.errno)}); choose another folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out}: another process is building it; wait until it ends, or stop it") from None
        handle.seek(0)
        text = handle.read()
        is_complete = (out / MANIFEST).exists()
        old_plan = read_manifest(out)["plan"] if is_complete else _parse_json(text)
        if old_plan is not None and old_plan != plan:
            if is_complete:
                (out / BUILD_PLAN).unlink(missing_ok=True)
            changed = [key for key in plan if old_plan.get(key) != plan[key]]
            raise ConfigError(
                f"{out} was {'built' if is_complete else 'started'} with other data or flags "
                f"({', '.join(changed)} differ); pass the same ones, or choose another folder"
            )
        if old_plan is None:  # a new build, or one that was killed within the next three lines
            handle.truncate(0)
            handle.write(json.dumps(plan))
            handle.flush()
        yield


def _parse_json(text: str) -> dict | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_complete_shard(file: Path) -> dict | None:
    """Returns the metadata of a shard that exists and has its recorded hash, else None."""
    shard_json = Path(f"{file}.json")
    if not (file.exists() and shard_json.exists()):
        return None
    shard = _parse_json(shard_json.read_text(encoding="utf-8"))
    return shard if shard and _sha256(file) == shard.get("sha256") else None


def _write(source, file: Path, rows: range, skip_bad: bool, pool: ThreadPoolExecutor, window: int) -> dict:
    with atomic_path(file, sync=True) as partial:
        partial.unlink(missing_ok=True)  # left by a build that was killed
        ids, left_out = _write_records(source, partial, rows, skip_bad, pool, window)
        shard = {
            "name": file.name, "records": len(ids), "bytes": partial.stat().st_size, "sha256": _sha256(partial),
            "ids": ids, "left_out": left_out,
        }  # fmt: skip
        # Before the shard, whose existence marks it complete.
        write_atomically(Path(f"{file}.json"), json.dumps(shard), sync=True)
    return shard


def _write_records(
    source, file: Path, rows: range, skip_bad: bool, pool: ThreadPoolExecutor, window: int
) -> tuple[list[int], list[dict]]:
    """Writes the examples `rows` of `source` -> (id hashes of the written ones, records of those left out)."""
    writer, ids, left_out = ArrayRecordWriter(str(file), WRITER_OPTIONS), [], []
    try:
        for first in range(0, len(rows), window):  # pool.map would read ahead without limit
            for record, id_or_fault in pool.map(functools.partial(_record, source), rows[first : first + window]):
                if record is not None:
                    with _full_disk_is_oserror():
                        writer.write(record)
                    ids.append(id_hash(id_or_fault))
                elif skip_bad:
                    left_out.append(id_or_fault)
                else:
                    raise DataError(f"{id_or_fault['fault']} (`--bad skip` leaves out such samples and lists them.)")
    finally:
        with _full_disk_is_oserror():
            writer.close()
    return ids, left_out


@contextlib.contextmanager
def _full_disk_is_oserror() -> Iterator[None]:
    try:
        yield
    except RuntimeError as fault:
        raise OSError(str(fault).split(";")[0]) from None


def _record(source, index: int) -> tuple[bytes | None, str | dict]:
    """Returns (record, id), or (None, {"index", "fault"})."""
    try:
        example = source[index]
        for i, image in enumerate(example.images):
            name = str(image) if isinstance(image, Path) else f"image {i}"
            try:
                load_image(image, name)
            except DataError as fault:
                raise DataError(f"sample {example.id!r}: {fault}") from None
        return encode_record(example), example.id
    except (DataError, OSError) as fault:
        return None, {"index": index, "fault": str(fault)}


def _finish(out: Path, plan: dict, shards: list[dict]) -> None:
    left_out = [fault for shard in shards for fault in shard["left_out"]]
    records = sum(shard["records"] for shard in shards)
    if not records:
        raise DataError(f"{out}: every sample is left out; the first: {left_out[0]['fault']}")
    ids = io.BytesIO()
    np.save(ids, np.array([i for shard in shards for i in shard["ids"]], np.int64))
    write_atomically(out / IDS, ids.getvalue(), sync=True)
    write_atomically(out / LEFT_OUT, "".join(json.dumps(fault) + "\n" for fault in left_out), sync=True)
    listed = [{key: shard[key] for key in ("name", "records", "bytes", "sha256")} for shard in shards]
    manifest = {
        "format": FORMAT, "records": records, "left_out": len(left_out), "ids_sha256": _sha256(out / IDS),
        "plan": plan, "shards": listed,
    }  # fmt: skip
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1), sync=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
