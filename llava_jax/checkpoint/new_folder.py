"""A folder that appears when it is complete, and not at all when something goes wrong."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from safetensors import SafetensorError

from llava_jax.errors import DataError
from llava_jax.output.files import atomic_path


def check_new(folder: Path) -> None:
    """Raises DataError where there is something already. Asked first of all, before anything is read."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder} exists already; choose a new folder")
    partial = _partial(folder)
    if jax.process_index() == 0 and partial.exists():  # which makes it; the others may come later
        raise DataError(f"{partial} exists, perhaps left by a program that was killed; remove it first")


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """The folder to write to, `<folder>.partial`; it gets its name when the block ends.

    Every process enters it; process 0 makes and renames the folder, and it alone may write small files there. Raises
    DataError where the folder exists or cannot be written; after any error or interrupt nothing is left behind.
    """
    check_new(folder)
    partial, is_main = _partial(folder), jax.process_index() == 0
    try:
        if is_main:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
    except OSError as e:  # what is there by now is not ours to remove
        raise DataError(f"{folder} cannot be written: {e}") from None
    try:
        with atomic_path(folder, partial) if is_main else contextlib.nullcontext():
            yield partial
    except (OSError, SafetensorError) as e:
        raise DataError(f"{folder} cannot be written: {e}") from None
