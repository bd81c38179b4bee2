"""A second model decides whether the captions and boxes of an image support a question and its answer."""

import re
from collections.abc import Sequence

from llava_jax.datagen.contexts import ImageContext, context_text

SYSTEM = (
    "You check training data for a model that answers questions about images. You are given what is known of an image: "
    "sentences that describe it, and where it has been annotated, the positions of objects in it as boxes with the "
    "coordinates (x1, y1, x2, y2), from 0 to 1. You are also given a question about the image and an answer. Reply "
    "with one word. Reply yes if the question has a definite answer and what the answer says of the image follows from "
    "what is known of it; general knowledge and careful conclusions are allowed. Reply no if the answer contradicts "
    "what is known or states something about the image that cannot be known from it."
)
ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def opinion_requests(
    row_id: str, context: ImageContext, pairs: Sequence[tuple[str, str]]
) -> dict[str, list[dict[str, str]]]:
    """A request for each pair, by id: ROW_ID/opinion/INDEX. The boxes are shown whatever the kind of the row."""
    known = context_text(context, with_boxes=True)
    return {
        f"{row_id}/opinion/{i}": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{known}\n\nQuestion: {question}\n\nAnswer: {answer}\n\nSupported?"},
        ]
        for i, (question, answer) in enumerate(pairs)
    }


def parse_opinion(text: str) -> bool | None:
    """True for yes, False for no, None for a reply that begins with neither."""
    match = ANSWER.match(text)
    return None if match is None else match[1].lower() == "yes"
