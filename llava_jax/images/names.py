"""Image names that have another form than the file's: the same name is used, a similar one is only shown.

Data made on another system names files in other Unicode forms, with backslashes, URL-encoded, in another letter case,
or with the folder that is the image folder already. Folders are listed only where a name has no file.
"""

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

MAX_FOLDERS = 20  # in which an image is looked for, if the image folder should be one of them
URL = re.compile(r"(^|/)(https?|ftp|s3|gs|hf|data|file):", re.IGNORECASE)


class Listing(NamedTuple):
    """What a folder contains. names: by `_stem`, so that similar names are together. folders: the first few."""

    names: dict[str, list[str]]
    folders: list[str]


ListFolder = Callable[[str], Listing]  # of a path with slashes below the root, "" for the root; empty if there is none


def make_listing(names: Iterable[str], folders: Iterable[str]) -> Listing:
    """Collects the names of files and folders in one folder."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(names):
        by_stem.setdefault(_stem(name), []).append(name)
    return Listing(by_stem, sorted(folders)[:MAX_FOLDERS])


def list_folder(root: Path, path: str) -> Listing:
    """Returns the listing of a folder below `root`, from a cache while the folder's modification time is the same."""
    folder = os.path.join(root, path)
    try:
        return _list_folder(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return Listing({}, [])


@functools.lru_cache(maxsize=8)
def _list_folder(folder: str, changed: int) -> Listing:
    with os.scandir(folder) as entries:
        names = {entry.name: entry.is_dir() for entry in entries}
    return make_listing(names, (name for name, is_folder in names.items() if is_folder))


def same_name(name: str, listing: ListFolder) -> str | None:
    """Returns the path whose parts equal those of `name` up to their Unicode form; None unless there is exactly one."""
    path = ""
    for part in PurePosixPath(name).parts:
        form = unicodedata.normalize("NFC", part)
        options = [n for n in listing(path).names.get(_stem(part), ()) if unicodedata.normalize("NFC", n) == form]
        if part not in options and len(options) != 1:
            return None
        path = os.path.join(path, part if part in options else options[0])
    return path or None


def near_name(name: str, listing: ListFolder) -> str | None:
    """Returns the path that is probably meant by `name`, or None. It may differ in letter case, spaces, Unicode form,
    backslashes, URL-encoding, extension, and by leading folders."""
    parts = [part for part in re.split(r"[/\\]+", unquote(name)) if part.strip() not in ("", ".", "..")]
    candidates = [parts[first:] for first in range(len(parts))]
    candidates += [[folder, *parts] for folder in listing("").folders]
    return next(filter(None, (_descend(candidate, listing) for candidate in candidates)), None)


def near_file(path: Path) -> Path | None:
    """Returns the file that is probably meant by the path of a missing one, below the deepest folder that exists."""
    folder = path.parent
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    if folder == folder.parent != Path("."):  # the root of the file system
        return None
    name = near_name(os.path.relpath(path, folder), functools.partial(list_folder, folder))
    return folder / name if name and os.path.isfile(folder / name) else None


def missing_file(path: str | Path) -> str:
    """Returns that there is no file at `path`, to the end of the sentence, and the file that is probably meant."""
    if URL.search(str(path)):
        return "no such file: it is a URL, and nothing is downloaded. Download the images, and name the files."
    match = near_file(Path(path))
    return f"no such file; did you mean {str(match)!r}?" if match else "no such file."


def _descend(parts: list[str], listing: ListFolder) -> str | None:
    path = ""
    for number, part in enumerate(parts, 1):
        options = listing(path).names.get(_stem(part), [])
        alike = [name for name in options if _loose(name) == _loose(part)]
        if alike or number < len(parts):  # only the file's extension may be another
            options = alike
        if not options:
            return None
        path = os.path.join(path, part if part in options else options[0])
    return path


def _loose(name: str) -> str:
    return unicodedata.normalize("NFKC", unquote(name)).strip().casefold()


def _stem(name: str) -> str:
    return os.path.splitext(_loose(name))[0]
