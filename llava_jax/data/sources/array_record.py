"""ArrayRecord shards of examples: the record format, and a folder of shards as a source.

    record = SHA-256 of the rest (32 bytes) | length of the head (4 bytes, little endian) | head | concatenated images
    head   = UTF-8 JSON: a row as in `llava_row`, with "sizes" (bytes of each image) and "kind"

`data build` writes a folder of `shard-00000-of-00012.array_record` and so on, `ids.npy` (int64, the `id_hash` of each
record), `left_out.jsonl` (index and fault of each sample that was left out) and, last, `manifest.json`.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import DataError
from llava_jax.output.json_text import parse_json

MANIFEST, IDS, FORMAT = "manifest.json", "ids.npy", 1
_REPAIR_HINT = "Copy it again, or rebuild it."


def encode_record(example: Example) -> bytes:
    """Encodes an example, with image files byte for byte and PIL images as PNG. OSError for an unreadable file."""
    images = [_image_bytes(image) for image in example.images]
    row = {
        "id": example.id,
        "images": [image.name if isinstance(image, Path) else f"image {i}" for i, image in enumerate(example.images)],
        "conversations": [{"from": role, "value": text} for role, text in example.turns],
        "sizes": [len(image) for image in images],
        "kind": example.kind,
    }
    head = json.dumps(row, ensure_ascii=False).encode()
    body = b"".join([len(head).to_bytes(4, "little"), head, *images])
    return hashlib.sha256(body).digest() + body


def decode_record(record: bytes, where: str) -> Example:
    """Decodes a record. Raises DataError, starting with `where`, for a damaged or foreign record."""
    body = memoryview(record)[32:]
    if hashlib.sha256(body).digest() != record[:32]:
        raise DataError(f"{where}: its hash does not match its content. {_REPAIR_HINT}")
    try:
        offset = 4 + int.from_bytes(body[:4], "little")
        row = parse_json(bytes(body[4:offset]))
        sizes, kind = row["sizes"], str(row["kind"])
        row_id, turns, names = parse_row(row, where)
        images = []
        for size in sizes:
            images.append(bytes(body[offset : offset + size]))
            offset += size
        if offset != len(body) or len(sizes) != len(names) or min(sizes, default=0) < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where}: not a record of this format. Make the shards with `data build`.") from None
    return Example(row_id, turns, tuple(images), kind)


def _image_bytes(image: Path | bytes | Image.Image) -> bytes:
    if isinstance(image, Path):
        return image.read_bytes()
    if isinstance(image, bytes):
        return image
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


class ArrayRecordSource:
    """The shards of `data build` as a source. Images are returned as bytes; each record is checked when it is read.

    The constructor raises DataError for a missing manifest (an incomplete build), and for a shard that is missing or
    has another size. Reading raises DataError with the shard and the record number.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        shards = self.manifest["shards"]
        for shard in shards:
            file = self.path / shard["name"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                problem = "missing" if size is None else f"{size:,} bytes long instead of {shard['bytes']:,}"
                raise DataError(f"{file}: {problem}. {_REPAIR_HINT}")
        self._ends = np.cumsum([shard["records"] for shard in shards])
        # With known counts, no shard is opened before it is read.
        files = [_FileInstruction(str(self.path / s["name"]), 0, s["records"]) for s in shards]
        self._records = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        shard_index = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.manifest["shards"][shard_index]
        where = f"{self.path / shard['name']}: record {index - int(self._ends[shard_index]) + shard['records']}"
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, IndexError, OSError) as fault:
            raise DataError(f"{where} cannot be read ({str(fault).splitlines()[0][:120]}). {_REPAIR_HINT}") from None
        return decode_record(record, where)

    def id_hashes(self) -> np.ndarray:
        """Returns int64[n], the `id_hash` of every id. Raises DataError if ids.npy does not match the manifest."""
        file = self.path / IDS
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.manifest["ids_sha256"]:
            raise DataError(f"{file}: missing or damaged. {_REPAIR_HINT}")
        return np.load(io.BytesIO(data), allow_pickle=False)


class _FileInstruction:
    """A FileInstruction of ArrayRecordDataSource."""

    def __init__(self, filename: str, skip: int, take: int):
        self.filename, self.skip, self.take, self.examples_in_shard = filename, skip, take, take


def read_manifest(folder: Path) -> dict:
    """Returns the manifest of a complete build. Raises DataError if it is missing, damaged or of another version."""
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
        names = [Path(shard["name"]) for shard in manifest["shards"]]
        has_counts = all(type(s[key]) is int for s in manifest["shards"] for key in ("records", "bytes"))
        has_counts = has_counts and all(0 <= s["records"] <= s["bytes"] for s in manifest["shards"])
        is_whole = manifest.keys() >= {"format", "records", "left_out", "ids_sha256", "plan"}
    except FileNotFoundError:
        raise DataError(f"{folder}: no {MANIFEST}: the build is incomplete. Run the same `data build` again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: cannot be read. {_REPAIR_HINT}") from None
    if manifest.get("format") != FORMAT:
        raise DataError(f"{file}: has format {manifest.get('format')!r}, but this version reads {FORMAT}. Rebuild it.")
    is_inside = all(name.name == str(name) for name in names)  # in the folder itself
    if not (has_counts and is_whole and names and is_inside):
        raise DataError(f"{file}: is incomplete, lists no shards, or files outside of the folder. {_REPAIR_HINT}")
    return manifest
