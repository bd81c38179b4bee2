import dataclasses
import re
import shutil

import pytest
from PIL import Image

from llava_jax.datagen.assemble import RowOptions
from llava_jax.datagen.claims import Claim, claims_in
from llava_jax.datagen.report import read_run, truths
from llava_jax.datagen.report_page import report_page
from llava_jax.datagen.sample_cards import boxed_image, claim_text, marked
from llava_jax.datagen.truth import verdict
from tests.datagen.finished_run import PARK, ROOM, conversation, write_run
from tests.output import test_html_page as html_page

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'><svg onload=alert(3)> & a dog"
DETAIL = "The image shows a dog and a cat that play on the grass of a park, while the sun is shining on the trees."


class Page(html_page.Page):
    """Also keeps the elements: (name, attributes)."""

    def __init__(self, html: str):
        self.elements = []
        super().__init__(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        super().handle_starttag(tag, attributes)

    def named(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]


def page_of(out, images=None, count=24, seed=0) -> str:
    run = read_run(out)
    return report_page(run, truths(run), images, count, seed, {"folder": "OUT"})


@pytest.fixture
def small(tmp_path):
    requests = [(PARK, "conversation"), (PARK, "detail"), (ROOM, "conversation"), (ROOM, "reasoning")]
    texts = {
        ("1", "conversation"): conversation(("How many dogs are there?", "There are two dogs and a cat.")),
        ("1", "detail"): DETAIL,
        ("2", "conversation"): conversation(("Is there a dog?", "Yes, there is a dog, as the captions say.")),
        ("2", "reasoning"): "No grammar here.",
    }
    return write_run(tmp_path / "out", requests, texts, opinions={"1/conversation/opinion/0": "no"})


def row_of(html: str, first: str) -> list[str]:
    """The cells of the table row that begins with a text."""
    rows = (
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    )
    return next([" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in rows if row[0] == first)


def test_the_page_shows_the_numbers(small):
    html = page_of(small)
    assert row_of(html, "conversation")[1:5] == ["2", "2", "2", "100.0"]
    assert row_of(html, "reasoning")[1:5] == ["1", "0", "0", "0.0"]
    assert row_of(html, "source leak")[1:3] == ["1", "33.3"]
    assert row_of(html, "unsupported")[1:3] == ["1", "100.0"]
    precision = row_of(html, "precision of existence")
    assert precision[1].startswith("66.7% of 3") and precision[2].startswith("100.0% of 2")  # by kind
    assert precision[3].startswith("80.0% of 5") and "37.6 to 96.4" in precision[3]  # Wilson's interval of 4 in 5
    assert row_of(html, "counts")[1].startswith("0.0% of 1")
    assert "cost of 1,000 rows" in html and "$4.00" in html  # 4 replies of $0.003, 3 rows
    assert "No grammar here." in html and "16.5" in html


def test_equal_runs_give_equal_pages_and_the_seed_draws_samples(tmp_path):
    images = [dataclasses.replace(PARK, id=f"image-{i}") for i in range(30)]
    out = write_run(tmp_path / "out", [(i, "detail") for i in images], {(i.id, "detail"): DETAIL for i in images})
    assert page_of(out) == page_of(out) != page_of(out, seed=1)
    assert len(Page(page_of(out)).named("article")) == 24
    assert len(Page(page_of(out, count=40)).named("article")) == 30
    assert Page(page_of(out, count=0)).named("article") == []


def test_texts_of_others_are_escaped_everywhere(tmp_path):
    park = dataclasses.replace(PARK, id=f"1{ATTACK}", image=f"{ATTACK}.jpg", captions=(ATTACK,))
    park = dataclasses.replace(park, boxes=(dataclasses.replace(PARK.boxes[0], category=ATTACK), *PARK.boxes))
    requests = [(park, "conversation"), (park, "detail"), (park, "reasoning"), (ROOM, "detail")]
    texts = {
        (park.id, "conversation"): conversation((f"What {ATTACK}?", f"{ATTACK} and a cow")),
        (park.id, "detail"): f"{ATTACK} {DETAIL} The captions say so.",
        (park.id, "reasoning"): f"no grammar {ATTACK}",
        (ROOM.id, "detail"): f"{ATTACK} {DETAIL} The captions say so.",
    }
    out = write_run(tmp_path / "out", requests, texts)
    page = Page(page_of(out))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "iframe", "object", "link", "form"} and page.named("img") == []
    assert page.text.count("alert(1)") >= 7  # id, category, question, answers, rejected reply, leak, duplicate
    assert [m["content"] for m in page.named("meta") if "default-src 'none'" in m.get("content", "")]


def test_images_are_embedded_and_missing_ones_are_not_needed(small, tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (640, 480), "red").save(tmp_path / "images" / "park.jpg")
    (tmp_path / "images" / "sub" / "room.jpg").write_bytes(b"no image")
    page = Page(page_of(small, tmp_path / "images"))
    assert [(i["width"], i["height"], i["src"][:23]) for i in page.named("img")] == [
        ("512", "384", "data:image/jpeg;base64,")
    ] * 2
    assert [svg["viewbox"] for svg in page.named("svg")] == ["0 0 512 384"] * 2 + ["0 0 400 300"]
    assert page.text.count("boxes without the image") == 1


def test_an_image_outside_of_the_folder_is_not_read(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "secret.jpg")
    (tmp_path / "images").mkdir()
    park = dataclasses.replace(PARK, image="../secret.jpg")
    out = write_run(tmp_path / "out", [(park, "detail")], {("1", "detail"): DETAIL})
    assert Page(page_of(out, tmp_path / "images")).named("img") == []


def test_a_question_about_an_absent_object_is_shown_as_added(tmp_path):
    texts = {("1", "conversation"): conversation(("What animals are there?", "A dog and a cat."))}
    options = RowOptions(seed=0, avoidance=1.0)
    farm = dataclasses.replace(ROOM, boxes=(dataclasses.replace(ROOM.boxes[0], category="cow"),))
    requests = [(PARK, "conversation"), (farm, "detail")]
    html = page_of(write_run(tmp_path / "out", requests, texts, options=options))
    questions = re.findall(r'<h3 class="text">(.*?)</h3>', html)
    assert len(questions) == 2 and "What animals are there?" in questions
    assert sum('<span class="badge">added</span>' in question for question in questions) == 1
    assert "3 right" in Page(html).text  # a dog, a cat, and no object of the added question


def test_a_run_that_kept_nothing_has_a_page(tmp_path):
    out = write_run(tmp_path / "out", [(PARK, "conversation"), (ROOM, "detail")], {("1", "conversation"): "nothing"})
    page = Page(page_of(out))
    assert "no reply" in page.text and "Random samples" not in page.text and page.named("article") == []


def test_unknown_boxes_and_prices(tmp_path):
    park = dataclasses.replace(PARK, boxes=None)
    out = write_run(
        tmp_path / "out", [(park, "detail")], {("1", "detail"): DETAIL}, prices={"input": None, "output": None}
    )
    page = Page(page_of(out))
    assert "no boxes are known of this image" in page.text and "tokens a row" in page.text and "$" not in page.text


# ---------------------------------------------------------------------------------------------- marks and boxes


def test_claims_are_marked_by_their_verdict():
    answer = "There are two dogs & a cat, and possibly a cow."
    claims = [(claim, verdict(claim, PARK.boxes)) for claim in claims_in("", answer)]
    html = marked(answer, claims)
    marks = re.findall(r'<mark class="(\w+)" title="([^"]*)">([^<]*)</mark>', html)
    assert {text: tone for tone, _, text in marks} == {"two dogs": "bad", "a cat": "good", "a cow": "warn"}
    assert next(title for _, title, text in marks if text == "two dogs") == "dog: right; dog: 2: wrong"
    assert Page(html).text == answer


def test_overlapping_claims_show_the_most_severe_verdict():
    text = "abcdef"
    judged = [
        (Claim("exists", "dog", "abcd", 0, 4), True),
        (Claim("exists", "cat", "cdef", 2, 6), False),
        (Claim("exists", "cow", "ef", 4, 6), None),
    ]
    assert re.findall(r'<mark class="(\w+)"[^>]*>(\w+)</mark>', marked(text, judged)) == [
        ("good", "ab"), ("bad", "cd"), ("bad", "ef"),
    ]  # fmt: skip
    assert marked(text, []) == text and marked("", []) == ""


@pytest.mark.parametrize(
    "claim, expected",
    [
        (Claim("exists", "dog", "", 0, 0), "dog"),
        (Claim("absent", "dog", "", 0, 0), "no dog"),
        (Claim("count", "dog", "", 0, 0, count=2), "dog: 2"),
        (Claim("count", "dog", "", 0, 0, count=2, at_least=True), "dog: at least 2"),
        (Claim("count", "dog", "", 0, 0), "dog: some"),
        (Claim("relation", "dog", "", 0, 0, relation="above", object="cat"), "dog above cat"),
    ],
)
def test_claims_in_a_few_words(claim, expected):
    assert claim_text(claim) == expected


def test_boxes_are_drawn_where_they_are():
    page = Page(boxed_image(ROOM, Image.new("RGB", (200, 100))))
    outlines = [r for r in page.named("rect") if r["fill"] == "none"]
    edges = [tuple(float(r[name]) for name in ("x", "y", "width", "height")) for r in outlines]
    assert edges == [(120.0, 30.0, 60.0, 60.0), (0.0, 0.0, 40.0, 20.0)]
    assert "1-2" in page.text and "cat" in page.text
    labels = [r for r in page.named("rect") if r["fill"] != "none"]
    assert all(float(r["x"]) + float(r["width"]) <= 200 and float(r["y"]) + float(r["height"]) <= 100 for r in labels)


def test_the_page_fits_a_phone_and_loads_nothing(small, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    file = tmp_path / "report.html"
    file.write_text(page_of(small), encoding="utf-8")
    requests, messages = [], []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 375, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.goto(file.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert width == 375 and messages == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
