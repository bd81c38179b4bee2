"""Samples as the model gets them: pixels after crop or pad, text with what it is to learn in colour, ids, lengths."""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.inspection.check import Encode
from llava_jax.data.rows import Row
from llava_jax.errors import DataError
from llava_jax.output.html_page import Markup, document, element, picture
from llava_jax.text.spans import Piece, split_row
from llava_jax.text.tokenizer import Tokenizer


def samples_page(
    title: str, source, indices: Iterable[int], to_row: Callable[[Example], Row], encode: Encode, tokenizer: Tokenizer
) -> str:
    """One HTML page. A sample that cannot become a row shows its fault instead.

    to_row: as in training, see `rows.build_row`. encode: see `tokenize.encode_row`; says what was cut off.
    """
    legend = Markup(
        f"{element('mark', 'supervised')}: the model learns to say this. "
        f"{element('span', 'image', class_='image')}: placeholders, their number, which the features replace."
    )
    samples = []
    for index in indices:
        try:
            example = source[index]
            whole = len(encode(example.turns, len(example.images))[0])
            body = _sample(example, to_row(example), whole, tokenizer)
            head = element("h2", f"row {index}, id {example.id}")
        except DataError as fault:
            head, body = element("h2", f"row {index}"), element("p", str(fault), class_="fault")
        samples.append(element("article", Markup(head + body)))
    return document(title, [element("p", legend), *samples])


def _sample(example: Example, row: Row, whole: int, tokenizer: Tokenizer) -> Markup:
    pixels = [Image.fromarray(image) for image in row["images"][: len(example.images)]]
    pictures = [picture(image, f"image {i} of sample {example.id}") for i, image in enumerate(pixels)]
    pieces = split_row(row, tokenizer)
    real, targets = int((row["segment_ids"] > 0).sum()), int(np.count_nonzero(row["target_mask"]))
    lengths = f"{real} tokens in a row of {len(row['tokens'])}, {targets} of them supervised; images: {len(pixels)}"
    lengths += f"; cut off, the whole sample has {whole} tokens" if whole > real else ""
    text = Markup("".join(_coloured(piece, piece.text) for piece in pieces))
    ids = Markup(" ".join(_coloured(piece, _ids(piece)) for piece in pieces))
    hidden = Markup(element("summary", "token ids") + element("div", ids, class_="text"))
    parts = [*pictures, element("div", text, class_="text"), element("p", lengths), element("details", hidden)]
    return Markup("\n".join(parts))


def _coloured(piece: Piece, text: str) -> Markup:
    if piece.is_image:
        return element("span", text, class_="image")
    return element("mark" if piece.is_target else "span", text)


def _ids(piece: Piece) -> str:
    return f"{piece.ids[0]} x {len(piece.ids)}" if piece.is_image else " ".join(map(str, piece.ids))
