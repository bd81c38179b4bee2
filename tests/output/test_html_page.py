import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from llava_jax.output.html_page import Markup, document, element, escaped, picture, table, thumbnail
from tests.data.inspection.test_check import check, opened
from tests.fixtures.faulty_dataset import IMAGES, plant
from tests.fixtures.images import encoded, noise

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.pictures, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), attributes
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
        self.text += data


def test_text_stays_text_and_markup_markup():
    evil = "<script>alert('1')</script> & \"x\" \ud83d"
    page = Page(document(evil, [element("p", evil, title=evil), table([["a"], [evil]]), evil]))
    assert "script" not in page.tags and page.text.count("<script>alert('1')</script> & \"x\" ?") == 5
    assert escaped(Markup("<b>")) == "<b>" and element("p", Markup("<br>")) == "<p><br></p>"


def test_columns_without_content_are_left_out():
    assert re.findall("<t[dh]>([^<]*)<", table([["a", "b", "c"], ["1", "", "3"], ["", "", "4"]])) == [
        "a", "c", "1", "3", "", "4",
    ]  # fmt: skip


def test_a_picture_is_in_the_page_pixel_for_pixel():
    (shown,) = Page(picture(noise(9, 7), 'a "b"')).pictures
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(noise(9, 7)))


def test_a_thumbnail_is_small_and_of_what_does_not_open_there_is_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(noise(300, 200), "JPEG"))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert Page(thumbnail(tmp_path / "a.jpg", "a")).pictures[0].size == (96, 64)
    assert Page(thumbnail((tmp_path / "a.jpg").read_bytes(), "a")).pictures[0].size == (96, 64)
    assert thumbnail(tmp_path / "b.jpg", "b") == thumbnail(tmp_path / "c.jpg", "c") == thumbnail(None, "") == ""


def test_the_report_shows_every_finding_and_the_pictures_that_open(tmp_path):
    plant(tmp_path)
    report = check(tmp_path)
    page = Page(report.to_html(opened(tmp_path)))
    for finding in report.findings:
        assert finding.message.encode(errors="replace").decode() in page.text
    has_picture = {
        "no marker",
        "human twice",
        "says nothing",
        "late answer",
        "long answer",
        "two",
        "half an emoji",
        "a copy",
    }
    has_picture |= {file for kind in ("animated", "CMYK", "16-bit", "EXIF-rotated", "tiny") for file in IMAGES[kind]}
    has_picture |= {"two markers", "a system", "no answer", "text turns", "no turns", "good 1"}
    assert len(page.pictures) == sum(f.id in has_picture for f in report.findings)
    assert "script" not in page.tags and page.tags.count("h2") == len(report.counts())


def test_the_page_of_many_findings_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_jax.data.inspection.check_report.SHOWN", 2)
    plant(tmp_path)
    report = check(tmp_path)
    page = Page(report.to_html(opened(tmp_path)))
    shown = sum(1 + min(2, sum(by_part.values())) for by_part in report.counts().values())
    assert page.tags.count("tr") == len(report.summary()) + shown
    assert "1 more are in report.json" in page.text and "3 more are in report.json" in page.text
