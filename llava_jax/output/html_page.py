"""Self-contained HTML pages: no script, no external resources, images embedded, all text escaped.

`document` builds the page: header, style sheet (page.css), table of contents, body. `page_parts` has its elements.
"""

import base64
import functools
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Literal

from PIL import Image

# Second line of defense after escaping: browsers fetch nothing and run no script.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID = ("img", "input", "meta")  # elements without content
SMALL = 128  # pixels; images up to this size are enlarged without smoothing


class Markup(str):
    """A string that is HTML already; all other strings are text and are escaped."""


def escaped(text: str) -> Markup:
    """Escapes text for HTML. Lone surrogates, which UTF-8 cannot encode, become question marks. Keeps Markup."""
    return text if isinstance(text, Markup) else Markup(html.escape(text.encode(errors="replace").decode()))


def join(*parts: str, separator: str = "") -> Markup:
    """Concatenates parts; those that are text are escaped."""
    return Markup(escaped(separator).join(escaped(part) for part in parts))


def element(name: str, content: str = "", /, **attributes: str) -> Markup:
    """Returns <name attribute="..">content</name>, text escaped. `class_` is the attribute class, `aria_label` is
    aria-label. Attributes with the value "" are omitted, except `alt`, `checked` and `open`."""
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
    """Returns the HTML of a page; equal arguments give equal HTML.

    label: the kind of page, shown above the title.
    facts: name -> value, such as data, model, settings, date. Empty values are omitted.
    summary: full-width content above the body, usually `page_parts.tiles`.
    contents: (id of an element of the body, text, count) per entry of the sticky table of contents.
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
    """Embeds an image: lossless (png), or lossy in a tenth of the bytes (jpeg)."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    is_small = max(image.size) <= SMALL
    size = {"width": str(image.width), "height": str(image.height)}
    src = f"data:image/{kind};base64,{data}"
    return element("img", src=src, alt=alt, class_="pixels" if is_small else "", **size)
