"""From examples to the rows of a batch: one or several to a row, and a substitute where one cannot be read.

Legend: T tokens of a row, N its image slots, H = W = the side of an image.
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

TRIES = 100  # substitutes that are tried for one example


class SourceRow(NamedTuple):
    """A row of a batch and what was replaced in it: a list of {"index", "sample", "reason", "substitute"}, or None
    where a sample that cannot be read is an error."""

    arrays: TokenRow
    replaced: list[dict] | None = None


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

    def segment(self, example: Example) -> EncodedExample:
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
        return EncodedExample(ids, mask, images)

    def row(self, segments: Sequence[EncodedExample], length: int | None = None) -> TokenRow:
        """One row of several examples, T or `length` tokens long. Raises DataError where they do not fit."""
        return token_row(
            segments,
            length=self.length if length is None else length,
            image_slots=self.max_images,
            image_size=self.image_size,
            pad_id=self.tokenizer.pad_id,
        )


def build_row(example: Example, **settings) -> TokenRow:
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
    every run replaces it by the same, and the row lists it. Nothing is left out: rows stay equally many on every host.
    Where not even `TRIES` others can be read, the place stays empty and `substitute` is None. Otherwise the DataError
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
        """Row `index`, `length` tokens long where that is not the format's length."""
        segments, replaced = [], []
        for example in self._members(index):
            substitute, segment, reason = self._read_or_substitute(example)
            segments += [] if segment is None else [segment]
            if reason:
                sample = self._example_id(example)
                replaced.append({"index": example, "sample": sample, "reason": reason, "substitute": substitute})
        return SourceRow(self.format.row(segments, length), replaced if self.replace else None)

    def names(self, index: int) -> list[str]:
        """The ids of the examples that are in row `index`, substitutes by their own; `?` for a place that stayed empty.
        Opens the images, for only that tells which can be read."""
        return [self._read_or_substitute(i)[0] or "?" for i in self._members(index)]

    def requested_names(self, index: int) -> list[str]:
        """The ids of the examples that row `index` is to hold, `?` where not even that can be read. Opens no image."""
        return [self._example_id(i) or "?" for i in self._members(index)]

    def readable(self, count: int) -> list[Example]:
        """The first `count` examples, without those that would be replaced."""
        examples: list[Example] = []
        for index in range(len(self.source)):
            if len(examples) == count:
                break
            try:
                kept_images = len(self._segment(index).images)
                example = self.source[index]
                for image in example.images[kept_images:]:  # that were cut off with the text, but belong to the example
                    load_image(image, str(image))
                examples.append(example)
            except DataError:
                if not self.replace:
                    raise
        return examples

    def size(self, index: int) -> np.ndarray:
        """int32[2]: tokens and images of example `index`; 0, 0 where it cannot be read and is replaced."""
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
        """(id, segment, "") of example `index`, or of its substitute and why it has one."""
        try:
            example = self.source[index]
            return example.id, self.format.segment(example), ""
        except DataError as fault:
            if not self.replace:
                raise
            return *self._substitute(index), str(fault)

    def _substitute(self, index: int) -> tuple[str | None, EncodedExample | None]:
        """(id, segment) of an example that can be read and takes up no more than `index` was given."""
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
        except DataError:  # not even the example could be read
            return None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of some examples: item i is `rows.size(indices[i])`. Picklable, for data workers."""

    rows: Rows
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows.size(self.indices[i])
