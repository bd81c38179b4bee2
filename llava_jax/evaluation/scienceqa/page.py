"""An HTML page of graded answers with their images; it can filter right, wrong and unparsed ones."""

from collections.abc import Mapping, Sequence

from llava_jax.data.sources.scienceqa import LETTERS, Problem
from llava_jax.errors import DataError
from llava_jax.evaluation.metrics import Accuracy, interval_text, percent_text
from llava_jax.evaluation.scienceqa.score import AVERAGE, COLUMNS, Comparison, GradedAnswer
from llava_jax.evaluation.task import ImageStore
from llava_jax.images.thumbnail import thumbnail
from llava_jax.output.html_page import Markup, document, element, join, picture
from llava_jax.output.page_parts import badge, filters, share_bar, table, tile, tiles

MAX_SIDE = 320  # of an image, in pixels
KINDS = {"right": "good", "wrong": "bad", "unparsed": "warn", "missing": "warn"}  # kind: tone
MEANINGS = {
    "NAT": "natural science", "SOC": "social science", "LAN": "language science", "TXT": "with a text",
    "IMG": "with an image", "NO": "with neither", "G1-6": "grades 1 to 6", "G7-12": "grades 7 to 12",
    AVERAGE: "all problems",
}  # fmt: skip


def scores_page(
    title: str,
    lines: Sequence[str],
    shares: dict[str, Accuracy],
    topics: dict[str, Accuracy],
    graded: Sequence[GradedAnswer],
    images: ImageStore,
    comparison: Comparison | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """A self-contained HTML page. lines: notes on how the answers were graded. facts: more header entries by name."""
    flips = {a.problem.pid: b for a, b in comparison.flips} if comparison else {}
    counts = {kind: sum(kind_of(item) == kind for item in graded) for kind in KINDS} | {"flip": len(flips)}
    choices = [(kind, kind, count) for kind, count in counts.items()]
    by_column = _rows("", shares, {name: _chance(graded, fits) for name, fits in COLUMNS.items()}, MEANINGS)
    by_topic = _rows("topic", topics, {t: _chance(graded, lambda p, t=t: p.topic == t) for t in topics})
    articles = [_article(item, images, flips.get(item.problem.pid)) for item in graded]
    body = [
        element("ul", join(*(element("li", line.strip()) for line in lines)), class_="note"),
        table(by_column, "accuracy by subject, context and grade"),
        element("p", "Line: the 95% interval. Dotted line: a random choice.", class_="note"),
        element("details", join(element("summary", f"by topic ({len(topics)})"), table(by_topic, "accuracy by topic"))),
        element("h2", "Answers"),
        filters([("show", "show", choices, len(graded))]),
        element("div", join(*articles, separator="\n"), class_="grid", style="--card:30rem"),
    ]
    return document(title, body, label="ScienceQA", facts=facts, summary=_summary(shares, counts, comparison))


def _summary(shares: dict[str, Accuracy], counts: dict[str, int], comparison: Comparison | None) -> Markup:
    share = shares[AVERAGE]
    note = f"{share.correct:,} of {share.count:,}, 95% {interval_text(share)}"
    summary = [tile("accuracy", f"{percent_text(share.percent)}%", note, bar=share_bar(share.percent, share.interval))]
    count = sum(counts[kind] for kind in KINDS)
    for kind, tone in KINDS.items():
        if counts[kind]:
            summary.append(tile(kind, f"{counts[kind]:,}", f"{100 * counts[kind] / count:.1f}%", tone=tone))
    if comparison is not None and comparison.count:
        points = 100 * (comparison.only_first - comparison.only_second) / comparison.count
        note = f"{comparison.only_first:,} only here, {comparison.only_second:,} only there right; McNemar "
        summary.append(tile("against the other file", f"{points:+.2f}", f"{note}p = {comparison.p:.3g}"))
    return tiles(summary)


def _chance(graded: Sequence[GradedAnswer], fits) -> float | None:
    """The expected accuracy of random choices, in percent, on the problems that fit."""
    shares = [100 / len(item.problem.choices) for item in graded if fits(item.problem)]
    return sum(shares) / len(shares) if shares else None


def _rows(
    head: str, shares: dict[str, Accuracy], chances: dict[str, float | None], meanings: Mapping[str, str] | None = None
) -> list[list[str]]:
    rows = [[head, "" if meanings is None else "problems", "share", "percent", "95% interval", "right", "of"]]
    for name, share in shares.items():
        numbers = [percent_text(share.percent), interval_text(share), f"{share.correct:,}", f"{share.count:,}"]
        bar = share_bar(share.percent, share.interval, chances[name])
        rows.append([name, (meanings or {}).get(name, ""), bar, *numbers])
    return rows


def kind_of(item: GradedAnswer) -> str:
    """One of KINDS. An unparsed answer is "unparsed", even if its sampled choice is right."""
    return item.status if item.status != "parsed" else "right" if item.is_right else "wrong"


def _article(item: GradedAnswer, images: ImageStore, other: GradedAnswer | None) -> Markup:
    problem, kind = item.problem, kind_of(item)
    head = [element("h3", problem.pid), badge(kind, KINDS[kind])]
    head += [badge("flip", "accent")] if other is not None else []
    head.append(element("span", f"{problem.subject}, {problem.topic}, {problem.grade}"))
    column = [element("p", problem.hint, class_="text note")] if problem.hint else []
    column.append(element("h3", problem.question, class_="text"))
    column.append(_choices(item, other))
    letter = f"parsed letter: {item.letter or 'none'}"
    if item.status == "unparsed" and item.index >= 0:
        letter += "; the choice was sampled"
    if item.text is None:
        column.append(element("p", letter, class_="note"))
    else:
        inside = join(element("summary", f"text of the answer; {letter}"), element("div", item.text, class_="text"))
        column.append(element("details", inside, **({"open": ""} if kind == "unparsed" else {})))
    body = element("div", join(*column, separator="\n"))
    if image := _image(problem, images):
        body = element("div", join(image, body), class_="with-image", style="--image:11rem")
    kinds = kind if other is None else f"{kind} flip"
    return element("article", join(element("div", join(*head), class_="meta"), body, separator="\n"), class_=kinds)


def _choices(item: GradedAnswer, other: GradedAnswer | None) -> Markup:
    """The choices; the right one, the answered one and that of the other file are marked."""
    lines = []
    for i, choice in enumerate(item.problem.choices):
        is_right, is_answer = i == item.problem.answer, i == item.index
        marks = [badge("right", "good")] if is_right else []
        marks += [badge("answered", "good" if is_right else "bad")] if is_answer else []
        marks += [badge("the other file", "accent")] if other is not None and i == other.index else []
        tone = "good" if is_right else "bad" if is_answer else ""
        lines.append(element("li", join(element("b", LETTERS[i]), element("span", choice), *marks), class_=tone))
    return element("ul", join(*lines, separator="\n"), class_="choices")


def _image(problem: Problem, images: ImageStore) -> Markup:
    if problem.image is None:
        return Markup()
    try:
        file = images.find(problem.image, f"problem {problem.pid}")
    except DataError as fault:
        return element("p", str(fault), class_="fault")
    image = thumbnail(file, problem.image, MAX_SIDE)
    if image is None:
        return element("p", f"image {problem.image} is missing or unreadable", class_="fault")
    return element("div", picture(image, f"image of problem {problem.pid}", "jpeg"), class_="images")
