"""LLaVA's training JSON as a random-access source of examples.

A source has `__len__` and `__getitem__(index) -> Example`; any such object can be trained on.
"""

from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.json_index import open_index, stamp
from llava_jax.data.sources.json_scan import where_is
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.files import open_images
from llava_jax.output.json_text import parse_json


class LlavaJson:
    """The original's training file: one JSON array of the rows described in `llava_row`, or JSON Lines of them.

    The constructor parses and checks every row, without holding the file in memory, and stores an index (see
    `json_index`), so that this happens once. Rows are then read on request. Image files are not opened.

    image_folder: the root of the image paths, or a zip archive with entries of these names. Empty: rows name no images.
    is_strict: False raises the error of a broken row only when it is read, and keeps its row number, to find all
    faults of a file.

    The constructor raises DataError with the file, the row (in JSON Lines the line) and the key, and ConfigError if
    rows name images and there is no folder. Reading a row raises DataError for an image path outside of `image_folder`
    (by "..", absolute, or by a symbolic link), or one that is not in the archive.
    """

    def __init__(self, path: str | Path, image_folder: str | Path = "", is_strict: bool = True):
        self.path = Path(path)
        self.images = open_images(image_folder, self.path) if image_folder else None
        self._broken: dict[int, DataError] = {}  # errors of rows that are not JSON
        self._index = open_index(self.path, None if is_strict else self._broken)
        if self.images is None and self._index.names_image:
            where, image = self._index.names_image
            raise ConfigError(
                f"{where} names the image {image!r}, so the data needs image_folder as well: the folder or zip archive "
                "of its images"
            )

    def __len__(self) -> int:
        return len(self._index.rows)

    def __getitem__(self, index: int) -> Example:
        row_id, turns, images = parse_row(*self.raw(index))
        where = f"{self.path}: sample {row_id!r}"
        return Example(row_id, turns, tuple(self.images.find(image, where) for image in images))

    def example_id(self, index: int) -> str:
        """Returns the id, without looking up the images."""
        return parse_row(*self.raw(index))[0]

    def id_hashes(self) -> np.ndarray:
        """Returns int64[n], the `id_hash` of every id; needs `is_strict`."""
        return self._index.rows[:, 2]

    def raw(self, index: int) -> tuple[object, str]:
        """Returns (the unchecked row, its name in error messages)."""
        index = range(len(self))[index]
        if index in self._broken:
            raise self._broken[index]
        start, end, expected_hash, line = self._index.rows[index].tolist()
        try:
            with open(self.path, "rb") as file:
                is_unchanged = stamp(file) == self._index.stamp
                file.seek(start)
                text = file.read(end - start)
        except OSError:
            is_unchanged = False
        if not is_unchanged:
            raise DataError(f"{self.path}: changed or removed since it was opened. Run the command again.")
        where = where_is(self.path, index, line)
        try:
            row = parse_json(text)
        except ValueError:  # the bytes of a wrong index
            row = None
        if expected_hash >= 0 and (not isinstance(row, dict) or id_hash(str(row.get("id"))) != expected_hash):
            raise DataError(
                f"{where} does not match the index: the file was changed and its modification time reset, or the index "
                f"belongs to another file. Remove {self.path.name}.index.npz, or touch the file, and start again."
            )
        return row, where
