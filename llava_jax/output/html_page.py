"""A page in one file: no script, nothing loaded from elsewhere, pictures inside, all text from data escaped.

`document` is the whole page: header, style sheet (page.css), contents, body. What goes into it is in `page_parts`.
"""

import base64
import functools
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Literal

from PIL import Image

# Nothing is fetched and nothing runs, whatever gets through.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID = ("img", "input", "meta")  # elements without content
SMALL = 128  # pixels a side; a smaller picture is enlarged pixel by pixel, not blurred


class Markup(str):
    """HTML of our own making; every other string is text, and escaped."""


def escaped(text: str) -> Markup:
    """Text as HTML. Half characters, which no file can hold, become question marks."""
    return text if isinstance(text, Markup) else Markup(html.escape(text.encode(errors="replace").decode()))


def join(*parts: str, separator: str = "") -> Markup:
    """Parts, text escaped, one after the other."""
    return Markup(escaped(separator).join(escaped(part) for part in parts))


def element(name: str, content: str = "", /, **attributes: str) -> Markup:
    """<name attribute="..">content</name>, with text escaped. `class_` is the attribute class, `aria_label` is
    aria-label; an attribute with the value "" is left out, except `alt` and `checked` and `open`."""
    markup = ""
    for key, value in attributes.items():
        if value or key in ("alt", "checked", "open"):
            markup += f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
    return Markup(f"<{name}{markup}>" if name in VOID else f"<{name}{markup}>{escaped(content)}</{name}>")


def document(
    title: str,
    body: Iterable[str],
    *,
    label: str = "",
    facts: Mapping[str, str] | None = None,
    summary: str = "",
    contents: Sequence[tuple[str, str, str]] = (),
) -> str:
    """A whole page -> its HTML, which is the same for the same arguments.

    label: what kind of page it is, above the title.
    facts: what it is about, by name: the data, the model, the settings, a date. Empty ones are left out.
    summary: what stands across the whole page above the body, `page_parts.tiles` mostly.
    contents: (id of an element of the body, text, count) of a list of links that stays in view.
    """
    nonempty_facts = [(name, value) for name, value in (facts or {}).items() if value]
    head = [element("p", label, class_="eyebrow")] if label else []
    head.append(element("h1", title))
    if nonempty_facts:
        pairs = (element("div", join(element("dt", name), element("dd", value))) for name, value in nonempty_facts)
        head.append(element("dl", join(*pairs), class_="facts"))
    main = element("main", join(*body, separator="\n"), id="main")
    if contents:
        links = (
            element("li", element("a", join(text, element("span", count)), href=f"#{anchor}"))
            for anchor, text, count in contents
        )
        nav = element("nav", element("ol", join(*links)), class_="contents", aria_label="Contents")
        main = element("div", join(nav, main, separator="\n"), class_="beside")
    parts = [
        Markup('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_style())),
        Markup("</head><body>"),
        element("a", "Skip to the content", class_="skip", href="#main"),
        element("header", join(*head, separator="\n")),
        summary,
        main,
        element("footer", "Written by llava_jax. One file: it runs no script and loads nothing."),
        Markup("</body></html>\n"),
    ]
    return join(*parts, separator="\n")


@functools.cache
def _style() -> str:
    return resources.files("llava_jax.output").joinpath("page.css").read_text(encoding="utf-8")


def picture(image: Image.Image, alt: str, kind: Literal["png", "jpeg"] = "png") -> Markup:
    """A picture inside the page: each pixel as it is (PNG), or in a tenth of the bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    is_small = max(image.size) <= SMALL
    size = {"width": str(image.width), "height": str(image.height)}
    src = f"data:image/{kind};base64,{data}"
    return element("img", src=src, alt=alt, class_="pixels" if is_small else "", **size)
