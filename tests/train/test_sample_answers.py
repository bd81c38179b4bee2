"""sample_answers.py: answers.json, the images and answers.html."""

import json
import re

import numpy as np
import pytest

from llava_jax.data.example import Example
from llava_jax.train.sample_answers import save_answers
from tests.fixtures.images import encoded, noise
from tests.output.test_html_page import Page

EVIL = "<script>alert(1)</script> & <b>"


def example(name: str, reference: str, kind: str = "", images=(), question: str = "what is it ?") -> Example:
    return Example(name, (("human", "<image>\n" * len(images) + question), ("gpt", reference)), tuple(images), kind)


EXAMPLES = [
    example("a", "the red cross is top , so bottom", "reasoning", [noise(48, 48)]),
    example("b", "left", "conversation", [noise(48, 48, 1)]),
    example("c", "there is one object . the red cross is small and top .", "detail"),
]
BEFORE = ["so so so", "left", "there"]
AFTER = ["the blue cross is top , so bottom", "right", "there is one object . the red cross is small and top ."]


def accuracy(image: float) -> dict:
    kinds = ("color", "shape", "size", "position", "count", "existence", "relation", "reasoning", "overall")
    return {kind: {"image": image, "blank": 12.5, "chance": 25.0} for kind in kinds}


@pytest.fixture
def workdir(tmp_path):
    """A run whose stage two was evaluated before its first step and after its last, 1300."""
    model = {"vision": "clip_l14_336", "projector": "mlp2x_gelu", "llm": "vicuna_7b"}
    data = {"source": "files", "path": "/somewhere/chat.json", "scenes": "caption", "template": "vicuna_v1"}
    data["mixture"] = []
    stages = {"two": {"steps": 1300, "data": data, "eval": {"questions": 64}}}
    (tmp_path / "config.json").write_text(json.dumps({"model": model, "stages": stages}))
    scores = {"before": accuracy(25.0), "after": accuracy(75.0)}
    (tmp_path / "accuracy-two.json").write_text(json.dumps(scores))
    save_answers(tmp_path / "samples" / "two-000000", EXAMPLES, BEFORE)
    save_answers(tmp_path / "samples" / "two-001300", EXAMPLES, AFTER)
    return tmp_path


def page_of(folder) -> str:
    return (folder / "answers.html").read_text(encoding="utf-8")


def classes(text: str) -> list[str]:
    return [
        " ".join(c for c in names.split() if "kind" not in c) for names in re.findall('<article class="([^"]*)"', text)
    ]


def test_answers_json_and_images_are_exact(workdir):
    folder = workdir / "samples" / "two-001300"
    records = json.loads((folder / "answers.json").read_bytes())
    assert records[0] == {
        "id": "a", "images": ["0-0.png"], "question": "what is it ?",
        "reference": "the red cross is top , so bottom", "answer": "the blue cross is top , so bottom",
    }  # fmt: skip
    assert (folder / "answers.json").read_text() == json.dumps(records, indent=1, ensure_ascii=False)
    assert sorted(p.name for p in folder.iterdir()) == ["0-0.png", "1-0.png", "answers.html", "answers.json"]
    for i, shown in enumerate(Page(page_of(folder)).pictures):
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(EXAMPLES[i].images[0]))
        shown.save(workdir / "x.png")
        assert (workdir / "x.png").read_bytes() == (folder / f"{i}-0.png").read_bytes()


def test_page_shows_before_after_reference_and_changes(workdir):
    page = page_of(workdir / "samples" / "two-001300")
    shown = Page(page)
    assert classes(page) == ["right better", "wrong worse", "ungraded"]
    terms = re.findall(r"<dt>(?:(\w+) <span[^>]*>([^<]*)</span>|reference)</dt>", page)
    assert terms == [
        ("before", "wrong"), ("after", "right"), ("", ""), ("before", "right"), ("after", "wrong"), ("", ""),
        ("before", "not graded"), ("after", "word for word"), ("", ""),
    ]  # fmt: skip
    for text in (*BEFORE, *AFTER, *(e.turns[1][1] for e in EXAMPLES)):
        assert text in shown.text
    filters = re.findall(r"<span>([a-z ]+ \d+)</span></label>", page)
    assert filters == [
        "all 3", "reasoning 1", "conversation 1", "detail 1",
        "all 3", "right 1", "wrong 1", "not graded 1", "became right 1", "became wrong 1",
    ]  # fmt: skip
    assert shown.text.count("1 of 2, 95% 9 to 91") == 2  # right before, right after


def test_page_of_step_0_has_no_comparison(workdir):
    save_answers(workdir / "samples" / "two-000000", EXAMPLES, BEFORE)  # again, as after a restart
    page = page_of(workdir / "samples" / "two-000000")
    assert classes(page) == ["wrong", "right", "ungraded"] and "<dt>before" not in page and "<dt>answer " in page
    assert "Answers before two" in page


@pytest.mark.parametrize("harm", ["missing", "{", "[1]", "{}", '[{"id": 1}]', "other question", b"\xff"])
def test_page_omits_missing_or_damaged_earlier_answers(workdir, harm):
    file = workdir / "samples" / "two-000000" / "answers.json"
    if harm == "missing":
        file.unlink()
    else:
        other = file.read_text().replace("what is it ?", "what else ?") if harm == "other question" else harm
        file.write_bytes(other if isinstance(other, bytes) else other.encode())
    save_answers(workdir / "samples" / "two-001300", EXAMPLES, AFTER)
    page = page_of(workdir / "samples" / "two-001300")
    assert classes(page) == ["right", "wrong", "ungraded"] and "<dt>before" not in page


def test_header_names_stage_model_and_data(workdir):
    page = page_of(workdir / "samples" / "two-001300")
    facts = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", page[: page.index("</header>")]))
    assert facts == {
        "stage": "two", "step": "1,300 of 1,300", "vision tower": "clip_l14_336", "projector": "mlp2x_gelu",
        "language model": "vicuna_7b", "data": "chat.json", "template": "vicuna_v1",
    }  # fmt: skip
    assert "Answers after step 1,300 of two" in page
    save_answers(workdir / "samples" / "two-001300", EXAMPLES, AFTER, {"date": "2026-01-02"})
    assert "<dt>date</dt><dd>2026-01-02</dd>" in page_of(workdir / "samples" / "two-001300")


def test_accuracy_table_has_intervals_if_question_count_is_known(workdir):
    folder = workdir / "samples" / "two-001300"
    bar = 'aria-label="75.0%, 95% interval 63.2 to 84.0, the dotted line is at 25.0"'  # 48 of 64
    page = page_of(folder)
    assert page.count(bar) == 8 and page.count('aria-label="75.0%, the dotted line is at 25.0"') == 1  # overall
    assert page.count('aria-label="12.5%, 95%') == 8 and page.count('aria-label="25.0%, 95%') == 8
    (workdir / "config.json").unlink()
    save_answers(folder, EXAMPLES, AFTER)
    assert page_of(folder).count('aria-label="75.0%, the dotted line is at 25.0"') == 9
    (workdir / "accuracy-two.json").unlink()
    save_answers(folder, EXAMPLES, AFTER)
    assert "Accuracy by kind" not in page_of(folder)


def test_any_folder_works_and_text_is_escaped(tmp_path):
    evil = example(EVIL, EVIL, EVIL, [noise(9, 9)], EVIL)
    save_answers(tmp_path / "x", [evil], [EVIL], {EVIL: EVIL})
    page = Page(page_of(tmp_path / "x"))
    # question, answer, reference, id, kind, two in the header; no filter for a single kind
    assert "script" not in page.tags and page.text.count(EVIL) == 7 and "kind-all" not in page.ids
    save_answers(tmp_path / "y", [example("a", "b")], [""])
    assert "<em>nothing</em>" in page_of(tmp_path / "y")


def test_equal_inputs_write_equal_files(workdir):
    folder = workdir / "samples" / "two-001300"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    save_answers(folder, EXAMPLES, AFTER)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_photo_is_downscaled_only_on_the_page(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(noise(1200, 900), "JPEG"))
    save_answers(tmp_path / "x", [example("a", "a cat", images=[tmp_path / "photo.jpg"])], ["A cat."])
    (shown,) = Page(page_of(tmp_path / "x")).pictures
    assert shown.size == (384, 288) and shown.format == "JPEG"
    assert (tmp_path / "x" / "0-0.png").stat().st_size > 1_000_000 > (tmp_path / "x" / "answers.html").stat().st_size
