"""Writes ArrayRecord shards, so that a build that was killed goes on and ends with the same bytes.

Shard k holds the examples [k * shard_rows, (k + 1) * shard_rows) of the source, and nothing else decides its bytes. It
appears under its name when it is complete; what is known of it lies beside it (NAME.json) until the manifest says it.
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

LEFT_OUT = "left_out.jsonl"
BUILD_PLAN = "building.json"  # what the build was begun from; locked while one works
WRITER_OPTIONS = "group_size:1,uncompressed"  # one record a read, as Grain wants it; images do not shrink


def write_shards(
    source, out: Path, *, made_from: dict, shard_rows: int, skip_bad: bool, threads: int, log: Callable[[str], None]
) -> dict:
    """Writes every example of `source` to `out`, or what is missing there -> the manifest.

    made_from: what the source is, fit for JSON; a folder begun from another one is not continued. threads: read and
    decode that many at a time. Every image is decoded once. One that does not decode, or any other DataError of a
    sample, ends the build, or with `skip_bad` leaves the sample out and lists it in left_out.jsonl.

    Raises ConfigError where `out` is of another build or another process is at it, DataError for a sample, OSError
    where the disk is full.
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
    """Makes the folder, or takes up one begun from the same plan, and keeps others away."""
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
            raise ConfigError(f"{out}: another process is building it; wait for its end, or stop it") from None
        handle.seek(0)
        text = handle.read()
        is_complete = (out / MANIFEST).exists()
        old_plan = read_manifest(out)["plan"] if is_complete else _parse_json(text)
        if old_plan is not None and old_plan != plan:
            if is_complete:
                (out / BUILD_PLAN).unlink(missing_ok=True)
            changed = [key for key in plan if old_plan.get(key) != plan[key]]
            raise ConfigError(
                f"{out} was {'built' if is_complete else 'begun'} with other data or flags "
                f"({', '.join(changed)} differ); give those again, or choose another folder"
            )
        if old_plan is None:  # new, or killed within the next three lines
            handle.truncate(0)
            handle.write(json.dumps(plan))
            handle.flush()
        yield


def _parse_json(text: str) -> dict | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _read_complete_shard(file: Path) -> dict | None:
    """What is known of a shard that is there and as it was written, else None."""
    shard_json = Path(f"{file}.json")
    if not (file.exists() and shard_json.exists()):
        return None
    shard = _parse_json(shard_json.read_text(encoding="utf-8"))
    return shard if shard and _sha256(file) == shard["sha256"] else None


def _write(source, file: Path, rows: range, skip_bad: bool, pool: ThreadPoolExecutor, window: int) -> dict:
    with atomic_path(file, sync=True) as partial:
        partial.unlink(missing_ok=True)  # of a build that was killed
        ids, left_out = _write_records(source, partial, rows, skip_bad, pool, window)
        shard = {
            "name": file.name, "records": len(ids), "bytes": partial.stat().st_size, "sha256": _sha256(partial),
            "ids": ids, "left_out": left_out,
        }  # fmt: skip
        # Before the shard, which says that it is there.
        write_atomically(Path(f"{file}.json"), json.dumps(shard), sync=True)
    return shard


def _write_records(
    source, file: Path, rows: range, skip_bad: bool, pool: ThreadPoolExecutor, window: int
) -> tuple[list[int], list[dict]]:
    """Writes the examples `rows` of `source` -> (the id hashes of those that were written, those left out)."""
    writer, ids, left_out = ArrayRecordWriter(str(file), WRITER_OPTIONS), [], []
    try:
        for first in range(0, len(rows), window):  # pool.map reads ahead without a bound
            for record, id_or_fault in pool.map(functools.partial(_record, source), rows[first : first + window]):
                if record is not None:
                    with _full_disk_is_oserror():
                        writer.write(record)
                    ids.append(id_hash(id_or_fault))
                elif skip_bad:
                    left_out.append(id_or_fault)
                else:
                    raise DataError(f"{id_or_fault['fault']} (`--bad skip` leaves such samples out and lists them.)")
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
    """(record, id), or (None, what is wrong)."""
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
