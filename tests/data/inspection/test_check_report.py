from tests.data.inspection.test_check import check, opened
from tests.fixtures.faulty_dataset import IMAGES, plant
from tests.output.test_html_page import Page


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
        "another form",
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
    shown = sum(min(2, sum(by_part.values())) for by_part in report.counts().values())
    tables = page.tags.count("table") - 1  # each with a heading; the first is the summary
    in_tables = page.tags.count("tr") - len(report.summary()) - tables
    assert in_tables + page.tags.count("article") == shown and 0 < in_tables < shown
    assert "1 more are in report.json" in page.text and "3 more are in report.json" in page.text
