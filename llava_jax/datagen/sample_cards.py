"""Cards of samples for the report: image with its boxes, the conversation, and its claims marked right or wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from llava_jax.datagen.categories import Vocabulary
from llava_jax.datagen.claims import Claim, claims_in
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.truth import verdict
from llava_jax.output.html_page import Markup, element, join, picture
from llava_jax.output.page_parts import badge

# Strokes that can be seen on light and dark images, with a white number on them.
COLORS = ("#c2255c", "#1971c2", "#2f7d32", "#b35900", "#7048c8", "#0b7285")
CANVAS = (400, 300)  # where the image is missing: its boxes alone, of unknown proportion
OUTCOMES = {False: ("wrong", "bad"), None: ("not checked", "warn"), True: ("right", "good")}  # the most severe first
SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}

Judged = tuple[Claim, bool | None]  # a claim with its verdict


def sample_card(
    record: Mapping[str, Any], context: ImageContext, vocabulary: Vocabulary, image: Image.Image | None
) -> Markup:
    """The card of a line of checks.jsonl. image: a thumbnail; None: the boxes are drawn without it."""
    head = join(badge(record["kind"], "accent"), element("span", context.id))
    turns, judged = [], []
    for question, answer, is_added in _turns(record):
        claims = [
            (claim, verdict(claim, context.boxes, vocabulary)) for claim in claims_in(question, answer, vocabulary)
        ]
        judged += claims
        title = join(badge("added"), " ", question) if is_added else question
        turns += [element("h3", title, class_="text"), element("p", marked(answer, claims), class_="text")]
    column = element("div", join(*turns, _verdicts(judged, context.boxes, vocabulary), separator="\n"))
    body = element("div", join(boxed_image(context, image), column), class_="with-image", style="--image:18rem")
    return element("article", join(element("div", head, class_="meta"), body, separator="\n"))


def _turns(record: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(question, answer, whether the pair was added by --avoidance) of a row."""
    turns = [(question, answer, False) for question, answer in record["pairs"]]
    if record["absent"] is not None:
        turns.insert(record["absent"]["position"], (*record["absent"]["pair"], True))
    return turns


def marked(answer: str, claims: Sequence[Judged]) -> Markup:
    """The answer with the words of its claims marked by their verdict; where claims overlap, by the most severe."""
    edges = sorted({0, len(answer), *(edge for claim, _ in claims for edge in (claim.start, claim.end))})
    parts = []
    for start, end in zip(edges, edges[1:], strict=False):
        inside = [(claim, right) for claim, right in claims if claim.start <= start and end <= claim.end]
        text, severest = answer[start:end], next((o for o in OUTCOMES if any(right is o for _, right in inside)), None)
        if inside:
            label = "; ".join(f"{claim_text(claim)}: {OUTCOMES[right][0]}" for claim, right in inside)
            parts.append(element("mark", text, class_=OUTCOMES[severest][1], title=label))
        else:
            parts.append(text)
    return join(*parts)


def claim_text(claim: Claim) -> str:
    """A claim in a few words.

    >>> claim_text(Claim("count", "dog", "two dogs", 0, 8, count=2))
    'dog: 2'
    """
    if claim.kind == "absent":
        return f"no {claim.subject}"
    if claim.kind == "count":
        number = "some" if claim.count is None else f"{claim.count}"
        return f"{claim.subject}: {'at least ' if claim.at_least else ''}{number}"
    if claim.kind == "relation":
        return f"{claim.subject} {SIDES[claim.relation]} {claim.object}"
    return claim.subject


def _verdicts(judged: Sequence[Judged], boxes: Sequence[Box] | None, vocabulary: Vocabulary) -> Markup:
    """How many claims have each verdict, and the wrong ones beside what the boxes show."""
    labels = []
    for outcome, (label, tone) in reversed(OUTCOMES.items()):
        if count := sum(right is outcome for _, right in judged):
            labels.append(badge(f"{count:,} {label}", tone))
    if boxes is None:
        labels.append(element("span", "no boxes are known of this image"))
    parts = [element("div", join(*labels), class_="meta")] if labels else []
    wrong = dict.fromkeys(_wrong(claim, boxes or (), vocabulary) for claim, right in judged if right is False)
    if wrong:
        parts.append(element("ul", join(*(element("li", text) for text in wrong)), class_="note"))
    return join(*parts)


def _wrong(claim: Claim, boxes: Sequence[Box], vocabulary: Vocabulary) -> str:
    if claim.kind == "relation":
        return f"{claim_text(claim)}: the boxes lie otherwise"
    boxed = sum(box.category in vocabulary.covered(claim.subject) for box in boxes)
    return f"{claim_text(claim)}: {boxed or 'no'} {'box' if boxed < 2 else 'boxes'}"


def boxed_image(context: ImageContext, image: Image.Image | None) -> Markup:
    """The image under its numbered boxes, with their categories below."""
    width, height = CANVAS if image is None else image.size
    alt = f"image {context.image} with {len(context.boxes or ())} boxes"
    categories = list(dict.fromkeys(box.category for box in context.boxes or ()))
    boxes = sorted(context.boxes or (), key=lambda box: categories.index(box.category))
    shapes, numbers = [], {category: [] for category in categories}
    for number, box in enumerate(boxes, 1):
        color = COLORS[categories.index(box.category) % len(COLORS)]
        shapes += _box_shapes(number, box, color, width, height)
        numbers[box.category].append(number)
    view = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": alt}
    layers = [] if image is None else [picture(image, "", "jpeg")]
    layers += [element("svg", join(*shapes), class_="alone" if image is None else "", **view)]
    items = [
        element("span", join(badge(_range(of_category)), " ", category)) for category, of_category in numbers.items()
    ]
    note = [] if image is not None else [element("span", "boxes without the image")]
    caption = element("figcaption", join(*items, *note, separator=" "), class_="meta")
    return element("figure", join(element("div", join(*layers), class_="layers"), caption), class_="boxed")


def _box_shapes(number: int, box: Box, color: str, width: int, height: int) -> list[Markup]:
    x, y = box.left * width, box.top * height
    sides = {"width": (box.right - box.left) * width, "height": (box.bottom - box.top) * height}
    outline = {"x": x, "y": y, **sides}
    label = {"x": min(x, width - 18.0), "y": min(y, height - 14.0), "width": 8.0 + 6 * len(str(number)), "height": 13.0}
    return [
        element("rect", **{k: f"{v:.1f}" for k, v in outline.items()}, fill="none", stroke=color, stroke_width="2"),
        element("rect", **{k: f"{v:.1f}" for k, v in label.items()}, fill=color),
        element(
            "text", str(number), x=f"{label['x'] + 4:.1f}", y=f"{label['y'] + 10:.1f}", fill="#fff", font_size="10"
        ),
    ]


def _range(numbers: Sequence[int]) -> str:
    """Consecutive numbers as a range.

    >>> _range([2]), _range([2, 3, 4])
    ('2', '2-4')
    """
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
