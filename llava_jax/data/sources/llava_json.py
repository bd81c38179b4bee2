"""Random-access sources of examples: the original's training JSON, parts and joins of sources, a held-out split.

A source has `__len__` and `__getitem__(index) -> Example`; anything that has them can be trained on.
"""

import json
from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.json_index import open_index, stamp
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import DataError
from llava_jax.images.files import open_images


class LlavaJson:
    """The original's training file: one JSON array of the rows that `llava_row` describes.

    Every row is parsed and checked before the first is handed out, without holding the file; the place of each is kept
    in an index file (see `json_index`), so that this is done once. Then a row is read when asked for. Image files are
    opened by nobody yet.

    - `image_folder` is the root of the image paths, or a zip archive with entries of these names.

    Raises DataError that names the file, the row and the key, when constructed; for an image path that leaves
    `image_folder` (by "..", absolute, or through a symbolic link) or is not in the archive, when the row is read.
    With `is_strict=False` a broken row raises only when it is read, and keeps its number: that is how a whole file is
    searched for faults.
    """

    def __init__(self, path: str | Path, image_folder: str | Path, is_strict: bool = True):
        self.path = Path(path)
        self.images = open_images(image_folder, self.path)
        self._broken: dict[int, DataError] = {}  # rows that are no JSON
        self._index, self._stamp = open_index(self.path, None if is_strict else self._broken)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        row_id, turns, images = parse_row(*self.raw(index))
        where = f"{self.path}: sample {row_id!r}"
        return Example(row_id, turns, tuple(self.images.find(image, where) for image in images))

    def example_id(self, index: int) -> str:
        """The id alone, without a look at the images."""
        return parse_row(*self.raw(index))[0]

    def id_hashes(self) -> np.ndarray:
        """int64[n], the `id_hash` of every id; only of a file opened strictly."""
        return self._index[:, 2]

    def raw(self, index: int) -> tuple[object, str]:
        """(the row as its JSON says, unchecked; the words that name it in a fault)."""
        index = range(len(self))[index]
        if index in self._broken:
            raise self._broken[index]
        start, end, expected_hash = self._index[index].tolist()
        try:
            with open(self.path, "rb") as file:
                is_unchanged = stamp(file) == self._stamp
                file.seek(start)
                text = file.read(end - start)
        except OSError:
            is_unchanged = False
        if not is_unchanged:
            raise DataError(f"{self.path}: changed or gone since it was opened. Start again, and leave it alone.")
        where = f"{self.path}: row {index}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):  # bytes that are no row
            row = None
        if expected_hash >= 0 and (not isinstance(row, dict) or id_hash(str(row.get("id"))) != expected_hash):
            raise DataError(
                f"{where} is not where its index says: the file was changed and its time put back, or the index is not "
                f"ours. Remove {self.path.name}.index.npz, or touch the file, and start again."
            )
        return row, where
