"""The noun phrases of all captions of a file, extracted once.

Each block of captions has a file of its own in the cache folder, whose name is a digest of the captions and of what
extracts the phrases (the versions of spaCy and its model, or of the rules). So a stopped run resumes, rows added at the
end cost only themselves, and phrases of other captions or of another model are never used.
"""

import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from llava_jax.data.inspection.parallel import map_rows
from llava_jax.datagen.caption_rows import BLOCK, CaptionFile, read_captions
from llava_jax.datagen.noun_phrases import KEYS, extractor_name, noun_phrases
from llava_jax.errors import ConfigError
from llava_jax.output.console import log
from llava_jax.output.files import atomic_path


@dataclasses.dataclass(frozen=True)
class PhraseTable:
    """Which caption has which noun phrases, by one of `KEYS`: pairs of a row and a phrase, each pair once.

    names: the unique phrases, sorted. rows, ids: int32[pairs], row number and index in `names`, sorted by row.
    """

    names: list[str]
    rows: np.ndarray
    ids: np.ndarray


def load_phrases(
    captions: CaptionFile,
    folder: Path,
    spacy_model: str | None,
    workers: int = 0,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, PhraseTable]:
    """Returns the table of each of `KEYS`; extracts and caches the phrases of the blocks that `folder` lacks.

    workers: processes for that; 0: this one. on_progress: receives the number of finished rows. Raises ConfigError for
    a folder that cannot be written and a model that is none, DataError if the captions change meanwhile.
    """
    name = extractor_name(spacy_model)
    files = [folder / f"{_digest(name, block)}.npz" for block in captions.blocks]
    merged = folder / f"{_digest(name, *captions.blocks)}.merged.npz"
    try:
        if tables := _read_merged(merged, len(captions)):
            return tables
        folder.mkdir(parents=True, exist_ok=True)
        _extract_missing(captions, files, spacy_model, workers, on_progress)
        tables = _merge(captions, files, spacy_model)
        _write_merged(merged, tables)
        return tables
    except OSError as fault:
        problem = fault.strerror or fault
        raise ConfigError(f"{folder}: phrases cannot be cached there ({problem}). Pass another --phrases.") from None


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _extract_missing(captions, files, spacy_model, workers, on_progress) -> None:
    # Blocks of the same captions have the same file, which is made once.
    missing = list({file: block for block, file in enumerate(files) if not file.exists()}.values())
    done = len(captions) - sum(min(BLOCK, len(captions) - block * BLOCK) for block in missing)
    work = partial(_extract_some, captions, files, spacy_model, missing)
    for (rows,) in map_rows(work, len(missing), workers if len(missing) > 1 else 0, chunk=1):
        done += rows
        on_progress(done)


def _extract_some(captions, files, spacy_model, missing: list[int], indices: range) -> list[int]:
    """Extracts some of the missing blocks -> the number of rows of each."""
    return [len(_extract(captions, missing[i], files[missing[i]], spacy_model)[1]) for i in indices]


def _extract(captions: CaptionFile, block: int, file: Path, spacy_model: str | None):
    """Writes the phrases of a block to `file` and returns them as `_read` does."""
    ids, counts, index = [], [], {}
    for phrases in noun_phrases(read_captions(captions, block), spacy_model):
        ids += [index.setdefault(phrase, len(index)) for phrase in phrases]
        counts.append(len(phrases))
    ids, counts = np.array(ids, np.int64), np.array(counts, np.uint16)
    _write(file, text=_packed("\t".join(phrase) for phrase in index), ids=ids.astype(np.uint32), counts=counts)
    return list(index), counts, ids


def _packed(lines: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def _unpacked(text: np.ndarray) -> list[str]:
    return text.tobytes().decode().split("\n") if len(text) else []


def _write(file: Path, **arrays: np.ndarray) -> None:
    partial_file = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")  # several runs may share the folder
    with atomic_path(file, partial_file), open(partial_file, "wb") as stream:
        np.savez(stream, **arrays)


def _read(file: Path, rows: int) -> tuple[list[tuple[str, ...]], np.ndarray, np.ndarray] | None:
    """Returns (unique phrases, number of phrases of each caption, their indices); None for a damaged file."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            phrases = [tuple(line.split("\t")) for line in _unpacked(archive["text"])]
            ids, counts = archive["ids"].astype(np.int64), archive["counts"]
    except Exception:  # numpy and zipfile raise anything; the block is extracted again in any case
        return None
    is_whole = all(len(phrase) == len(KEYS) for phrase in phrases) and ids.max(initial=-1) < len(phrases)
    return (phrases, counts, ids) if is_whole and len(counts) == rows and counts.sum() == len(ids) else None


def _merge(captions: CaptionFile, files: list[Path], spacy_model: str | None) -> dict[str, PhraseTable]:
    index = {key: {} for key in KEYS}  # phrase -> id
    pairs = {key: [np.empty(0, np.int64)] for key in KEYS}  # int64: row << 32 | id
    for block, file in enumerate(files):
        size = min(BLOCK, len(captions) - block * BLOCK)
        content = _read(file, size)
        if content is None:
            log(f"{file}: damaged; its {size:,} captions are read again", to_stderr=True)
            content = _extract(captions, block, file, spacy_model)
        phrases, counts, local_ids = content
        rows = np.repeat(np.arange(block * BLOCK, block * BLOCK + size), counts)
        for key, texts in zip(KEYS, zip(*phrases, strict=True), strict=False):  # no texts where a block has no phrase
            known = index[key]
            ids = np.array([known.setdefault(text, len(known)) if text else -1 for text in texts])
            phrase_ids = ids[local_ids]
            pairs[key].append(np.unique((rows << 32 | phrase_ids)[phrase_ids >= 0]))
    return {key: _table(index[key], np.concatenate(pairs[key])) for key in KEYS}


def _table(index: dict[str, int], pairs: np.ndarray) -> PhraseTable:
    """Sorts the phrases, so that their order does not depend on that of the rows."""
    names = sorted(index)
    position = np.empty(len(names), np.int32)
    position[[index[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return PhraseTable(names, (pairs >> 32).astype(np.int32), position[pairs & 0xFFFFFFFF])


def _write_merged(file: Path, tables: dict[str, PhraseTable]) -> None:
    arrays = {}
    for key, table in tables.items():
        arrays |= {f"{key}_names": _packed(table.names), f"{key}_rows": table.rows, f"{key}_ids": table.ids}
    _write(file, **arrays)


def _read_merged(file: Path, rows: int) -> dict[str, PhraseTable] | None:
    """Returns the merged result; None if it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            tables = {
                key: PhraseTable(_unpacked(archive[f"{key}_names"]), archive[f"{key}_rows"], archive[f"{key}_ids"])
                for key in KEYS
            }
    except Exception:  # as in `_read`
        return None
    is_whole = all(
        len(table.rows) == len(table.ids)
        and table.rows.max(initial=-1) < rows
        and table.ids.max(initial=-1) < len(table.names)
        for table in tables.values()
    )
    return tables if is_whole else None
