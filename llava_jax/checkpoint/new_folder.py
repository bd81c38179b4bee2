"""Creates an output folder atomically: it appears when it is complete, and not at all after an error."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from safetensors import SafetensorError

from llava_jax.errors import DataError
from llava_jax.output.files import atomic_path


def check_new(folder: Path) -> None:
    """Raises DataError if `folder` or its `.partial` folder exists. Called before anything is read."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder} exists already; choose a new folder")
    partial = _partial(folder)
    if jax.process_index() == 0 and partial.exists():  # process 0 creates it, perhaps before others check
        raise DataError(f"{partial} exists, perhaps left by a program that was killed; remove it first")


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields `<folder>.partial` to write to, and renames it to `folder` when the block ends.

    Every process must enter it; process 0 creates and renames the folder, and only it may write small files there.
    Raises DataError if the folder exists or cannot be written. After an error or interrupt nothing is left behind.
    """
    check_new(folder)
    partial, is_main = _partial(folder), jax.process_index() == 0
    try:
        if is_main:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
    except OSError as e:  # a folder that exists by now was made by another program: do not remove it
        raise DataError(f"{folder} cannot be written: {e}") from None
    try:
        with atomic_path(folder, partial) if is_main else contextlib.nullcontext():
            yield partial
    except (OSError, SafetensorError) as e:
        raise DataError(f"{folder} cannot be written: {e}") from None
