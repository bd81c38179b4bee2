"""Statistics of a data set for training: tokens, images, the supervised share, and how full the rows would be."""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

from llava_jax.data.inspection.check import Encode
from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.data.packing import efficiency, pack
from llava_jax.errors import DataError
from llava_jax.images.preprocess import read_image

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)  # columns of the table


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measures of a sample. sizes: (width, height) of its readable images."""

    tokens: int
    targets: int
    images: int
    sizes: tuple[tuple[int, int], ...]


def measure_rows(rows: Sequence[int], *, source, encode: Encode) -> list[Measured | None]:
    """Measures the rows of one task; None for a broken row. Only the headers of images are read.

    source: any; LLaVA's JSON with `is_strict=False`.
    """
    return [_measure(source, row, encode) for row in rows]


def _measure(source, row: int, encode: Encode) -> Measured | None:
    lenient = read_leniently(source, row)
    if not lenient.turns:
        return None
    try:
        ids, mask = encode(lenient.turns, lenient.image_count)
    except DataError:
        return None
    sizes = []
    for name, file in lenient.images.items():
        # `data check` reports damaged or refused images.
        with contextlib.suppress(DataError):
            sizes.append(read_image(file, name, lambda image: image.size))
    return Measured(len(ids), int(mask.sum()), lenient.image_count, tuple(sizes))


@dataclasses.dataclass(frozen=True)
class Stats:
    """The measures of all readable rows as arrays, and the number of broken rows."""

    tokens: np.ndarray  # int[n]
    targets: np.ndarray  # int[n]
    images: np.ndarray  # int[n]
    sizes: np.ndarray  # int[m, 2], width and height
    broken: int
    length: int  # tokens of a row
    max_images: int  # image slots of a packed row

    @classmethod
    def of(cls, measured: Sequence[Measured | None], length: int, max_images: int) -> "Stats":
        """Collects measured rows. Raises DataError if all are broken."""
        readable = [m for m in measured if m is not None]
        if not readable:
            raise DataError("no row can be read; `python -m llava_jax data check` reports why.")
        columns = (np.array([getattr(m, name) for m in readable]) for name in ("tokens", "targets", "images"))
        sizes = np.array([size for m in readable for size in m.sizes], np.int64).reshape(-1, 2)
        return cls(*columns, sizes, len(measured) - len(readable), length, max_images)

    @property
    def target_share(self) -> np.ndarray:
        """Returns float[n], the percentage of supervised tokens of each sample."""
        return 100 * self.targets / self.tokens

    def fullness(self, seed: int = 0) -> tuple[float, float]:
        """Returns the percentage of tokens that are not padding: (one sample per row, packed as in training)."""
        sizes = np.minimum(np.stack([self.tokens, self.images], 1), (self.length, self.max_images))
        packed = efficiency(sizes, pack(sizes, self.length, self.max_images, seed), self.length)
        return 100 * float(sizes[:, 0].mean()) / self.length, 100 * packed

    def rows(self) -> list[list[str]]:
        """Returns a table of text, heading first: each measure, its mean and its percentiles."""
        columns = {"tokens": self.tokens, "supervised": self.targets, "supervised %": self.target_share}
        columns |= {"images": self.images}
        if len(self.sizes):
            width, height = self.sizes.T
            columns |= {"width": width, "height": height, "width/height": width / height}
        rows = [["", "mean", *(f"{p}%" if 0 < p < 100 else ("min", "max")[p > 0] for p in PERCENTILES)]]
        for name, values in columns.items():
            digits = 2 if name == "width/height" else 1 if name == "supervised %" else 0
            cells = [f"{value:,.{digits}f}" for value in np.percentile(values, PERCENTILES, method="nearest")]
            rows.append([name, f"{values.mean():,.{max(digits, 1)}f}", *cells])
        return rows

    def notes(self) -> list[str]:
        """Returns the totals, one line each."""
        padded, packed = self.fullness()
        unreadable = int(self.images.sum()) - len(self.sizes)
        return [
            f"{len(self.tokens):,} samples, {self.tokens.sum():,} tokens, {self.targets.sum():,} of them supervised",
            f"{self.broken:,} rows cannot be read, {unreadable:,} of {self.images.sum():,} images cannot be read",
            f"{(self.tokens > self.length).sum():,} samples are longer than {self.length} and would be truncated",
            f"rows of {self.length}: {padded:.1f}% full with one sample each, {packed:.1f}% packed first-fit "
            f"(up to {self.max_images} images a row)",
        ]

    def lines(self) -> list[str]:
        """Returns the table as text, followed by the totals."""
        return [f"{name:14}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in self.rows()] + self.notes()
