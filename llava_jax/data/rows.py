"""Makes the rows of a batch from one or several examples each, and replaces examples that cannot be read.

Legend: T tokens and N image slots of a row, H = W the side of an image.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.data.example import Example
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image, preprocess
from llava_jax.text.encode import encode_row, fit
from llava_jax.text.token_row import EncodedExample, TokenRow, token_row
from llava_jax.text.tokenizer import Tokenizer

TRIES = 100  # substitutes to try for an example


class SourceRow(NamedTuple):
    """A row of a batch and the records of its replaced samples, {"index", "sample", "reason", "substitute"}; None where
    an unreadable sample is an error."""

    arrays: TokenRow
    replaced: list[dict] | None = None


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """The settings that turn examples into rows. Picklable, for data workers."""

    tokenizer: Tokenizer
    template: str
    length: int  # T
    max_images: int  # N
    features: int  # placeholders per image
    image_size: int  # H
    aspect: str
    overlong: str
    exif: str = "ignore"  # ignore | apply, see `load_image`

    def tokens(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids int32[n], mask bool[n]), n <= T, without opening images. DataError names the sample."""
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
        """Returns the number of images in a segment; `fit` may have truncated the last ones."""
        return int((ids == IMAGE_TOKEN_ID).sum()) // self.features

    def segment(self, example: Example) -> EncodedExample:
        """Returns tokens and pixels. DataError names the sample."""
        ids, mask = self.tokens(example)
        # Images whose placeholders were truncated get no slot, as slots are numbered through all segments of a row.
        images = np.zeros((self.images_of(ids), self.image_size, self.image_size, 3), np.uint8)
        try:
            for slot, image in enumerate(example.images[: len(images)]):
                name = str(image) if isinstance(image, Path) else f"image {slot}"
                images[slot] = preprocess(load_image(image, name, self.exif), self.image_size, self.aspect)
        except DataError as fault:
            raise DataError(f"sample {example.id!r}: {fault}", fault.kind) from fault
        return EncodedExample(ids, mask, images)

    def row(self, segments: Sequence[EncodedExample], length: int | None = None) -> TokenRow:
        """Returns a row of several examples, of T or `length` tokens. Raises DataError if they do not fit."""
        return token_row(
            segments,
            length=self.length if length is None else length,
            image_slots=self.max_images,
            image_size=self.image_size,
            pad_id=self.tokenizer.pad_id,
        )


def build_row(example: Example, **settings) -> TokenRow:
    """Returns the row of a single example; `settings` are those of RowFormat. DataError names the sample."""
    row_format = RowFormat(**settings)
    return row_format.row([row_format.segment(example)])


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a source, by index.

    groups: `groups[i]` has the example indices of row i, as an int or a list (`packing.PackedRows`, or a mixture of
    them). None: every example is a row. sizes: int32[examples, 2], the tokens and images of each example, an upper
    limit for its substitute. None: a substitute may fill a row.

    replace: an example that raises DataError is replaced by another one, drawn from `seed` and its index, so that every
    run uses the same substitute; the row has a record of it. No row is dropped, so all hosts have equally many. If
    `TRIES` substitutes cannot be read either, the segment stays empty and `substitute` is None. False: the DataError
    reaches the caller.
    """

    source: object
    format: RowFormat
    replace: bool = False
    seed: int = 0
    groups: Sequence[int | list[int]] | None = None
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source if self.groups is None else self.groups)

    def row(self, index: int, length: int | None = None) -> SourceRow:
        """Returns row `index`, of `length` tokens (None: the length of the format)."""
        segments, replaced = [], []
        for example in self._members(index):
            substitute, segment, reason = self._read_or_substitute(example)
            segments += [] if segment is None else [segment]
            if reason:
                sample = self._example_id(example)
                replaced.append({"index": example, "sample": sample, "reason": reason, "substitute": substitute})
        return SourceRow(self.format.row(segments, length), replaced if self.replace else None)

    def names(self, index: int) -> list[str]:
        """Returns the ids of the examples in row `index`, of substitutes their own; `?` for an empty segment. Opens the
        images, to find out which can be read."""
        return [self._read_or_substitute(i)[0] or "?" for i in self._members(index)]

    def requested_names(self, index: int) -> list[str]:
        """Returns the ids of the examples requested for row `index`, `?` for an unreadable id. Opens no image."""
        return [self._example_id(i) or "?" for i in self._members(index)]

    def readable(self, count: int) -> list[Example]:
        """Returns the first `count` examples, skipping those that would be replaced. Their images are decoded, and
        turned as in the rows, so that whoever shows them or answers questions sees what the model is trained on."""
        examples: list[Example] = []
        for index in range(len(self.source)):
            if len(examples) == count:
                break
            try:
                example = self.source[index]
                self.format.segment(example)
                # Also those truncated in the row, as they are part of the example.
                images = tuple(load_image(image, example.id, self.format.exif) for image in example.images)
                examples.append(dataclasses.replace(example, images=images))
            except DataError:
                if not self.replace:
                    raise
        return examples

    def size(self, index: int) -> np.ndarray:
        """Returns int32[2], the tokens and images of example `index`; 0, 0 if it is unreadable and will be replaced."""
        try:
            ids, _ = self.format.tokens(self.source[index])
        except DataError:
            if not self.replace:
                raise
            return np.zeros(2, np.int32)
        return np.array((len(ids), self.format.images_of(ids)), np.int32)

    def _members(self, index: int) -> list[int]:
        members = index if self.groups is None else self.groups[index]
        return [members] if isinstance(members, int) else members

    def _segment(self, index: int) -> EncodedExample:
        return self.format.segment(self.source[index])

    def _read_or_substitute(self, index: int) -> tuple[str | None, EncodedExample | None, str]:
        """Returns (id, segment, "") of example `index`, or its substitute's and the reason for the replacement."""
        try:
            example = self.source[index]
            return example.id, self.format.segment(example), ""
        except DataError as fault:
            if not self.replace:
                raise
            return *self._substitute(index), str(fault)

    def _substitute(self, index: int) -> tuple[str | None, EncodedExample | None]:
        """Returns (id, segment) of a readable example that is no larger than example `index`, or (None, None)."""
        candidates = range(len(self.source))
        if self.sizes is not None:
            candidates = np.flatnonzero((self.sizes <= self.sizes[index]).all(axis=1)).tolist()
        rng = random.Random(f"substitute/{self.seed}/{index}")
        for _ in range(TRIES):
            candidate = candidates[rng.randrange(len(candidates))]
            try:
                return self.source[candidate].id, self._segment(candidate)
            except DataError:
                continue
        return None, None

    def _example_id(self, index: int) -> str | None:
        try:
            return self.source[index].id
        except DataError:  # the example itself is unreadable
            return None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of examples: item i is `rows.size(indices[i])`. Picklable, for data workers."""

    rows: Rows
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows.size(self.indices[i])
