"""An HTML page of samples as the model gets them: preprocessed images, text with targets in colour, ids, lengths."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.inspection.check import Encode
from llava_jax.errors import DataError
from llava_jax.output.html_page import Markup, document, element, join, picture
from llava_jax.output.page_parts import badge, share_bar, tile, tiles
from llava_jax.text.spans import TokenSpan, split_row
from llava_jax.text.token_row import TokenRow
from llava_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample and its row. full_length: its number of tokens before truncation. A broken sample has a `fault`."""

    index: int
    example: Example | None = None
    row: TokenRow | None = None
    full_length: int = 0
    fault: str = ""

    @property
    def tokens(self) -> int:
        return 0 if self.row is None else int((self.row.segment_ids > 0).sum())

    @property
    def targets(self) -> int:
        return 0 if self.row is None else int(np.count_nonzero(self.row.target_mask))

    @property
    def is_cut(self) -> bool:
        return self.full_length > self.tokens


def samples_page(
    title: str,
    source,
    indices: Iterable[int],
    to_row: Callable[[Example], TokenRow],
    encode: Encode,
    tokenizer: Tokenizer,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Returns the HTML page. A sample that cannot be turned into a row shows its fault.

    to_row: as in training, see `data.rows.build_row`. encode: see `text.encode.encode_row`; gives the length before
    truncation. facts: further entries of the header, by name.
    """
    samples = [_read_sample(source, index, to_row, encode) for index in indices]
    legend = Markup(
        f"{element('mark', 'supervised')} the target tokens &nbsp; "
        f"{element('span', 'image', class_='image')} placeholder tokens and their number; image features replace them"
    )
    return document(
        title,
        [element("p", legend, class_="note"), *(_article(sample, tokenizer) for sample in samples)],
        label="samples as the model gets them",
        facts=facts,
        summary=_summary(samples, len(source)),
        contents=[
            (
                f"row-{s.index}",
                s.example.id if s.example else f"row {s.index}",
                f"{s.tokens:,}" if s.row is not None else "broken",
            )
            for s in samples
        ],
    )


def _read_sample(source, index: int, to_row: Callable[[Example], TokenRow], encode: Encode) -> Sample:
    try:
        example = source[index]
        full_length = len(encode(example.turns, len(example.images))[0])
        return Sample(index, example, to_row(example), full_length)
    except DataError as fault:
        return Sample(index, fault=str(fault))


def _summary(samples: list[Sample], count: int) -> Markup:
    readable = [sample for sample in samples if sample.row is not None]
    summary = [tile("samples shown", f"{len(samples):,}", f"of {count:,}")]
    if readable:
        tokens, targets = sum(s.tokens for s in readable), sum(s.targets for s in readable)
        length = len(readable[0].row.tokens)
        summary.append(tile("tokens a sample", f"{tokens / len(readable):,.0f}", f"on average, in rows of {length:,}"))
        percent = 100 * targets / max(tokens, 1)
        note = f"{targets:,} of {tokens:,} tokens"
        summary.append(tile("supervised", f"{percent:.1f}%", note, bar=share_bar(percent)))
        cut = sum(s.is_cut for s in readable)
        summary.append(tile("longer than a row", f"{cut:,}", f"of {length:,} tokens", tone="warn" if cut else ""))
    if broken := len(samples) - len(readable):
        summary.append(tile("broken", f"{broken:,}", "cannot be turned into rows", tone="bad"))
    return tiles(summary)


def _article(sample: Sample, tokenizer: Tokenizer) -> Markup:
    anchor = f"row-{sample.index}"
    if sample.row is None or sample.example is None:
        head = element("h2", f"row {sample.index}")
        broken = element("div", join(head, badge("broken", "bad")), class_="meta")
        return element("article", join(broken, element("p", sample.fault, class_="fault")), id=anchor)
    row, example = sample.row, sample.example
    head = [element("h2", f"row {sample.index}, id {example.id}")]
    head += [badge(example.kind, "accent")] if example.kind else []
    head += [badge("truncated", "warn")] if sample.is_cut else []
    pixels = [Image.fromarray(image) for image in row.images[: len(example.images)]]
    pictures = [picture(image, f"image {i} of sample {example.id}") for i, image in enumerate(pixels)]
    pieces = split_row(row, tokenizer)
    lengths = f"{sample.tokens} tokens in a row of {len(row.tokens)}, {sample.targets} of them supervised; "
    lengths += f"images: {len(pixels)}"
    lengths += f"; truncated from {sample.full_length} tokens" if sample.is_cut else ""
    text = join(*(_coloured(piece, piece.text) for piece in pieces))
    ids = join(*(_coloured(piece, _ids(piece)) for piece in pieces), separator=" ")
    hidden = join(element("summary", "token ids"), element("div", ids, class_="code"))
    column = [element("div", text, class_="code"), element("p", lengths, class_="note"), element("details", hidden)]
    body = element("div", join(*column, separator="\n"))
    if pictures:
        image_column = element("div", join(*pictures), class_="images")
        body = element("div", join(image_column, body), class_="with-image", style="--image:14rem")
    return element("article", join(element("div", join(*head), class_="meta"), body, separator="\n"), id=anchor)


def _coloured(piece: TokenSpan, text: str) -> Markup:
    if piece.is_image:
        return element("span", text, class_="image")
    return element("mark" if piece.is_target else "span", text)


def _ids(piece: TokenSpan) -> str:
    return f"{piece.ids[0]} x {len(piece.ids)}" if piece.is_image else " ".join(map(str, piece.ids))
