"""ScienceQA as Parquet, in the layout of derek-thomas/ScienceQA on the Hugging Face hub.

FOLDER/data/train-*.parquet, validation-*.parquet, test-*.parquet, also directly in FOLDER, or one such file. Columns:
image (struct of bytes and path, or null), question, choices, answer, hint, grade, subject, topic, lecture, solution.

The files have no problem ids. A problem gets its split and its row in it, from 0, over the files in the order of their
names: train-0, val-17, test-4240.
"""

import re
from pathlib import Path

from llava_jax.data.sources.parquet import ParquetRows, is_parquet, parquet_schema, read_columns
from llava_jax.errors import ConfigError, DataError

COLUMNS = ("question", "choices", "answer", "hint", "lecture", "solution", "subject", "topic", "grade")
REQUIRED = ("question", "choices", "answer")
SPLIT_OF = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


def problem_files(path: Path) -> list[Path]:
    """Returns the Parquet files of a path, by name: the file itself, those in its folder data, or in it."""
    if path.is_file():
        return [path] if is_parquet(path) else []
    return sorted((path / "data").glob("*.parquet")) or sorted(path.glob("*.parquet"))


def is_scienceqa_parquet(path: Path) -> bool:
    """Returns whether the first Parquet file has the columns of ScienceQA. False without pyarrow."""
    files = problem_files(path)
    try:
        return bool(files) and set(REQUIRED) <= set(parquet_schema(files[0]).names)
    except (ConfigError, DataError):  # whoever opens it as Parquet reports this
        return False


def read_problems_parquet(path: Path) -> tuple[dict[str, dict], dict[str, list[str]], "ParquetImages"]:
    """Returns (value by problem id as in problems.json, ids by split, the images).

    Texts are read now, images when they are needed. Raises DataError for a broken file, a missing column, or a file
    whose name begins with no split.
    """
    problems, splits, files, first_rows = {}, {}, {}, {}
    for file in problem_files(path):
        name = re.match("[a-z]*", file.name.lower())[0]
        if name not in SPLIT_OF:
            raise DataError(f"{file}: its name must begin with its split: {', '.join(SPLIT_OF)}.")
        files.setdefault(SPLIT_OF[name], []).append(file)
    for split, split_files in files.items():
        first_rows[split] = ParquetRows(split_files, ("image",), REQUIRED, path)
        pids = splits.setdefault(split, [])
        for file in split_files:
            names = [name for name in COLUMNS if name in parquet_schema(file).names]
            for row, has_image in zip(read_columns(file, names), _have_images(file), strict=True):
                pids.append(f"{split}-{len(pids)}")
                problems[pids[-1]] = row | {"split": split, "image": "image.png" if has_image else None}
    return problems, splits, ParquetImages(path, first_rows)


def _have_images(file: Path) -> list[bool]:
    """Returns whether each row has an image, without reading the bytes where the paths are enough."""
    schema = parquet_schema(file)
    if "image" not in schema.names:
        return [False] * len(read_columns(file, ["answer"]))
    kind = schema.field("image").type
    fields = [kind.field(i).name for i in range(kind.num_fields)]
    if "path" in fields:
        cells = [row["image"] for row in read_columns(file, ["image.path"])]
        if all(cell is None or cell["path"] is not None for cell in cells):
            return [cell is not None for cell in cells]
    cells = [row["image"] for row in read_columns(file, ["image.bytes" if fields else "image"])]
    return [_content(cell) is not None for cell in cells]


def _content(cell) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


class ParquetImages:
    """The images of the problems by the names that `parse_problem` gives: SPLIT/PID/image.png."""

    def __init__(self, path: Path, rows: dict[str, ParquetRows]):
        self.path, self._rows = path, rows

    def has(self, name: str) -> bool:
        """Whether there is an image of this name: always, as names are made from the rows with an image."""
        return True

    def find(self, name: str, where: str) -> bytes:
        """Returns the bytes of an image. Raises DataError, starting with `where`, if there are none."""
        split, pid = name.split("/")[:2]
        row, file = self._rows[split].read(int(pid.removeprefix(f"{split}-")))
        content = _content(row["image"])
        if not isinstance(content, bytes):
            raise DataError(f"{where}: {file} has no bytes of the image.", "missing")
        return content
