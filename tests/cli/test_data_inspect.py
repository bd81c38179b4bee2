"""python -m llava_jax data check|show|stats: output, files and exit codes."""

import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_jax.__main__ import main
from llava_jax.images.preprocess import preprocess
from tests.fixtures.faulty_dataset import plant, turns
from tests.fixtures.images import encoded, noise
from tests.fixtures.odd_images import exif, text
from tests.output.test_html_page import Page

TINY = ["--tokenizer", "tiny", "--image-size", "56", "--length", "200"]


@pytest.fixture
def clean(tmp_path) -> list[str]:
    """DATA and IMAGE_FOLDER without errors."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(5):
        (tmp_path / "images" / f"{i}.png").write_bytes(encoded(noise(64, 60, i), "PNG"))
        rows.append(
            {"id": f"r{i}", "image": f"{i}.png", "conversations": turns(f"<image>\nwhat is {i} ?", f"a <b>{i}</b>")}
        )
    rows.append({"id": "text", "conversations": turns("what is two ?", "a number")})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return [str(tmp_path / "train.json"), str(tmp_path / "images")]


@pytest.mark.parametrize("arguments", [["data", "check", "--help"], ["ckpt", "list", "--help"], ["--help"]])
def test_closed_stdout_exits_1_without_message(arguments):
    with subprocess.Popen(
        [sys.executable, "-m", "llava_jax", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        run.stdout.close()  # before any output
        assert (run.stderr.read(), run.wait(60)) == ("", 1)


def test_check_reports_all_planted_faults_from_workers(tmp_path, capsys):
    planted = plant(tmp_path)
    report = tmp_path / "report"
    command = ["data", "check", str(tmp_path / "train.json"), str(tmp_path / "images"), *TINY, "--max-images", "1"]
    assert main([*command, "--report-folder", str(report), "--workers", "2"]) == 1
    record = json.loads((report / "report.json").read_text())
    assert sorted((f["kind"], f["id"]) for f in record["findings"]) == sorted(planted)
    printed = capsys.readouterr().out
    assert re.search(r"^damaged +error +3$", printed, re.M) and re.search(r"^CMYK +warning +1$", printed, re.M)
    assert f"{record['errors']} errors, {record['warnings']} warnings" in printed
    assert "damaged" in Page((report / "report.html").read_text()).text
    assert {path.name for path in report.iterdir()} == {"report.json", "report.html"}


def test_check_exits_0_without_errors_despite_warnings(clean, tmp_path, capsys):
    command = ["data", "check", *clean, *TINY, "--report-folder", str(tmp_path / "r"), "--workers", "0"]
    assert main(command) == 0
    assert "6 rows, 5 images: nothing found" in capsys.readouterr().out
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    assert main(command) == 0
    assert "0 errors, 1 warnings" in capsys.readouterr().out


def test_shards_folder_and_zip_give_equal_reports(clean, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in Path(clean[1]).iterdir():
            archive.write(file, file.name)
    shards, rows = str(tmp_path / "shards"), json.loads(Path(clean[0]).read_text())
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "build", str(tmp_path / "rows.jsonl"), shards, "--images", clean[1]]) == 0
    capsys.readouterr()
    table = None
    for data in (clean, [str(tmp_path / "rows.jsonl"), str(tmp_path / "images.zip")], [shards]):
        assert main(["data", "check", *data, *TINY, "--report-folder", str(tmp_path / "r"), "--workers", "2"]) == 0
        assert "6 rows, 5 images: nothing found" in capsys.readouterr().out
        assert main(["data", "stats", *data, *TINY, "--workers", "2"]) in (0, None)
        printed = capsys.readouterr().out
        assert table in (None, printed)
        table = printed
        page = tmp_path / "samples.html"
        assert main(["data", "show", *data, *TINY, "--id", "r3", "--page", str(page)]) in (0, None)
        (shown,) = Page(page.read_text()).pictures
        np.testing.assert_array_equal(np.asarray(shown), preprocess(noise(64, 60, 3), 56, "crop"))
        capsys.readouterr()


def test_text_needs_no_image_folder_in_any_verb(tmp_path, capsys):
    rows = [{"id": f"{i}", "conversations": turns("what is two ?", f"a number {i}")} for i in range(3)]
    for name, content in (("rows.json", json.dumps(rows)), ("rows.jsonl", "\n".join(map(json.dumps, rows)))):
        data = str(tmp_path / name)
        Path(data).write_text(content)
        assert main(["data", "check", data, "--report-folder", str(tmp_path / "r"), "--workers", "0"]) == 0
        assert main(["data", "show", data, *TINY, "--page", str(tmp_path / "p.html")]) in (0, None)
        assert main(["data", "stats", data, *TINY, "--workers", "0"]) in (0, None)
        assert main(["data", "build", data, str(tmp_path / f"{name}.shards")]) == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in ("3 rows, 0 images: nothing found", "3 samples of 3", "3 records"))


def test_check_names_broken_lines_and_continues(tmp_path, capsys):
    good = json.dumps({"id": "1", "conversations": turns("what is two ?", "a number")})
    lines = [good, '{"id": NaN}', "", good.replace('"1"', '"2"').replace("two", "three"), good[:-9]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    command = ["data", "check", str(tmp_path / "rows.jsonl"), "--report-folder", str(tmp_path), "--workers", "2"]
    assert main(command) == 1
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [(f["kind"], f["row"], re.search("line [0-9]", f["message"])[0]) for f in findings] == [
        ("broken JSON", 1, "line 2"), ("broken JSON", 3, "line 5"),
    ]  # fmt: skip
    assert "4 rows, 0 images: 2 errors" in capsys.readouterr().out


def test_check_lists_the_missing_images_of_real_scienceqa(real_data, tmp_path, capsys):
    folder = real_data / "scienceqa"
    assert main(["data", "check", str(folder), "--report-folder", str(tmp_path), "--workers", "0"]) == 1
    assert re.search(r"found +count +train +val\nmissing +error +712 +521 +191\n", capsys.readouterr().out)
    problems = json.loads((folder / "problems.json").read_text())
    lacking = {p: v["split"] for p, v in problems.items() if v["image"] and v["split"] != "test"}
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [(f["id"], f["part"], f["kind"]) for f in findings] == [
        (p, split, "missing") for p, split in lacking.items()
    ]
    assert all(f["image"].endswith(f"/{f['part']}/{f['id']}/image.png") for f in findings)


def test_show_displays_pixels_and_text_of_a_row(clean, tmp_path, capsys):
    page = tmp_path / "new" / "samples.html"
    command = ["data", "show", *clean, *TINY, "--aspect", "pad", "--page", str(page)]
    assert main([*command, "--id", "r3", "--id", "text"]) in (0, None)
    shown = Page(page.read_text())
    assert "<dt>template</dt><dd>vicuna_v1</dd>" in page.read_text() and "<dt>data of</dt><dd>20" in page.read_text()
    assert re.findall(r"row (\d), id (\w+)", shown.text) == [("3", "r3"), ("5", "text")]
    np.testing.assert_array_equal(np.asarray(shown.pictures[0]), preprocess(noise(64, 60, 3), 56, "pad"))
    assert len(shown.pictures) == 1 and "<image x 16>" in shown.text
    marked = re.findall("<mark>(.*?)</mark>", page.read_text())
    assert " a &lt;b&gt;3&lt;/b&gt;</s>".replace("</s>", "&lt;/s&gt;") in marked
    assert re.search(r"\d+ tokens in a row of 200, \d+ of them supervised; images: 1", shown.text)
    capsys.readouterr()
    assert main([*command, "--id", "r9"]) == 2 and "no readable sample has the id 'r9'" in capsys.readouterr().err


def test_exif_rule_is_reported_once_and_shown(clean, tmp_path, capsys):
    for i in (1, 2):
        photo = encoded(noise(64, 60, i), "PNG", exif=b"Exif\0\0" + exif(8))
        (tmp_path / "images" / f"{i}.png").write_bytes(photo)
    stored = noise(64, 60, 1)
    rules = {"ignore": stored, "apply": stored.transpose(Image.Transpose.ROTATE_90)}
    for rule, message in (("ignore", "ignored, as in the original (data.exif=apply turns"), ("apply", "applied")):
        command = ["data", "check", *clean, *TINY, "--report-folder", str(tmp_path / "r"), "--workers", "0"]
        assert main([*command, "--exif", rule]) == 0
        assert capsys.readouterr().out.count(f"2 images have an EXIF orientation: {message}") == 1
        main(["data", "show", *clean, *TINY, "--id", "r1", "--page", str(tmp_path / "p.html"), "--exif", rule])
        (shown,) = Page((tmp_path / "p.html").read_text()).pictures
        np.testing.assert_array_equal(np.asarray(shown), preprocess(rules[rule], 56, "crop"))
        capsys.readouterr()


def test_check_reads_images_with_metadata_that_pillow_refuses(clean, tmp_path, capsys):
    photo = encoded(noise(64, 60, 1), "PNG")
    (tmp_path / "images" / "1.png").write_bytes(photo[:33] + text(5 << 20) + photo[33:])
    command = ["data", "check", *clean, *TINY, "--report-folder", str(tmp_path / "r"), "--workers", "0"]
    assert main(command) == 0 and "nothing found" in capsys.readouterr().out
    assert main(["data", "stats", *clean, *TINY, "--workers", "0"]) in (0, None)
    assert "0 of 5 images cannot be read" in capsys.readouterr().out


def test_show_samples_by_seed_and_displays_truncation_and_faults(clean, tmp_path):
    file = tmp_path / "samples.html"

    def page_of(*flags):
        main(["data", "show", *clean, *TINY, "--page", str(file), *flags])
        return file.read_text()

    first = page_of("--count", "3")
    assert first == page_of("--count", "3") != page_of("--count", "3", "--seed", "1") and first.count("<article ") == 3
    assert page_of("--count", "99").count("<article ") == 6
    (tmp_path / "images" / "2.png").unlink()
    assert 'class="fault">sample &#x27;r2&#x27;: ' in page_of()
    length = int(re.search(r"(\d+) tokens in a row of 200", page_of("--id", "r3"))[1])
    assert "cut off" not in page_of("--id", "r3", "--length", str(length))
    lengths = f"{length - 1} tokens in a row of {length - 1}, "
    page = page_of("--id", "r3", "--length", str(length - 1))
    assert lengths in page and f"; truncated from {length} tokens" in page


def test_stats_prints_a_table_and_writes_a_page(clean, tmp_path, capsys):
    page = tmp_path / "stats.html"
    assert main(["data", "stats", *clean, *TINY, "--workers", "0", "--page", str(page)]) in (0, None)
    printed = capsys.readouterr().out
    assert re.search(r"^width +64\.0 ", printed, re.M) and "6 samples, " in printed and "packed first-fit" in printed
    assert page.read_text().count("<svg") == 4
    main(["data", "stats", *clean, *TINY, "--workers", "0", "--count", "2"])
    assert "2 samples, " in capsys.readouterr().out


def test_stats_names_the_missing_plot_package(clean, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["data", "stats", *clean, *TINY, "--page", str(tmp_path / "x.html")]) == 2
    assert "pip install 'llava_jax[plots]'" in capsys.readouterr().err


WRONG = {
    "no such file": (["nowhere.json", "{images}"], "nowhere.json: cannot be read"),
    "no image folder": (["{json}"], "row 0 names the image '0.png', so the data needs image_folder"),
    "URL": (["https://host/rows.json", "{images}"], "is a URL"),
    "image folder in a bucket": (["{json}", "gs://bucket/images"], "is a URL"),
    "near miss": (["{json}n", "{images}"], "there is train.json"),
    "a folder of nothing": (["{images}"], "a folder without .array_record or .parquet files"),
    "image folder gone": (["{json}", "nowhere"], "nowhere: the image folder"),
    "template": (["{json}", "{images}", "--template", "vicuna"], "no conversation template is called 'vicuna'"),
    "tokenizer": (["{json}", "{images}", "--tokenizer", "nowhere"], "nowhere"),
    "tokenizer without chatml": (["{json}", "{images}", *TINY, "--template", "chatml"], "needs the special token"),
    "length": (["{json}", "{images}", "--length", "0"], "must be at least 1"),
    "patch": (["{json}", "{images}", "--image-size", "7"], "at least a patch"),
    "report folder": (["{json}", "{images}", "--report-folder", "{json}/x"], "cannot be written to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_usage_is_one_line_and_exits_2(clean, capsys, name):
    flags, message = WRONG[name]
    flags = [flag.format(json=clean[0], images=clean[1]) for flag in flags]
    assert main(["data", "check", *flags, "--workers", "0"]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""


def test_data_help_lists_its_verbs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(re.search(rf"\b{verb} +[A-Z]", text) for verb in ("check", "show", "stats", "build", "captions"))


@pytest.mark.parametrize("verb", ["check", "show", "stats"])
def test_help_lists_the_dataset_flags(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(
        flag in text for flag in ("DATA", "IMAGE_FOLDER", "--tokenizer", "--template", "--length", "--image-size")
    )


def test_progress_bar_appears_only_on_a_terminal(clean, tmp_path):
    command = [sys.executable, "-m", "llava_jax", "data", "check", *clean, "--report-folder", str(tmp_path / "r")]
    command += ["--workers", "1"]
    root = Path(__file__).parents[2]
    piped = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert piped.returncode == 0 and piped.stderr == "" and "nothing found" in piped.stdout
    ours, theirs = pty.openpty()
    shown = subprocess.run(
        command, cwd=root, stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    assert shown.stdout.decode() == piped.stdout and b"checked rows" in os.read(ours, 100_000)
