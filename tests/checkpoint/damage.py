"""What can happen to the files of a checkpoint, and to the disk they are on."""

import contextlib
import resource
from pathlib import Path


def flip(file: Path) -> None:
    """64 bytes inverted in the middle."""
    data = bytearray(file.read_bytes())
    middle = max(0, len(data) // 2 - 32)
    data[middle : middle + 64] = bytes(b ^ 0xFF for b in data[middle : middle + 64])
    file.write_bytes(data)


def truncate(file: Path) -> None:
    """The last byte is lost."""
    file.write_bytes(file.read_bytes()[:-1])


def delete(file: Path) -> None:
    file.unlink()


DAMAGES = (flip, truncate, delete)


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The system refuses to let a file grow beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
