import re

import pytest

from llava_jax.output.html_page import Markup, document, element
from llava_jax.output.page_parts import badge, definitions, filters, share_bar, table, tile, tiles
from tests.output.test_html_page import EVIL, SHOWN, Page


def test_empty_columns_are_omitted():
    assert re.findall("<t[dh](?: [^>]*)?>([^<]*)<", table([["a", "b", "c"], ["1", "", "3"], ["", "", "4"]])) == [
        "a", "c", "1", "3", "", "4",
    ]  # fmt: skip


def test_numeric_columns_are_right_aligned():
    rows = [["name", "n", "share", "mixed", "html", "range"]]
    rows += [["1 a", "1,234", "-", "5", Markup("5"), "1.5 to 2"], ["2", "-0.5", "99.5%", "five", Markup("6"), "-"]]
    right = [name for name in rows[0] if f'class="number">{name}<' in table(rows)]
    assert right == ["n", "share", "range"]
    cells = re.findall('class="number">([^<]*)<', table(rows))
    assert cells == [*right, "1,234", "-", "1.5 to 2", "-0.5", "99.5%", "-"]


def test_table_cells_have_headers_for_screen_readers():
    made = table([["", "n"], ["a", "1"]], "counts")
    assert '<th scope="col" class="number">n</th>' in made and '<th scope="row">a</th>' in made
    assert 'role="region" aria-label="counts"' in made and 'tabindex="0"' in made


def test_a_bar_labels_and_draws_its_numbers():
    made = share_bar(86.191, (80.41, 90.47), 39.9)
    assert 'aria-label="86.2%, 95% interval 80.4 to 90.5, the dotted line is at 39.9"' in made
    assert 'style="--at:86.19%;--from:80.41%;--to:90.47%;--mark:39.90%"' in made
    assert "<i></i><b></b><s></s>" in made
    assert "<i></i></span>" in share_bar(0.0) and share_bar(None) == "" == share_bar(None, (1, 2), 3)


def test_tiles_and_badges_escape_text():
    made = tiles([tile(EVIL, EVIL, EVIL, bar=share_bar(5), tone="bad"), tile("a", "b")])
    page = Page(document("x", [made, badge(EVIL, "good"), definitions([(EVIL, EVIL, "bad")], "answers")]))
    assert page.text.count(SHOWN) == 6 and "script" not in page.tags
    assert ("dd", "value", "bad") in page.classes and ("div", "wide") in page.classes
    assert ("span", "badge", "good") in page.classes


def test_a_filter_hides_articles_of_other_classes():
    made = filters([("show", "show", [("right", EVIL, 2), ("wrong", "wrong", 1), ("none", "none", 0)], 3)])
    page = Page(document("x", [made]))
    assert page.ids == ["main", "show-all", "show-right", "show-wrong"] and page.text.count(SHOWN) == 1
    rules = re.findall(r"body:has\(#([a-z-]+):checked\) article:not\(\.([a-z]+)\) { display: none }", page.style)
    assert rules == [("show-right", "right"), ("show-wrong", "wrong")]
    assert made.count('checked=""') == 1 and "all 3" in page.text and "wrong 1" in page.text


@pytest.mark.parametrize("choices", [[], [("a", "a", 0)], [("a", "a", 3)]])
def test_a_filter_without_a_choice_is_omitted(choices):
    assert filters([("kind", "kind", choices, 3)]) == "" and isinstance(filters([]), Markup)
    assert filters([("kind", "kind", [("a", "a", 2)], 3)]) != ""


def test_two_filters_are_independent():
    groups = [("a", "a", [("x", "x", 1)], 2), ("b", "b", [("x", "x", 1)], 2)]
    assert Page(element("div", filters(groups))).ids == ["a-all", "a-x", "b-all", "b-x"]
