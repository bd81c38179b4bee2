"""From examples to the rows of a batch: one or several to a row, and a substitute where one cannot be read.

Legend: T tokens of a row, N its image slots, H = W = the side of an image. A segment is what one example puts in a row.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.example import Example
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.text.encode import encode_row, fit
from llava_jax.text.tokenizer import Tokenizer

Row = dict[str, np.ndarray]
TRIES = 100  # substitutes that are tried for one example


@dataclasses.dataclass(frozen=True)
class Segment:
    """`ids` int32[n], each image a run of placeholders, `mask` bool[n] (True: learned), `images` uint8[m, H, W, 3]."""

    ids: np.ndarray
    mask: np.ndarray
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """How examples become rows: everything but the examples. Picklable, for data workers."""

    tokenizer: Tokenizer
    template: str
    length: int  # T
    max_images: int  # N
    features: int  # placeholders per image
    image_size: int  # H
    aspect: str
    overlong: str

    def tokens(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32[n], mask bool[n]), n <= T; no image is opened. Raises DataError that names the sample."""
        try:
            if len(example.images) > self.max_images:
                raise DataError(
                    f"{len(example.images)} images, but a row holds {self.max_images}. "
                    "Raise max_images or remove the sample.",
                    "too many images",
                )
            ids, mask = encode_row(
                example.turns,
                len(example.images),
                tokenizer=self.tokenizer,
                template=self.template,
                features=self.features,
            )
            return fit(ids, mask, self.length, self.overlong)
        except DataError as fault:
            raise DataError(f"sample {example.id!r}: {fault}", fault.kind) from fault

    def images_of(self, ids: np.ndarray) -> int:
        """Images that are left in a segment: `fit` may have cut the last ones off."""
        return int((ids == IMAGE_TOKEN_ID).sum()) // self.features

    def segment(self, example: Example) -> Segment:
        """Tokens and pixels. Raises DataError that names the sample."""
        ids, mask = self.tokens(example)
        # Images whose placeholders were cut off take no slot: the slots of a row are counted through all its segments.
        images = np.zeros((self.images_of(ids), self.image_size, self.image_size, 3), np.uint8)
        try:
            for slot, image in enumerate(example.images[: len(images)]):
                name = str(image) if isinstance(image, Path) else f"image {slot}"
                images[slot] = preprocess(load_image(image, name), self.image_size, self.aspect)
        except DataError as fault:
            raise DataError(f"sample {example.id!r}: {fault}", fault.kind) from fault
        return Segment(ids, mask, images)

    def row(self, segments: Sequence[Segment], length: int | None = None) -> Row:
        """Segments one behind the other: `tokens` int32[T], `target_mask` bool[T], `positions` int32[T] (each segment
        counts from 0), `segment_ids` int32[T] (1, 2, ..; padding 0) and `images` uint8[N, H, W, 3], the images of all
        segments in the first slots, in order, which is the order in which the model takes them.

            ids [5 6 7] and [8 9], T = 6:    tokens 5 6 7 8 9 .   positions 0 1 2 0 1 0   segment_ids 1 1 1 2 2 0

        length: T where it is not the format's. Raises DataError where the segments do not go in.
        """
        length = self.length if length is None else length
        ids, images = sum(len(s.ids) for s in segments), sum(len(s.images) for s in segments)
        if ids > length or images > self.max_images:
            raise DataError(
                f"{len(segments)} samples of {ids} tokens and {images} images do not go into a row of {length} and "
                f"{self.max_images}. Did the data change after it was measured? Start again."
            )
        row = {
            "tokens": np.full(length, self.tokenizer.pad_id, np.int32),
            "target_mask": np.zeros(length, bool),
            "positions": np.zeros(length, np.int32),
            "segment_ids": np.zeros(length, np.int32),
            "images": np.zeros((self.max_images, self.image_size, self.image_size, 3), np.uint8),
        }
        at = slot = 0
        for number, s in enumerate(segments, 1):
            here = slice(at, at + len(s.ids))
            row["tokens"][here], row["target_mask"][here] = s.ids, s.mask
            row["positions"][here], row["segment_ids"][here] = np.arange(len(s.ids)), number
            row["images"][slot : slot + len(s.images)] = s.images
            at, slot = here.stop, slot + len(s.images)
        return row


def build_row(example: Example, **settings) -> Row:
    """The row of one example alone; `settings` are those of RowFormat. Raises DataError that names the sample."""
    row_format = RowFormat(**settings)
    return row_format.row([row_format.segment(example)])


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that a source of examples makes, by index.

    `groups[i]` says what is in row i: an example's index, or a list of them (`packing.Groups`, a mixture of them).
    Without it every example is a row. `sizes` (int32[examples, 2]: tokens and images of each) says what a
    substitute may take up; without it, a substitute has a whole row.

    `replace`: an example that raises DataError is replaced by another one, drawn from `seed` and its index, so that
    every run replaces it by the same; a row then also has `replaced`, a list of {"index", "sample", "reason",
    "substitute"}. Nothing is left out: rows stay equally many on every host. Where not even `TRIES` others can be read,
    the place stays empty and `substitute` is None. Otherwise the DataError reaches the caller.
    """

    source: object
    format: RowFormat
    replace: bool = False
    seed: int = 0
    groups: Sequence[int | list[int]] | None = None
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source if self.groups is None else self.groups)

    def row(self, index: int, length: int | None = None) -> Row:
        """Row `index`, `length` tokens long where that is not the format's length."""
        segments, replaced = [], []
        for example in self._members(index):
            name, segment, fault = self._used(example)
            segments += [] if segment is None else [segment]
            if fault:
                replaced.append({"index": example, "sample": self._name(example), "reason": fault, "substitute": name})
        row = self.format.row(segments, length)
        return row | {"replaced": replaced} if self.replace else row

    def names(self, index: int) -> list[str]:
        """The ids of the examples that are in row `index`, substitutes by their own; `?` for a place that stayed empty.
        Opens the images, for only that tells which can be read."""
        return [self._used(i)[0] or "?" for i in self._members(index)]

    def asked_for(self, index: int) -> list[str]:
        """The ids of the examples that row `index` is to hold, `?` where not even that can be read. Opens no image."""
        return [self._name(i) or "?" for i in self._members(index)]

    def readable(self, count: int) -> list[Example]:
        """The first `count` examples, without those that would be replaced."""
        found: list[Example] = []
        for index in range(len(self.source)):
            if len(found) == count:
                break
            try:
                kept = len(self._segment(index).images)
                example = self.source[index]
                for image in example.images[kept:]:  # that were cut off with the text, but belong to the example
                    load_image(image, str(image))
                found.append(example)
            except DataError:
                if not self.replace:
                    raise
        return found

    def size(self, index: int) -> Row:
        """{"size": int32[2]}: tokens and images of example `index`; 0, 0 where it cannot be read and is replaced."""
        try:
            ids, _ = self.format.tokens(self.source[index])
        except DataError:
            if not self.replace:
                raise
            return {"size": np.zeros(2, np.int32)}
        return {"size": np.array((len(ids), self.format.images_of(ids)), np.int32)}

    def _members(self, index: int) -> list[int]:
        found = index if self.groups is None else self.groups[index]
        return [found] if isinstance(found, int) else found

    def _segment(self, index: int) -> Segment:
        return self.format.segment(self.source[index])

    def _used(self, index: int) -> tuple[str | None, Segment | None, str]:
        """(id, segment, "") of example `index`, or of its substitute and why it has one."""
        try:
            example = self.source[index]
            return example.id, self.format.segment(example), ""
        except DataError as fault:
            if not self.replace:
                raise
            return *self._substitute(index), str(fault)

    def _substitute(self, index: int) -> tuple[str | None, Segment | None]:
        """(id, segment) of an example that can be read and takes up no more than `index` was given."""
        fits = range(len(self.source))
        if self.sizes is not None:
            fits = np.flatnonzero((self.sizes <= self.sizes[index]).all(axis=1)).tolist()
        rng = random.Random(f"substitute/{self.seed}/{index}")
        for _ in range(TRIES):
            candidate = fits[rng.randrange(len(fits))]
            try:
                return self.source[candidate].id, self._segment(candidate)
            except DataError:
                continue
        return None, None

    def _name(self, index: int) -> str | None:
        try:
            return self.source[index].id
        except DataError:  # not even the example could be read
            return None
