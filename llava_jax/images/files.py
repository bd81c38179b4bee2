"""The images that data names: files below a folder, or entries of a zip archive. Names come from the data and are
trusted with nothing."""

import threading
import zipfile
import zlib
from pathlib import Path

from llava_jax.errors import DataError

MAX_BYTES = 128 << 20  # of one entry, unpacked; 33 million pixels as a BMP are 100 MB
COMPRESSION_METHODS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # Python unpacks the others a whole piece at a time, however large


def below_folder(image: str, folder: Path, where: str) -> Path:
    """The file that a row names, below its (resolved) folder; it need not exist. Raises DataError that begins with
    `where`, when it is not below (by "..", absolute, or through a symbolic link)."""
    try:
        path = (folder / image).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
        path = None
    if path is None or not path.is_relative_to(folder):
        raise DataError(
            f"{where}: image {image!r} does not stay below {folder}. "
            "Move or mount the images below it (links must not lead out), or name a higher folder.",
            "outside the folder",
        )
    return path


class ImageFolder:
    """Files below a folder."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def find(self, name: str, where: str) -> Path:
        """See `below_folder`."""
        return below_folder(name, self.root, where)


class ImageZip:
    """Entries of a zip archive. Nothing is unpacked to disk. Threads may share it; processes open it anew."""

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
                    raise DataError(f"{self.path}: not a zip archive that can be read ({fault}).") from None
            return self._archive

    def find(self, name: str, where: str) -> bytes:
        """The bytes of an image. Raises DataError that begins with `where`, when there is no entry of that name, or it
        is damaged, encrypted or unpacks to more than MAX_BYTES."""
        archive, where = self._open(), f"{where}: image {name!r} in {self.path}"
        try:
            entry = archive.getinfo(name)
        except KeyError:
            message = f"{where}: no such entry. Names must be those that `unzip -l` prints."
            raise DataError(message, "missing") from None
        if entry.file_size > MAX_BYTES:
            raise DataError(f"{where}: unpacks to {entry.file_size:,} bytes, over {MAX_BYTES:,}.", "extreme size")
        if entry.flag_bits & 1 or entry.compress_type not in COMPRESSION_METHODS:
            raise DataError(f"{where}: encrypted, or packed in a rare way. Pack it with `zip` again.", "damaged")
        try:
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # no more than that, whatever is packed
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as fault:
            raise DataError(f"{where}: damaged ({fault}). Pack it again.", "damaged") from None


def open_images(path: str | Path, data_file: Path) -> ImageFolder | ImageZip:
    """A folder or a zip archive with the images of the data file `of`. Raises DataError where it is neither."""
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        return ImageZip(path)
    raise DataError(f"{path}: image folder of {data_file} not found. Unpack the images or correct the path.")
