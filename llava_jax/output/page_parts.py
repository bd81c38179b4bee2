"""Elements of the pages: tiles, tables, bars, badges, and filters that need no script."""

import re
from collections.abc import Iterable, Sequence

from llava_jax.output.html_page import Markup, element, join

_NUMBER = r"[-+]?[\d,]*\.?\d+ ?%?"
NUMBER = re.compile(rf"({_NUMBER}( to {_NUMBER})?|-)?")  # or an interval, or empty


def table(rows: Sequence[Sequence[str]], label: str = "") -> Markup:
    """A table of text or Markup. The first row is the heading, the first column names its row.

    Columns without content are omitted; columns of numbers are right-aligned. label: for screen readers.
    """
    columns = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    numbers = {i for i in columns if all(_is_number(row[i]) for row in rows[1:])}

    def cells(row: Sequence[str], is_head: bool) -> Markup:
        cell_elements = []
        for i in columns:
            scope = "col" if is_head else "row" if i == 0 and i not in numbers else ""
            kind = "number" if i in numbers else ""
            cell_elements.append(element("th" if scope else "td", row[i], scope=scope, class_=kind))
        return element("tr", join(*cell_elements))

    head = element("thead", cells(rows[0], True))
    body = element("tbody", join(*(cells(row, False) for row in rows[1:]), separator="\n"))
    html = element("table", join(head, body, separator="\n"))
    # Scrolls sideways on narrow screens; the tabindex makes that work by keyboard too.
    return element("div", html, class_="scroll", tabindex="0", role="region", aria_label=label or "table")


def _is_number(cell: str) -> bool:
    return not isinstance(cell, Markup) and NUMBER.fullmatch(cell) is not None


def tile(label: str, value: str, note: str = "", *, bar: str = "", tone: str = "") -> Markup:
    """One number of a summary. tone: good, bad, warn or "". bar: a `share_bar`, which makes the tile wide."""
    parts = [element("dt", label), element("dd", value, class_=f"value {tone}".strip())]
    parts += [element("dd", bar)] if bar else []
    parts += [element("dd", note, class_="note")] if note else []
    return element("div", join(*parts), class_="wide" if bar else "")


def tiles(items: Iterable[str]) -> Markup:
    """A row of `tile`s."""
    return element("dl", join(*items, separator="\n"), class_="tiles")


def share_bar(percent: float | None, interval: tuple[float, float] | None = None, mark: float | None = None) -> Markup:
    """A horizontal bar filled to `percent`, with error bars for `interval` and a dotted line at `mark`, all in percent.
    Empty if `percent` is None."""
    if percent is None:
        return Markup()
    label, inside, style = f"{percent:.1f}%", element("i"), f"--at:{percent:.2f}%"
    if interval is not None:
        label += f", 95% interval {interval[0]:.1f} to {interval[1]:.1f}"
        style += f";--from:{interval[0]:.2f}%;--to:{interval[1]:.2f}%"
        inside += element("b")
    if mark is not None:
        label += f", the dotted line is at {mark:.1f}"
        style += f";--mark:{mark:.2f}%"
        inside += element("s")
    return element("span", Markup(inside), class_="bar", role="img", aria_label=label, title=label, style=style)


def badge(text: str, tone: str = "") -> Markup:
    """A word in a colored pill. tone: good, bad, warn, accent or ""."""
    return element("span", text, class_=f"badge {tone}".strip())


def definitions(pairs: Iterable[tuple[str, str, str]], class_: str) -> Markup:
    """A definition list of (term, text, class)."""
    items = (element("div", join(element("dt", t), element("dd", text)), class_=tone) for t, text, tone in pairs)
    return element("dl", join(*items), class_=class_)


def filters(groups: Iterable[tuple[str, str, Sequence[tuple[str, str, int]], int]]) -> Markup:
    """Rows of radio buttons; the page shows the articles that match the chosen button of every row.

    groups: (name, legend, choices, number of all articles). choices: (class, label, count); the button shows the
    articles of that class. Names and classes must be identifiers; labels are free text. Choices without articles and
    rows without a real choice are omitted.
    """
    rows, rules = [], []
    for name, legend, choices, count in groups:
        offered = [(kind, label, number) for kind, label, number in choices if number]
        if not offered or len(offered) == 1 and offered[0][2] == count:
            continue
        buttons = [_button(name, "all", f"all {count:,}", checked="")]
        for kind, label, number in offered:
            buttons.append(_button(name, kind, f"{label} {number:,}"))
            rules.append(f"body:has(#{name}-{kind}:checked) article:not(.{kind}) {{ display: none }}")
        rows.append(element("fieldset", join(element("legend", legend), *buttons, separator=Markup(" "))))
    if not rows:
        return Markup()
    # No script: style rules hide the articles that do not match.
    return join(element("style", Markup("\n".join(rules))), element("div", join(*rows), class_="filters"))


def _button(name: str, kind: str, label: str, **more: str) -> Markup:
    button = element("input", type="radio", name=name, id=f"{name}-{kind}", **more)
    return element("label", join(button, element("span", label)))
