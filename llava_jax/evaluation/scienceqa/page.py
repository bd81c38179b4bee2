"""Every graded answer on one page, with its image; a choice of radio buttons shows right, wrong or unparsed ones."""

from collections.abc import Sequence

from llava_jax.data.sources.scienceqa import LETTERS, Problem
from llava_jax.errors import DataError
from llava_jax.evaluation.scienceqa.report import interval_text, percent_text
from llava_jax.evaluation.scienceqa.score import Comparison, Graded, Share
from llava_jax.images.files import ImageFolder, ImageZip
from llava_jax.output.html_page import Markup, document, element, table, thumbnail

SIDE = 320  # of an image, at most
KINDS = ("right", "wrong", "unparsed", "missing")
# The page runs nothing: its style sheet hides the articles that are not of the kind that is ticked.
HIDING = "\n".join(
    f"body:has(#show-{kind}:checked) article:not(.{kind}) {{ display: none }}" for kind in (*KINDS, "flip")
)


def page(
    title: str,
    lines: Sequence[str],
    shares: dict[str, Share],
    topics: dict[str, Share],
    graded: Sequence[Graded],
    images: ImageFolder | ImageZip,
    comparison: Comparison | None = None,
) -> str:
    """One HTML page without anything from elsewhere. lines: what was graded and how, in words."""
    flips = {a.problem.pid: b for a, b in comparison.flips} if comparison else {}
    counts = {kind: sum(kind_of(item) == kind for item in graded) for kind in KINDS} | {"flip": len(flips)}
    shown = [_button("all", f"all {len(graded):,}", checked="")]
    shown += [_button(kind, f"{kind} {count:,}") for kind, count in counts.items() if count]
    rows = [["", "right", "of", "percent", "95% interval"]]
    for name, share in (shares | topics).items():
        rows.append([name, str(share.correct), str(share.count), percent_text(share.percent), interval_text(share)])
    body = [element("style", Markup(HIDING)), *(element("p", line) for line in lines), table(rows)]
    body.append(element("p", Markup("show: " + " ".join(shown))))
    return document(title, [*body, *(_article(item, images, flips.get(item.problem.pid)) for item in graded)])


def kind_of(item: Graded) -> str:
    """One of KINDS. What was not parsed is that, even where a drawn choice is right."""
    return item.status if item.status != "parsed" else "right" if item.is_right else "wrong"


def _article(item: Graded, images: ImageFolder | ImageZip, other: Graded | None) -> Markup:
    problem, kind = item.problem, kind_of(item)
    parts = [element("h2", f"{problem.pid}: {kind}"), _image(problem, images)]
    if problem.hint:
        parts.append(element("p", problem.hint, class_="text"))
    parts.append(element("p", problem.question, class_="text"))
    columns = {"right": problem.answer, "answered": item.index}
    if other is not None:
        columns["the other file"] = other.index
    choices = [["", "choice", *columns]]
    for i, choice in enumerate(problem.choices):
        choices.append([LETTERS[i], choice, *("x" if i == index else "" for index in columns.values())])
    parts.append(table(choices))
    about = f"{problem.subject}, {problem.topic}, {problem.grade}; letter found: {item.letter or 'none'}"
    if item.status == "unparsed" and item.index >= 0:
        about += "; the choice was drawn at random"
    parts.append(element("p", about))
    if item.text is not None:
        is_open = {} if kind != "unparsed" else {"open": ""}
        inside = Markup(element("summary", "the text") + element("div", item.text, class_="text"))
        parts.append(element("details", inside, **is_open))
    return element("article", Markup("\n".join(parts)), class_=kind if other is None else f"{kind} flip")


def _image(problem: Problem, images: ImageFolder | ImageZip) -> Markup:
    if problem.image is None:
        return Markup()
    try:
        found = images.find(problem.image, f"problem {problem.pid}")
    except DataError as fault:
        return element("p", str(fault), class_="fault")
    shown = thumbnail(found, problem.image, SIDE, "jpeg")
    return shown or element("p", f"image {problem.image} is missing or does not open", class_="fault")


def _button(kind: str, label: str, **more: str) -> Markup:
    button = element("input", type="radio", name="show", id=f"show-{kind}", **more)
    return element("label", Markup(button + element("span", f" {label} ")))
