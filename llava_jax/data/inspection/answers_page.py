"""Writes the sample answers of an evaluation: answers.json, the images, and an HTML page with the references.

The page is one file with embedded thumbnails, so that it can be shared. It also shows the answers of an earlier
evaluation and the accuracy table of an exam, if any.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.sources.scene_world import conclusion
from llava_jax.data.sources.scenes import QUESTION_KINDS
from llava_jax.images.preprocess import load_image
from llava_jax.images.thumbnail import thumbnail
from llava_jax.output.files import write_atomically
from llava_jax.output.html_page import SMALL, Markup, document, element, join, picture
from llava_jax.output.intervals import wilson
from llava_jax.output.json_text import parse_json
from llava_jax.output.page_parts import badge, definitions, filters, share_bar, table, tile, tiles

MAX_SIDE = 384  # of an image on the page, in pixels; the image files have full size
CONCLUSION_KINDS = {*QUESTION_KINDS, "conversation", "reasoning"}  # scene questions with one correct answer
MAX_COMPARED_WORDS = 4  # a longer reference can be paraphrased
OUTCOMES = {True: ("right", "good"), False: ("wrong", "bad"), None: ("not graded", "")}


def format_answers(examples: list[Example], answers: list[str]) -> list[str]:
    """Returns question, reference and answer of each example as lines of text."""
    lines = []
    for e, text in zip(examples, answers, strict=False):
        lines += [f"  {e.id}: {_question(e)}", f"    reference: {e.first_answer}", f"    answer:    {text}"]
    return lines


def write_answers(
    folder: Path,
    examples: Sequence[Example],
    answers: Sequence[str],
    run: "RunSummary",
    before: Mapping[tuple[str, str], str],
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes answers.json, answers.html and the images to `folder`; the files depend on the arguments only.

    before: the answers of an earlier evaluation, see `read_sample_answers`.
    facts: further entries of the page's header, by name.
    Raises OSError if a file cannot be written, DataError for an unreadable image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records, cards = [], []
    for i, (e, text) in enumerate(zip(examples, answers, strict=True)):
        question, reference = _question(e), e.first_answer
        images = [load_image(image, e.id) for image in e.images]
        names = [f"{i}-{k}.png" for k in range(len(images))]
        for image, name in zip(images, names, strict=True):
            image.save(folder / name)
        records.append({"id": e.id, "images": names, "question": question, "reference": reference, "answer": text})
        cards.append(AnswerCard(e.id, e.kind, question, reference, text, before.get((e.id, question)), images))
    write_atomically(folder / "answers.json", json.dumps(records, indent=1, ensure_ascii=False))
    write_atomically(folder / "answers.html", answers_page(run, cards, facts))


def read_sample_answers(file: Path) -> dict[tuple[str, str], str]:
    """Returns {(id, question): answer} of an answers.json; empty if it is missing or damaged."""
    try:
        return {(r["id"], r["question"]): r["answer"] for r in parse_json(file.read_bytes())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


@dataclasses.dataclass(frozen=True)
class AnswerCard:
    """A question with its answers. before: the answer of the evaluation before the stage, or None."""

    id: str
    kind: str
    question: str
    reference: str
    answer: str
    before: str | None
    images: Sequence[Image.Image]

    @property
    def is_right(self) -> bool | None:
        return is_right(self.kind, self.reference, self.answer)

    @property
    def was_right(self) -> bool | None:
        return None if self.before is None else is_right(self.kind, self.reference, self.before)


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """Run metadata for the page. facts: entries of the header, by name. accuracy: {"before" or "after": {kind:
    {"image", "blank" and "chance": percent}}}. questions: the number of each kind in the exam, 0 if unknown."""

    stage: str = ""
    step: int = 0
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accuracy: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    questions: int = 0


def is_right(kind: str, reference: str, answer: str) -> bool | None:
    """Returns whether an answer is right, or None if a comparison of texts cannot decide.

    Questions about scenes are graded as in the accuracy table, by the conclusion of the answer. For other data, a
    reference of a few words is compared with the whole answer, ignoring case and a final full stop.
    """
    if kind in CONCLUSION_KINDS:
        return conclusion(answer) == conclusion(reference)
    if kind or len(reference.split()) > MAX_COMPARED_WORDS:
        return None
    return _normalized(answer) == _normalized(reference)


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(" .")


def answers_page(run: RunSummary, cards: Sequence[AnswerCard], facts: Mapping[str, str] | None = None) -> str:
    """Returns the HTML page. facts: further entries of the header, by name."""
    title = "Answers on held-out samples"
    if run.stage:
        title = f"Answers after step {run.step:,} of {run.stage}" if run.step else f"Answers before {run.stage}"
    kinds = list(dict.fromkeys(card.kind for card in cards if card.kind))
    body = _accuracy(run) if run.accuracy else []
    body.append(_filters(cards, kinds))
    articles = [_article(card, kinds) for card in cards]
    body.append(element("div", join(*articles, separator="\n"), class_="grid", style="--card:30rem"))
    return document(
        title, body, label="sample answers", facts=dict(run.facts) | dict(facts or {}), summary=_summary(cards)
    )


def _summary(cards: Sequence[AnswerCard]) -> Markup:
    graded = [card for card in cards if card.is_right is not None]
    summary = [tile("answers", f"{len(cards):,}", f"{len(cards) - len(graded):,} not graded")]
    if len(graded) < len(cards):
        identical = sum(card.answer == card.reference for card in cards if card.is_right is None)
        summary.append(tile("word for word", f"{identical:,}", "as the reference, of those not graded"))
    outcomes = {"right": [bool(c.is_right) for c in graded]}
    compared = [c for c in graded if c.was_right is not None]
    if compared:
        outcomes = {"right before": [bool(c.was_right) for c in compared]} | outcomes
    for label, values in outcomes.items():
        if values:
            correct, count = sum(values), len(values)
            percent, interval = 100 * correct / count, wilson(correct, count)
            note = f"{correct:,} of {count:,}" + (f", 95% {interval[0]:.0f} to {interval[1]:.0f}" if interval else "")
            summary.append(tile(label, f"{percent:.0f}%", note, bar=share_bar(percent, interval)))
    return tiles(summary)


def _accuracy(run: RunSummary) -> list[Markup]:
    """Returns the accuracy table of the exam, with intervals if the number of questions is known."""
    modes = [(name, run.accuracy[key], column) for name, key, column in (
        ("before", "before", "image"), ("after", "after", "image"), ("image blanked", "after", "blank"),
    ) if key in run.accuracy]  # fmt: skip
    rows = [["question", *(cell for name, *_ in modes for cell in (name, "%"))]]
    kinds = next(iter(run.accuracy.values()))
    for kind in kinds:
        row = [kind]
        for _, scores, column in modes:
            percent, chance = scores[kind][column], scores[kind]["chance"]
            count = run.questions if kind in QUESTION_KINDS else 0
            interval = wilson(round(percent * count / 100), count)
            row += [share_bar(percent, interval, chance), f"{percent:.1f}"]
        rows.append(row)
    note = "Questions about held-out scenes. Dotted: chance level, without the image."
    note += f" Lines: 95% intervals of {run.questions:,} questions of each kind." if run.questions else ""
    return [
        element("h2", "Accuracy by kind of question"),
        table(rows, "accuracy by kind of question"),
        element("p", note, class_="note"),
        element("h2", "Sample answers"),
    ]


def _filters(cards: Sequence[AnswerCard], kinds: Sequence[str]) -> Markup:
    classes = [_classes(card, kinds) for card in cards]
    by_kind = [(f"kind-{i}", kind, sum(card.kind == kind for card in cards)) for i, kind in enumerate(kinds)]
    outcomes = {"right": "right", "wrong": "wrong", "ungraded": "not graded", "better": "became right"}
    outcomes |= {"worse": "became wrong"}
    by_outcome = [(name, label, sum(name in c for c in classes)) for name, label in outcomes.items()]
    return filters([("kind", "kind", by_kind, len(cards)), ("outcome", "answer", by_outcome, len(cards))])


def _classes(card: AnswerCard, kinds: Sequence[str]) -> list[str]:
    names = [{True: "right", False: "wrong", None: "ungraded"}[card.is_right]]
    names += [f"kind-{kinds.index(card.kind)}"] if card.kind else []
    names += ["better"] if card.is_right and card.was_right is False else []
    names += ["worse"] if card.is_right is False and card.was_right else []
    return names


def _article(card: AnswerCard, kinds: Sequence[str]) -> Markup:
    head = [badge(card.kind, "accent")] if card.kind else []
    head += [element("span", card.id)]
    answers = [_answer("answer" if card.before is None else "after", card.answer, card.is_right, card.reference)]
    if card.before is not None:
        answers.insert(0, _answer("before", card.before, card.was_right, card.reference))
    answers.append(("reference", card.reference, ""))
    content = [element("h3", card.question, class_="text"), definitions(answers, "answers")]
    body = element("div", join(*content, separator="\n"))
    if card.images:
        pictures = (_picture(image, f"image of sample {card.id}") for image in card.images)
        body = element("div", join(element("div", join(*pictures), class_="images"), body), class_="with-image")
    meta = element("div", join(*head), class_="meta")
    return element("article", join(meta, body, separator="\n"), class_=" ".join(_classes(card, kinds)))


def _answer(term: str, text: str, outcome: bool | None, reference: str) -> tuple[str, str, str]:
    """Returns (term, answer, tone)."""
    label, tone = OUTCOMES[outcome]
    label = "word for word" if outcome is None and text == reference else label
    return join(term, badge(label, tone), separator=" "), text or element("em", "nothing"), tone


def _picture(image: Image.Image, alt: str) -> Markup:
    shown = thumbnail(image, alt, MAX_SIDE)
    if shown is None:
        return Markup()
    return picture(shown, alt, "png" if max(shown.size) <= SMALL else "jpeg")


def _question(example: Example) -> str:
    return example.opening[-1][1].replace("<image>", "").strip()
