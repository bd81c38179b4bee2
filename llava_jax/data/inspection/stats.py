"""What a data set costs in training: tokens, pictures, the share that is learnt from, and how full rows would be."""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from llava_jax.data.inspection.check import Encode
from llava_jax.data.inspection.lenient_row import read_leniently
from llava_jax.data.packing import efficiency, pack
from llava_jax.errors import DataError
from llava_jax.images.preprocess import FORMATS, image_file

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)  # percentiles of the table


@dataclasses.dataclass(frozen=True)
class Measured:
    """One sample. `sizes`: (width, height) of the images that open."""

    tokens: int
    targets: int
    images: int
    sizes: tuple[tuple[int, int], ...]


def measure_rows(rows: Sequence[int], *, source, encode: Encode) -> list[Measured | None]:
    """The work of one task; None for a row that is broken. Images are not decoded, their headers are read.

    source: any; LLaVA's JSON not strict.
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
        # Damaged or refused: `data check` says which.
        with contextlib.suppress(Exception), Image.open(image_file(file, name), formats=FORMATS) as image:
            sizes.append(image.size)
    return Measured(len(ids), int(mask.sum()), lenient.image_count, tuple(sizes))


@dataclasses.dataclass(frozen=True)
class Stats:
    """Measurements of all rows that can be read, as arrays, and how many cannot."""

    tokens: np.ndarray  # int[n]
    targets: np.ndarray  # int[n]
    images: np.ndarray  # int[n]
    sizes: np.ndarray  # int[m, 2], width and height
    broken: int
    length: int  # tokens of a row
    max_images: int  # image slots of a packed row

    @classmethod
    def of(cls, measured: Sequence[Measured | None], length: int, max_images: int) -> "Stats":
        """Raises DataError where no row can be read."""
        readable = [m for m in measured if m is not None]
        if not readable:
            raise DataError("no row can be read; `python -m llava_jax data check` says why.")
        columns = (np.array([getattr(m, name) for m in readable]) for name in ("tokens", "targets", "images"))
        sizes = np.array([size for m in readable for size in m.sizes], np.int64).reshape(-1, 2)
        return cls(*columns, sizes, len(measured) - len(readable), length, max_images)

    @property
    def target_share(self) -> np.ndarray:
        """float[n], the percentage of each sample's tokens that is supervised."""
        return 100 * self.targets / self.tokens

    def fullness(self, seed: int = 0) -> tuple[float, float]:
        """Tokens that are not padding, in percent: (one sample a row, packed as training with this `seed` does)."""
        sizes = np.minimum(np.stack([self.tokens, self.images], 1), (self.length, self.max_images))
        packed = efficiency(sizes, pack(sizes, self.length, self.max_images, seed), self.length)
        return 100 * float(sizes[:, 0].mean()) / self.length, 100 * packed

    def rows(self) -> list[list[str]]:
        """A table of text: what is measured, its mean and its percentiles; heading first."""
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
        """The totals, a sentence each."""
        padded, packed = self.fullness()
        unreadable = int(self.images.sum()) - len(self.sizes)
        return [
            f"{len(self.tokens):,} samples, {self.tokens.sum():,} tokens, {self.targets.sum():,} of them supervised",
            f"{self.broken:,} rows cannot be read, {unreadable:,} of {self.images.sum():,} images do not open",
            f"{(self.tokens > self.length).sum():,} samples are longer than {self.length} and would be cut off",
            f"rows of {self.length}: {padded:.1f}% full with one sample each, {packed:.1f}% packed first-fit "
            f"(up to {self.max_images} images a row)",
        ]

    def lines(self) -> list[str]:
        """The numbers as a text table, then the totals."""
        return [f"{name:14}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in self.rows()] + self.notes()
