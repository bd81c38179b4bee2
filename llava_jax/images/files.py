"""Finds the images that a data set names, below a folder or in a zip archive. The names are not trusted."""

import contextlib
import os
import posixpath
import threading
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from llava_jax.errors import DataError
from llava_jax.images.names import Listing, list_folder, make_listing, near_name, same_name

MAX_BYTES = 128 << 20  # of an unpacked entry; a BMP of 33 million pixels has 100 MB
# Python unpacks other methods a whole chunk at a time, however large it is.
COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def below_folder(image: str, folder: Path, where: str) -> Path:
    """Returns the path of an image below the resolved `folder`; the file need not exist. Raises DataError, starting
    with `where`, for a path outside of the folder (by "..", absolute, or by a symbolic link)."""
    try:
        path = (folder / image).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of symbolic links, a NUL byte
        path = None
    if path is None or not path.is_relative_to(folder):
        name = near_name(image, partial(list_folder, folder))
        near = f"; did you mean {name!r} below it?" if name else "."
        raise DataError(
            f"{where}: image {image!r} is outside of {folder}{near} Move or mount the images below it "
            "(symbolic links must not leave it), or pass a parent folder.",
            "outside the folder",
        )
    return path


class ImageFolder:
    """Images as files below a folder."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def find(self, name: str, where: str) -> Path:
        """See `below_folder`. If there is no such file, but exactly one of the same name in another Unicode form, that
        one is returned."""
        path = below_folder(name, self.root, where)
        if not name.isascii() and not path.exists():
            same = same_name(name, partial(list_folder, self.root))
            path = below_folder(same, self.root, where) if same else path
        return path

    def has(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""
        return os.path.isfile(self.root / name)


class ImageZip:
    """Images as entries of a zip archive; nothing is unpacked to disk. Safe for threads; a pickled copy reopens it."""

    def __init__(self, path: Path):
        self.path, self._archive, self._index, self._lock = path, None, None, threading.Lock()
        self._open()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.path, self._archive, self._index, self._lock = state["path"], None, None, threading.Lock()

    def _open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._archive is None:
                try:
                    self._archive = zipfile.ZipFile(self.path)
                except (OSError, zipfile.BadZipFile) as fault:
                    raise DataError(f"{self.path}: not a readable zip archive ({fault}). Pack it again.") from None
            return self._archive

    def find(self, name: str, where: str) -> bytes:
        """Returns the bytes of an image. Raises DataError, starting with `where`, for an entry that is missing,
        damaged, encrypted or larger than MAX_BYTES. If there is no such entry, but exactly one whose name differs in
        its Unicode form, its encoding, backslashes or a leading "./", that one is read."""
        archive, where = self._open(), f"{where}: image {name!r} in {self.path}"
        entry = archive.NameToInfo.get(name) or self._same_entry(name)
        if entry is None:
            near = near_name(name, self._listing)
            near = f"; did you mean {near!r}?" if near in self._indexed().entries else "."
            raise DataError(f"{where}: no such entry{near} Use the names that `unzip -l` prints.", "missing")
        if entry.file_size > MAX_BYTES:
            raise DataError(f"{where}: unpacks to {entry.file_size:,} bytes, more than {MAX_BYTES:,}.", "extreme size")
        if entry.flag_bits & 1 or entry.compress_type not in COMPRESSION_METHODS:
            raise DataError(f"{where}: encrypted, or compressed by a rare method. Use plain `zip`.", "damaged")
        try:
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # the header may understate the size
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as fault:
            raise DataError(f"{where}: damaged ({fault}). Pack it again.", "damaged") from None

    def has(self, name: str) -> bool:
        """Whether there is an entry of exactly this name."""
        return name in self._open().NameToInfo

    def _same_entry(self, name: str) -> zipfile.ZipInfo | None:
        path = same_name(name, self._listing)
        entries = self._indexed().entries.get(path, []) if path else []
        return entries[0] if len(entries) == 1 else None

    def _listing(self, folder: str) -> Listing:
        return self._indexed().folders.get(folder, Listing({}, []))

    def _indexed(self) -> "_ZipIndex":
        if self._index is None:  # only where a name has no entry
            self._index = _index_of(self._open())
        return self._index


class _ZipIndex(NamedTuple):
    """The entries of an archive by their path, as it should be written, and what each folder contains."""

    entries: dict[str, list[zipfile.ZipInfo]]
    folders: dict[str, Listing]


def _index_of(archive: zipfile.ZipFile) -> _ZipIndex:
    entries: dict[str, list[zipfile.ZipInfo]] = {}
    names: dict[str, set[str]] = {}
    for entry in archive.infolist():
        if not entry.is_dir():
            entries.setdefault(_path_of(entry), []).append(entry)
    for path in entries:
        while path:
            folder, _, name = path.rpartition("/")
            names.setdefault(folder, set()).add(name)
            path = folder
    listings = {
        folder: make_listing(inside, (name for name in inside if f"{folder}/{name}".lstrip("/") in names))
        for folder, inside in names.items()
    }
    return _ZipIndex(entries, listings)


def _path_of(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    if not entry.flag_bits & 0x800:  # no mark of UTF-8, which many programs write without it
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return posixpath.normpath("/" + name.replace("\\", "/")).lstrip("/")


def open_images(path: str | Path, data_file: Path) -> ImageFolder | ImageZip:
    """Opens the folder or zip archive with the images of `data_file`. Raises DataError if `path` is neither."""
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        return ImageZip(path)
    raise DataError(f"{path}: the image folder of {data_file} does not exist. Unpack the images or correct the path.")
