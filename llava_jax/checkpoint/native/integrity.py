"""Writes and verifies per-file hashes of a checkpoint, so that damage on disk is detected before it is used.

`SHA256SUMS` in a checkpoint's folder has one line per file in the format of the tool sha256sum, so `sha256sum -c
SHA256SUMS` verifies it too. It is written before the folder gets its final name, so every complete checkpoint has
hashes. SHA-256 is in Python and every shell, and has CPU instructions.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
METADATA_FILE = "_CHECKPOINT_METADATA"  # not hashed: Orbax adds the commit time later. It must be JSON
HASH_MARKER = {"hashes": SUMS_FILE}  # in METADATA_FILE; checkpoints without it were saved before hashes existed
THREADS = 8  # hashing releases the GIL


def steps_in(checkpoints: Path) -> list[int]:
    """Returns the sorted steps of all complete checkpoints in a folder, damaged ones included. Raises OSError."""
    return sorted(int(path.name) for path in checkpoints.iterdir() if re.fullmatch(r"\d+", path.name) and path.is_dir())


def describe_checkpoint(folder: Path) -> str:
    """Returns the number of files, their total size, and when the last was written."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    when = datetime.fromtimestamp(max([s.st_mtime for s in stats], default=0)).strftime("%Y-%m-%d %H:%M:%S")
    return f"{len(stats)} files, {sum(s.st_size for s in stats):,} bytes, {when}"


def write_hashes(folder: Path) -> None:
    """Hashes every file of a checkpoint except METADATA_FILE. Raises OSError."""
    names = sorted(_files(folder) - {METADATA_FILE, SUMS_FILE})
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: _hash(folder / name), names)
        text = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    (folder / SUMS_FILE).write_text(text, encoding="utf-8")


def is_hashed(folder: Path) -> bool:
    """Returns whether a checkpoint was saved with hashes, even if they are missing now."""
    if (folder / SUMS_FILE).exists():
        return True
    try:
        return json.loads((folder / METADATA_FILE).read_bytes())["custom_metadata"]["hashes"] == SUMS_FILE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def faults(folder: Path) -> list[str]:
    """Returns one message per damaged file of a checkpoint. Without hashes, only METADATA_FILE is checked."""
    damage = _check_metadata(folder)
    if not is_hashed(folder):
        return damage
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="ascii").splitlines(keepends=True)
        expected = dict(re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line).groups()[::-1] for line in lines)
    except FileNotFoundError:
        return [*damage, f"{SUMS_FILE} is missing"]
    except (OSError, ValueError, AttributeError):  # AttributeError: a line does not match
        return [*damage, f"{SUMS_FILE} cannot be read: it is damaged"]
    present = _files(folder)  # only these are opened, whatever SUMS_FILE names

    def check(name: str) -> str | None:
        if name not in present:
            return f"{name} is missing"
        try:
            is_equal = _hash(folder / name) == expected[name]
        except OSError as e:
            return f"{name} cannot be read: {e.strerror or e}"
        return None if is_equal else f"{name} differs from what was saved"

    with ThreadPoolExecutor(THREADS) as pool:
        damage += [fault for fault in pool.map(check, sorted(expected)) if fault]
    # SUMS_FILE may be truncated. Outside the items, files may appear later, e.g. Orbax's commit marker.
    items = {name for name in present if "/" in name and not Path(name).name.startswith(".")}
    return damage + [f"{name} is not in {SUMS_FILE}" for name in sorted(items - expected.keys())]


def _check_metadata(folder: Path) -> list[str]:
    try:
        json.loads((folder / METADATA_FILE).read_bytes())
    except FileNotFoundError:
        return [f"{METADATA_FILE} is missing"]
    except (OSError, ValueError):
        return [f"{METADATA_FILE} cannot be read: it is damaged"]
    return []


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
