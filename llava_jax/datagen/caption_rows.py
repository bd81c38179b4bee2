"""Image captions in a file of millions of rows: one pass checks and locates all rows, later ones read some of them.

The file is JSON Lines or one JSON array of {"image", "caption"}, whose other keys are kept; or the TSV of CC3M, with
caption TAB URL on each line. A row of the TSV gets an image name in the style of the released 595K selection:
GCC_train_000000000.jpg for the first line. 40 bytes a row stay in memory.

Large files are scanned once: the result is stored in a cache folder, valid for one size and modification time. A row is
checked again when it is read, so a wrong result does no harm.
"""

import array
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from llava_jax.data.sources.caption_pairs import parse_pair
from llava_jax.data.sources.json_index import MIN_BYTES_KEPT, stamp
from llava_jax.data.sources.json_scan import MAX_ROW_CHARS, scan_rows, where_is
from llava_jax.errors import DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import atomic_path, similar_name
from llava_jax.output.json_text import parse_json

BLOCK = 10_000  # rows whose noun phrases are extracted and cached together
MAX_CAPTION = 10_000  # characters; a parser's time and memory grow with the length
NO_KEY = bytes(8)
CACHED = ("is_tsv", "spans", "row_keys", "image_keys", "url_keys", "blocks")


@dataclasses.dataclass(frozen=True)
class CaptionFile:
    """A checked file. Keys are 64-bit digests, so that equal rows have equal keys in every file and order.

    spans: int64[rows, 2], the byte range of each row. row_keys: uint64[rows], of image and caption (TSV: URL and
    caption). image_keys, url_keys: uint64[rows], 0 where a row has none. blocks: the digest of the captions of each
    `BLOCK` rows.
    """

    path: Path
    is_tsv: bool
    spans: np.ndarray
    row_keys: np.ndarray
    image_keys: np.ndarray
    url_keys: np.ndarray
    blocks: list[str]

    def __len__(self) -> int:
        return len(self.spans)


def digest_8(text: str) -> bytes:
    """Returns the first 8 bytes of the text's BLAKE2b."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def open_captions(path: Path, cache: Path | None = None) -> CaptionFile:
    """Parses and checks every row, unless the folder `cache` has the result. Raises DataError with the file and the
    line or row of the first faulty one; OSError if the folder cannot be written."""
    if path.exists() and not path.is_file():  # a folder; or a pipe, which cannot be read again
        raise DataError(f"{path}: cannot be read (not a regular file). Write it to a file first.")
    try:
        with open(path, "rb") as file:
            file_stamp = stamp(file)
            cached = cache and cache / f"{digest_8(f'{path.resolve()} {file_stamp} {BLOCK}').hex()}.rows.npz"
            if cached and (content := _read_cached(path, cached)):
                return content
            if kind := wrong_kind(path):
                raise DataError(f"{path} {kind}")
            is_tsv = _is_tsv(path, file.readline(MAX_ROW_CHARS))
            file.seek(0)
            table = _CaptionTable(path)
            (_scan_tsv if is_tsv else scan_rows)(file, table)
            if stamp(file) != file_stamp:
                raise DataError(f"{path}: changed while it was read. Run the command again when the file is complete.")
    except OSError as fault:
        problem = f"{os.strerror(fault.errno)}{similar_name(path)}"
        raise DataError(f"{path}: cannot be read ({problem}). Check the path.") from None
    content = table.finish(is_tsv)
    if cached and file_stamp[0] >= MIN_BYTES_KEPT:
        cache.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.partial")  # several runs may share the folder
        with atomic_path(cached, partial), open(partial, "wb") as stream:
            np.savez(stream, **{field: getattr(content, field) for field in CACHED})
    return content


def _read_cached(path: Path, cached: Path) -> CaptionFile | None:
    """Returns a stored result; None if it is missing or damaged."""
    try:
        with np.load(cached, allow_pickle=False) as archive:
            fields = {name: archive[name] for name in CACHED}
        return CaptionFile(path, **fields | {"is_tsv": bool(fields["is_tsv"]), "blocks": fields["blocks"].tolist()})
    except Exception:  # numpy and zipfile raise anything; the file is scanned in any case
        return None


def read_captions(file: CaptionFile, block: int) -> list[str]:
    """Returns the captions of a block. Raises DataError if the file was changed since it was opened."""
    rows = range(block * BLOCK, min((block + 1) * BLOCK, len(file)))
    captions, digest = [], _block_digest()
    for row, _ in _read_rows(file, rows):
        captions.append(row["caption"].strip())
        digest.update(captions[-1].encode() + b"\0")
    if digest.hexdigest() != file.blocks[block]:
        raise _changed(file)
    return captions


def row_lines(file: CaptionFile, rows: Iterable[int]) -> Iterator[str]:
    """Yields rows as lines of JSON, with all their keys. Raises DataError if the file was changed or removed."""
    for row, text in _read_rows(file, rows):
        if file.is_tsv or "\n" in text:
            text = json.dumps(row, ensure_ascii=False)
            # A lone surrogate in another key cannot be written as UTF-8, but as the escape that it was.
            text = text if _is_utf8(text) else json.dumps(row)
        yield text + "\n"


def _changed(file: CaptionFile) -> DataError:
    return DataError(f"{file.path}: changed or removed since it was opened. Run the command again.")


def _read_rows(file: CaptionFile, rows: Iterable[int]) -> Iterator[tuple[dict, str]]:
    """Yields (row, its text). Raises DataError for a row that is not the one that was scanned."""
    try:
        with open(file.path, "rb") as stream:
            for index in rows:
                start, end = file.spans[index].tolist()
                if stream.tell() != start:
                    stream.seek(start)
                text = stream.read(end - start).decode().removeprefix("\ufeff")
                row = _tsv_row(text, index) if file.is_tsv else parse_json(text)
                key = _row_key(row["url" if file.is_tsv else "image"], row["caption"].strip())
                if key != file.row_keys[index].tobytes():
                    raise ValueError("another row")
                yield row, text
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what other bytes can raise
        raise _changed(file) from None


def _row_key(image: str, caption: str) -> bytes:
    return digest_8(f"{image}\0{caption}")


class _CaptionTable:
    """The rows of a file as they are added; for `scan_rows`."""

    def __init__(self, path: Path):
        self.path, self._blocks, self._block = path, [], _block_digest()
        self._spans, self._keys = array.array("q"), bytearray()

    def __len__(self) -> int:
        return len(self._spans) // 2

    def where(self, line: int = 0) -> str:
        return where_is(self.path, len(self), line)

    def add(self, row, where: str, start: int, end: int, line: int = 0) -> None:
        image, caption = parse_pair(row, where)
        if len(caption) > MAX_CAPTION:
            raise DataError(
                f"{where}: the caption has {len(caption):,} characters, more than {MAX_CAPTION:,}. Remove the row."
            )
        url = row.get("url")
        self._block.update(caption.encode() + b"\0")
        self._spans.extend((start, end))
        self._keys += _row_key(image, caption)
        self._keys += digest_8(image) if image != url else NO_KEY  # a TSV names no images
        self._keys += digest_8(url) if isinstance(url, str) and url else NO_KEY
        if not len(self) % BLOCK:
            self._end_block()

    def add_broken(self, fault: DataError, position: int, line: int = 0) -> None:
        raise fault

    def _end_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
        self._block = _block_digest()

    def finish(self, is_tsv: bool) -> CaptionFile:
        if len(self) % BLOCK:
            self._end_block()
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 2)
        keys = np.frombuffer(self._keys, np.uint64).reshape(-1, 3)
        return CaptionFile(self.path, is_tsv, spans, *keys.T, self._blocks)


def _is_tsv(path: Path, first_line: bytes) -> bool:
    is_json = first_line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"[", b"{"))
    return path.suffix == ".tsv" or (b"\t" in first_line and not is_json)


def _scan_tsv(file, table: _CaptionTable) -> None:
    start = 0
    while line := file.readline(MAX_ROW_CHARS):
        where = table.where(len(table) + 1)
        try:
            row = _tsv_row(line.decode().removeprefix("\ufeff"), 0)
        except UnicodeDecodeError as fault:
            raise DataError(f"{where}: not UTF-8 text (byte {fault.start} of the line). Save it as UTF-8.") from None
        except ValueError:
            raise DataError(f"{where}: expected a caption, a tab and a URL, as in the TSV of CC3M.") from None
        table.add(row | {"image": row["url"]}, where, start, start + len(line.rstrip(b"\r\n")))
        start += len(line)


def _tsv_row(line: str, index: int) -> dict:
    """Raises ValueError if the line is not a caption, a tab and a URL."""
    caption, url = (field.strip() for field in line.split("\t"))
    if not caption or "://" not in url:
        raise ValueError("no caption or no URL")
    return {"image": f"GCC_train_{index:09d}.jpg", "caption": caption, "url": url}


def _block_digest():
    return hashlib.blake2b(digest_size=16)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
