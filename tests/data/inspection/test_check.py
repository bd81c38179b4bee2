import ast
import json
import re
from functools import partial
from pathlib import Path

import pytest

import llava_jax
from llava_jax.data.inspection.check import ERRORS, KINDS, Duplicates, Limits, check_rows
from llava_jax.data.inspection.check_report import Report
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.text.encode import encode_row
from tests.fixtures.faulty_dataset import plant, turns
from tests.fixtures.images import encoded, noise
from tests.fixtures.tokenizers import TINY

LIMITS = Limits(partial(encode_row, tokenizer=TINY, template="vicuna_v1", features=16), 200, 1)


def opened(folder) -> LlavaJson:
    return LlavaJson(folder / "train.json", folder / "images", is_strict=False)


def check(folder, limits=LIMITS) -> Report:
    source, report, duplicates = opened(folder), Report("x", {}), Duplicates()
    for checked in check_rows(range(len(source)), source=source, limits=limits):
        report.rows += 1
        report.findings += [*checked.findings, *duplicates.findings(checked)]
    return report


def write(folder, rows):
    (folder / "images").mkdir(exist_ok=True)
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / "train.json").write_text(text)
    return folder


def row(name, image, *values):
    return {"id": name, **({"image": image} if image else {}), "conversations": turns(*values)}


def kinds(report) -> list[tuple[str, int]]:
    return [(f.kind, f.row) for f in report.findings]


def test_exactly_the_planted_faults_are_found(tmp_path):
    planted = plant(tmp_path)
    report = check(tmp_path)
    assert sorted((f.kind, f.id) for f in report.findings) == sorted(planted)
    assert len(planted) >= 30 and {kind for kind, _ in planted} == set(KINDS) - {"unusable"}
    assert all(f.message and f.kind in KINDS for f in report.findings)


def test_findings_keep_row_numbers_after_broken_rows(tmp_path):
    plant(tmp_path)
    lines = (tmp_path / "train.json").read_text().splitlines()
    for finding in check(tmp_path).findings:
        if finding.id:
            assert f'"id": "{finding.id}"' in lines[finding.row]
        if finding.kind == "broken JSON":
            assert "unescaped" in lines[finding.row] and re.search(rf"row {finding.row}: .*line", finding.message)


def test_without_a_tokenizer_only_length_checks_are_skipped(tmp_path):
    planted = plant(tmp_path)
    reported = {(f.kind, f.id) for f in check(tmp_path, Limits()).findings}
    assert {kind for kind, _ in planted - reported} == {"overlong", "no supervised tokens", "too many images"}


GOOD = [row(str(i), None, f"what is {i} ?", "a number") for i in range(4)]
BREAKS = {
    "truncated in a row": (json.dumps(GOOD)[:-40], [("broken JSON", 3)], 4),
    "truncated after a row": (json.dumps(GOOD)[:-1], [("broken JSON", 4)], 5),
    "no comma": (json.dumps(GOOD[:2])[:-1] + json.dumps(GOOD[2:])[1:], [("broken JSON", 2)], 5),
    "two files": (json.dumps(GOOD[:2]) + json.dumps(GOOD[2:]), [("broken JSON", 2)], 5),
    "bare word": (json.dumps(GOOD).replace('{"id": "1"', "{id: 1", 1), [("broken JSON", 1)], 4),
}


@pytest.mark.parametrize("name", BREAKS)
def test_check_continues_after_broken_json(tmp_path, name):
    text, expected, rows = BREAKS[name]
    report = check(write(tmp_path, text))
    assert kinds(report) == expected and report.rows == rows


def test_images_of_a_row_with_broken_text_are_checked(tmp_path):
    report = check(write(tmp_path, [row("1", "nowhere.jpg", "<image>what ?")]))
    assert kinds(report) == [("role order", 0), ("missing", 0)]
    report = check(write(tmp_path, [row("1", "nowhere.jpg", "<image>what ?", " ")]))
    assert kinds(report) == [("empty answer", 0), ("missing", 0)]


def test_bad_image_is_reported_for_every_row_naming_it(tmp_path):
    report = check(write(tmp_path, [row(str(i), "nowhere.jpg", "<image>what ?", str(i)) for i in range(3)]))
    assert kinds(report) == [("missing", 0), ("missing", 1), ("missing", 2)]


def test_row_that_the_template_rejects_is_unusable(tmp_path):
    limits = Limits(partial(LIMITS.encode, template="plain"), 200)
    report = check(write(tmp_path, [row("1", None, "a", "b", "c", "d")]), limits)
    assert kinds(report) == [("unusable", 0)]


def test_duplicates_are_found_by_bytes_and_reported_once(tmp_path):
    write(tmp_path, [])
    for name in ("a", "b", "c"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    (tmp_path / "images" / "d.jpg").write_bytes(encoded(noise(20, 20, 1), "JPEG"))
    rows = [
        row("0", "a.jpg", "<image>what ?", "x"),
        row("1", "b.jpg", "<image>who ?", "x"),  # duplicate image
        row("2", "b.jpg", "<image>how ?", "x"),  # ... already reported
        row("3", "c.jpg", "what ?\n<image>", "x"),  # duplicate sample, including its image
        row("0", "d.jpg", "<image>what ?", "x"),  # duplicate id
        row("1", "b.jpg", "<image>where ?", "x"),  # the same id for the same image
    ]
    assert kinds(check(write(tmp_path, rows))) == [("duplicate image", 1), ("duplicate sample", 3), ("duplicate id", 4)]


def test_a_report_counts_by_kind_and_part(tmp_path):
    plant(tmp_path)
    report = check(tmp_path)
    assert report.errors + report.warnings == len(report.findings)
    assert report.errors == sum(f.kind in ERRORS for f in report.findings) > 0 < report.warnings
    report_json = json.loads(report.to_json())
    assert report_json["errors"] == report.errors and len(report_json["findings"]) == len(report.findings)
    heading, *lines = report.summary()
    assert sum(int(line[2]) for line in lines) == len(report.findings)
    assert ["damaged", "error", "3"] in lines and ["EXIF-rotated", "warning", "2"] in lines


def test_a_row_that_just_fits_is_not_overlong(tmp_path):
    write(tmp_path, [row("1", None, "what is two ?", "a number")])
    tokens = len(LIMITS.encode((("human", "what is two ?"), ("gpt", "a number")), 0)[0])
    assert kinds(check(tmp_path, Limits(LIMITS.encode, tokens))) == []
    assert kinds(check(tmp_path, Limits(LIMITS.encode, tokens - 1))) == [("overlong", 0)]


def test_reports_know_every_kind_of_data_error():
    kinds = set()
    for file in Path(llava_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataError" and len(node.args) == 2:
                kinds |= {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    assert len(kinds) > 5 and kinds <= set(KINDS)
