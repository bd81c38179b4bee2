"""python -m llava_jax datagen report OUT: output, files and exit codes."""

import pytest

from llava_jax.__main__ import main
from tests.datagen.finished_run import PARK, ROOM, write_run
from tests.fixtures.images import encoded, noise

DETAIL = "The image shows a dog and a cat that play on the grass of a park, while the sun is shining on the trees."


@pytest.fixture
def out(tmp_path):
    return write_run(tmp_path / "out", [(PARK, "detail"), (ROOM, "detail")], {("1", "detail"): DETAIL})


def test_writes_the_page_and_prints_the_truth_table(out, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "park.jpg").write_bytes(encoded(noise(64, 48, 0), "JPEG"))
    assert main(["datagen", "report", str(out), "--images", str(tmp_path / "images"), "--workers", "0"]) == 0
    html, printed = (out / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "data:image/jpeg;base64," in html and html.count("<article") == 1
    assert "100.0 [34.2, 100.0] of 2" in printed and "1 rows of 2 requests" in printed


def test_another_page_leaves_the_folder_alone(out, tmp_path):
    before = sorted(path.name for path in out.iterdir())
    assert main(["datagen", "report", str(out), "--page", str(tmp_path / "new" / "page.html"), "--workers", "0"]) == 0
    assert (tmp_path / "new" / "page.html").is_file() and sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--images", "none"], 2, "--images none is no folder"),
        (["--samples", "-1"], 2, "--samples must not be negative"),
        (["--images", "gs://bucket/images"], 2, "is a URL"),
        (["--page", "/proc/none/page.html"], 2, "/proc/none/page.html: cannot be written"),
    ],
)
def test_a_bad_flag_is_named(out, capsys, arguments, code, message):
    assert main(["datagen", "report", str(out), "--workers", "0", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (out / "report.html").exists()


def test_a_folder_of_another_kind_is_named(tmp_path, capsys):
    assert main(["datagen", "report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "settings.json does not exist" in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
