"""Which files of a folder are its weights: one rule for safetensors and for `.bin` files.

1. the files in the index, `model.safetensors.index.json`, if they are all there or `model.safetensors` is not
2. `model.safetensors`
3. shards without an index: `NAME-00001-of-00003.safetensors` ..., all of them
4. the only file of this kind

The others (of an earlier run, in another precision, `consolidated.safetensors` in Mistral's names, an optimizer) are
never read. They are reported with `--verbose`, and always if the folder has both 1 and 2: transformers then reads 2.
"""

import logging
import re
from pathlib import Path

from llava_jax.errors import DataError
from llava_jax.output.console import log
from llava_jax.output.files import read_object

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def weight_files(path: Path, single: str, pattern: str) -> list[Path]:
    """Returns the weights files of a checkpoint, perhaps none. path: one file, which is returned, or a folder. single:
    the name of 2 above. pattern: of all files of the kind.

    Raises DataError that names the files: for a broken index, one that names files elsewhere or missing ones, missing
    shards, and several files of which none is known to be the right one.
    """
    if path.is_file():
        return [path]
    index, whole = path / f"{single}.index.json", path / single
    every = sorted(path.glob(pattern))
    indexed = _indexed(index, missing_allowed=whole.is_file()) if index.exists() else []
    chosen = indexed or ([whole] if whole.is_file() else _shards(path, every))
    if not chosen and len(every) > 1:
        names = ", ".join(file.name for file in every)
        raise DataError(f"{path} holds several weights files and no {single} or index: {names}. Pass one of them")
    chosen = chosen or every
    ignored = [file.name for file in every if file not in chosen]
    both = index.exists() and whole.is_file() and whole not in indexed
    if ignored and (both or 0 < logging.getLogger("llava_jax").level <= logging.INFO):
        log(f"{path}: reads {_named(chosen)}; ignores {', '.join(ignored)}", to_stderr=True)
    return chosen


def _named(files: list[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} ... {files[-1].name}"


def _indexed(index: Path, missing_allowed: bool) -> list[Path]:
    """Returns the files that an index names. missing_allowed: whether it may be a left-over, then none."""
    groups = read_object(index, "which files are the weights").get("weight_map")
    if not isinstance(groups, dict) or not groups:
        raise DataError(f"{index} is not an index of weights files: it has no weight_map")
    names = list(groups.values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{index} names {name!r}, which is not a file in its folder")
        if not (index.parent / name).is_file():
            if missing_allowed:
                return []
            raise DataError(f"{index} names {name!r}, which is not a file in its folder; is the download complete?")
    return [index.parent / name for name in sorted(set(names))]


def _shards(path: Path, every: list[Path]) -> list[Path]:
    """Returns the files of the only complete or incomplete set of shards, else none."""
    sets: dict[tuple[str, str], list[Path]] = {}
    for file in every:
        if match := SHARD.fullmatch(file.stem):
            sets.setdefault((match[1], match[3]), []).append(file)
    if len(sets) != 1:
        return []
    [((name, count), files)] = sets.items()
    present = {SHARD.fullmatch(file.stem)[2] for file in files}
    missing = [n for i in range(1, int(count) + 1) if (n := f"{i:05}") not in present]
    if missing:
        file = f"{name}-{missing[0]}-of-{count}{files[0].suffix}"
        raise DataError(f"{path}: {file} is missing, {len(missing)} of {int(count)}; is the download complete?")
    return files
