"""Per-file hashes of a checkpoint: damage on the disk is found before anybody trains on it.

`SHA256SUMS` in a checkpoint's folder has one line a file, as the tool sha256sum writes it, so `sha256sum -c SHA256SUMS`
checks it too. It is written before the folder gets its final name: a checkpoint that counts has its hashes. SHA-256,
because Python and every shell have it, and processors have instructions for it.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
METADATA_FILE = (
    "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit to it after we hashed: it must exist and be JSON
)
HASH_MARKER = {"hashes": SUMS_FILE}  # among what ABOUT says: without it, a checkpoint is of before there were hashes
THREADS = 8  # hashing lets go of the interpreter's lock


def steps_in(checkpoints: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, whole or damaged, in order. Raises OSError."""
    return sorted(int(path.name) for path in checkpoints.iterdir() if re.fullmatch(r"\d+", path.name) and path.is_dir())


def describe_checkpoint(folder: Path) -> str:
    """How many files, how large, and when the last was written."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    when = datetime.fromtimestamp(max([s.st_mtime for s in stats], default=0)).strftime("%Y-%m-%d %H:%M:%S")
    return f"{len(stats)} files, {sum(s.st_size for s in stats):,} bytes, {when}"


def write_hashes(folder: Path) -> None:
    """Hashes every file of a checkpoint but ABOUT. Raises OSError."""
    names = sorted(_files(folder) - {METADATA_FILE, SUMS_FILE})
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: _hash(folder / name), names)
        text = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    (folder / SUMS_FILE).write_text(text, encoding="utf-8")


def is_hashed(folder: Path) -> bool:
    """Whether a checkpoint has hashes, or had."""
    if (folder / SUMS_FILE).exists():
        return True
    try:
        return json.loads((folder / METADATA_FILE).read_bytes())["custom_metadata"]["hashes"] == SUMS_FILE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def faults(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a line for each file; empty for a whole one. Of one without hashes, only ABOUT
    can be checked."""
    damage = _check_metadata(folder)
    if not is_hashed(folder):
        return damage
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="ascii").splitlines(keepends=True)
        expected = dict(re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line).groups()[::-1] for line in lines)
    except FileNotFoundError:
        return [*damage, f"{SUMS_FILE} is missing"]
    except (OSError, ValueError, AttributeError):  # AttributeError: a line is no match
        return [*damage, f"{SUMS_FILE} cannot be read: it is damaged"]
    present = _files(folder)  # only these are opened, whatever SUMS names

    def check(name: str) -> str | None:
        if name not in present:
            return f"{name} is missing"
        try:
            is_equal = _hash(folder / name) == expected[name]
        except OSError as e:
            return f"{name} cannot be read: {e.strerror or e}"
        return None if is_equal else f"{name} is not what was saved"

    with ThreadPoolExecutor(THREADS) as pool:
        damage += [fault for fault in pool.map(check, sorted(expected)) if fault]
    # SUMS may have lost its last lines. Beside the items, files may appear later: Orbax's mark of the commit is one.
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
