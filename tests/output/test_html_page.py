import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from llava_jax.output.html_page import POLICY, VOID, Markup, document, element, escaped, join, picture
from llava_jax.output.page_parts import table
from tests.fixtures.images import noise

EVIL = "<script>alert('1')</script> & \"x\" \ud83d"
SHOWN = "<script>alert('1')</script> & \"x\" ?"


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element closed in order, ids unique, links to what is there."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.pictures, self.text, self.style = [], [], [], "", ""
        self.ids, self.links, self.classes = [], [], []
        self.feed(text)
        assert self.open == [] and len(self.ids) == len(set(self.ids))
        assert not [link for link in self.links if link[1:] not in self.ids]
        assert not re.search("url[(]|@import|expression|image-set", self.style)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.classes.append((tag, *attributes.get("class", "").split()))
        self.style += attributes.get("style", "")
        for name in ("src", "srcset", "poster", "data", "action", "formaction", "background"):
            assert attributes.get(name, "data:").startswith("data:"), attributes
        for name in ("href", "xlink:href"):
            link = attributes.get(name, "data:")
            assert link.startswith(("#", "data:")), attributes
            self.links += [link] if name in attributes and tag == "a" else []
        assert not [name for name in attributes if name.startswith("on")], attributes
        if tag == "img":
            kind, data = attributes["src"].split(",")
            assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
            self.pictures.append(Image.open(io.BytesIO(b64decode(data))))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data


def test_text_is_escaped_and_markup_is_not():
    body = [element("p", EVIL, title=EVIL), table([["a"], [EVIL]], EVIL), EVIL]
    facts, contents = {EVIL: EVIL}, [("here", EVIL, EVIL)]
    whole = document(EVIL, [*body, element("i", id="here")], label=EVIL, facts=facts, summary=EVIL, contents=contents)
    page = Page(whole)
    # title, label, h1, the fact twice, the summary, the link twice, p, the cell, the body's text
    assert "script" not in page.tags and page.text.count(SHOWN) == 11
    assert escaped(Markup("<b>")) == "<b>" and element("p", Markup("<br>")) == "<p><br></p>"
    assert join("<", Markup("<b>"), separator="&") == "&lt;&amp;<b>"


def test_attribute_names_follow_html_and_empty_ones_are_omitted():
    assert element("p", "x", class_="", id="a", aria_label="<b>") == '<p id="a" aria-label="&lt;b&gt;">x</p>'
    assert element("img", alt="", src="data:") == '<img alt="" src="data:">'
    assert element("input", checked="") == '<input checked="">' and element("details", open="") == (
        '<details open=""></details>'
    )


def test_page_policy_forbids_scripts_and_external_resources():
    whole = document("x", [])
    policy = re.search('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', whole)[1]
    assert policy.replace("&#x27;", "'") == POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert whole.index("Content-Security-Policy") < whole.index("<style>")
    assert "script" not in Page(whole).tags and len(whole) < 25_000


def test_style_supports_light_dark_print_and_keyboard():
    page = Page(document("x", ["y"]))
    for rule in ("prefers-color-scheme: dark", "@media print", ":focus-visible", "max-width: 34rem", "tabular-nums"):
        assert rule in page.style, rule
    dark = page.style[page.style.index("prefers-color-scheme: dark") :]
    light = set(re.findall(r"(--[a-z-]+): #", page.style[: page.style.index("prefers-color-scheme")]))
    assert light == set(re.findall(r"(--[a-z-]+): #", dark)), "a colour of one scheme only"
    assert set(re.findall(r"var\((--[a-z-]+)", page.style)) <= light | {
        "--mono", "--card", "--image", "--at", "--from", "--to", "--mark",
    }  # fmt: skip
    assert page.links == ["#main"] and page.classes[page.tags.index("a")] == ("a", "skip")


def test_empty_facts_and_contents_are_omitted():
    page = Page(document("x", ["y"], facts={"model": ""}))
    assert not {"dl", "nav"} & set(page.tags)
    page = Page(document("x", [element("h2", "y", id="y")], facts={"model": "7b"}, contents=[("y", "why", "3")]))
    assert {"dl", "nav"} <= set(page.tags) and "model7b" in page.text and page.links == ["#main", "#y"]


def test_a_png_picture_keeps_every_pixel():
    (shown,) = Page(picture(noise(9, 7), 'a "b"')).pictures
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(noise(9, 7)))
    assert 'width="9" height="7"' in picture(noise(9, 7), "") and len(picture(noise(99, 99), "", "jpeg")) < 20_000


def test_small_pictures_are_enlarged_without_blur():
    assert 'class="pixels"' in picture(noise(128, 10), "") and "pixels" not in picture(noise(129, 10), "")
