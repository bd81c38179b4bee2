"""Pages that need nothing from elsewhere: no script, no link, pictures inside, all text from data escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image

# Nothing is fetched and nothing runs, whatever gets through.
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top }}
td:last-child {{ overflow-wrap: anywhere }}
th {{ background: #f3f3f3 }}
pre, .text {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace }}
mark {{ background: #b7ebc0; border-radius: 2px }}
.image {{ background: #d5dcf5; border-radius: 2px }}
.fault {{ color: #a00 }}
article {{ border-top: 1px solid #ccc; padding: 1em 0 }}
img {{ max-width: 100%; margin-right: .5em }}
</style></head><body>
<h1>{title}</h1>
"""


class Markup(str):
    """HTML of our own making; every other string is text, and escaped."""


def escaped(text: str) -> Markup:
    """Text as HTML. Half characters, which no file can hold, become question marks."""
    return text if isinstance(text, Markup) else Markup(html.escape(text.encode(errors="replace").decode()))


def document(title: str, body: Iterable[Markup]) -> str:
    """A whole page."""
    return _HEAD.format(title=escaped(title)) + "\n".join(escaped(part) for part in body) + "\n</body></html>\n"


def element(name: str, content: str = "", /, **attributes: str) -> Markup:
    """<name attribute="..">content</name>, with text escaped; `class_` is the attribute class."""
    inside = "".join(f' {key.rstrip("_")}="{escaped(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{inside}>" if name in ("img", "input") else f"<{name}{inside}>{escaped(content)}</{name}>")


def table(rows: Sequence[Sequence[str]]) -> Markup:
    """Cells of text or Markup; the first row is the heading. Columns with nothing below it are left out."""
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    rows = [[row[i] for i in filled] for row in rows]
    lines = [
        element("tr", Markup("".join(element("td" if i else "th", cell) for cell in row))) for i, row in enumerate(rows)
    ]
    return element("table", Markup("\n".join(lines)))


def picture(image: Image.Image, alt: str, kind: Literal["png", "jpeg"] = "png") -> Markup:
    """A picture inside the page: each pixel as it is (PNG), or in a tenth of the bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return element("img", src=f"data:image/{kind};base64,{data}", alt=alt)


def thumbnail(image: Path | bytes | None, name: str, side: int = 96, kind: Literal["png", "jpeg"] = "png") -> Markup:
    """A small picture of a file; nothing where there is none or it does not open."""
    if image is None:
        return Markup()
    try:
        shown = load_image(image, name)
    except DataError:
        return Markup()
    shown.thumbnail((side, side))
    return picture(shown, Path(name).name, kind)
