"""Finds the images that a data set names, below a folder or in a zip archive. The names are not trusted."""

import threading
import zipfile
import zlib
from pathlib import Path

from llava_jax.errors import DataError

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
        raise DataError(
            f"{where}: image {image!r} is outside of {folder}. Move or mount the images below it "
            "(symbolic links must not leave it), or pass a parent folder.",
            "outside the folder",
        )
    return path


class ImageFolder:
    """Images as files below a folder."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def find(self, name: str, where: str) -> Path:
        """See `below_folder`."""
        return below_folder(name, self.root, where)


class ImageZip:
    """Images as entries of a zip archive; nothing is unpacked to disk. Safe for threads; a pickled copy reopens it."""

    def __init__(self, path: Path):
        self.path, self._archive, self._lock = path, None, threading.Lock()
        self._open()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.path, self._archive, self._lock = state["path"], None, threading.Lock()

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
        damaged, encrypted or larger than MAX_BYTES."""
        archive, where = self._open(), f"{where}: image {name!r} in {self.path}"
        try:
            entry = archive.getinfo(name)
        except KeyError:
            message = f"{where}: no such entry. Use the names that `unzip -l` prints."
            raise DataError(message, "missing") from None
        if entry.file_size > MAX_BYTES:
            raise DataError(f"{where}: unpacks to {entry.file_size:,} bytes, more than {MAX_BYTES:,}.", "extreme size")
        if entry.flag_bits & 1 or entry.compress_type not in COMPRESSION_METHODS:
            raise DataError(f"{where}: encrypted, or compressed by a rare method. Use plain `zip`.", "damaged")
        try:
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # the header may understate the size
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as fault:
            raise DataError(f"{where}: damaged ({fault}). Pack it again.", "damaged") from None


def open_images(path: str | Path, data_file: Path) -> ImageFolder | ImageZip:
    """Opens the folder or zip archive with the images of `data_file`. Raises DataError if `path` is neither."""
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        return ImageZip(path)
    raise DataError(f"{path}: the image folder of {data_file} does not exist. Unpack the images or correct the path.")
