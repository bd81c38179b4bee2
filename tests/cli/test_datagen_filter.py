"""python -m llava_jax datagen filter: files written, the printed table, rejected input, and the way to chat.json."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from llava_jax.datagen import caption_rows
from tests.fixtures.child_process import ROOT

COLORS = "red blue green white black".split()


def run(*args) -> int:
    return main(["datagen", "filter", *map(str, args)])


@pytest.fixture
def captions(tmp_path) -> Path:
    """100 captions: each color 20 times, one bus in all, a tram in two."""
    rows = [
        {"id": i, "image": f"{i}.jpg", "caption": f"a {COLORS[i % 5]} box beside the bus", "url": f"http://x/{i}"}
        for i in range(98)
    ] + [{"image": f"{i}.jpg", "caption": "the tram"} for i in (98, 99)]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_selected_rows_keep_their_text_and_order(captions, tmp_path, capsys):
    out = tmp_path / "new" / "out.jsonl"
    assert run(captions, out, "--cap", 4) == 0
    lines = captions.read_text(encoding="utf-8").splitlines()
    selected = out.read_text(encoding="utf-8").splitlines()
    positions = [lines.index(line) for line in selected]
    assert positions == sorted(positions) and 20 <= len(selected) <= 24 and "tram" not in "".join(selected)
    text, notes = capsys.readouterr()
    assert f"{out}: {len(selected)} of 100 pairs, by the key lemma" in text
    table = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[:5]]
    assert table[0] == ["key", "unique phrases", "in 3 captions or more", "pairs selected"]
    assert table[1:] == [
        ["chunk", "7", "6", table[1][3]],
        ["lemma", "7", "6", str(len(selected))],
        ["head", "3", "2", table[3][3]],
        ["CC3M, paper", "108,182", "31,423", "595,375"],
    ]
    assert "noun phrases by rules; the paper used spaCy" in notes
    before = out.read_bytes()
    out.unlink()
    assert run(captions, out, "--cap", 4) == 0 and out.read_bytes() == before
    out.unlink()
    assert run(captions, out, "--cap", 4, "--seed", 1) == 0 and out.read_bytes() != before


def test_key_decides_which_selection_is_written(captions, tmp_path):
    assert run(captions, tmp_path / "head.jsonl", "--cap", 4, "--key", "head", "--min-count", 2) == 0
    lines = (tmp_path / "head.jsonl").read_text(encoding="utf-8").splitlines()
    assert 4 + 2 <= len(lines) <= 4 + 4 + 2 and sum("tram" in line for line in lines) == 2


def test_selection_becomes_chat_json(captions, tmp_path):
    assert run(captions, tmp_path / "out.jsonl", "--cap", 4) == 0
    assert main(["data", "captions", str(tmp_path / "out.jsonl"), str(tmp_path / "chat.json")]) == 0
    rows = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    selected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["image"], r["conversations"][1]["value"]) for r in rows] == [
        (r["image"], r["caption"]) for r in selected
    ]


def test_overlap_with_a_released_selection_is_printed(captions, tmp_path, capsys):
    lines = captions.read_text(encoding="utf-8").splitlines()
    (tmp_path / "metadata.json").write_text(f"[{','.join(lines[:50])}]", encoding="utf-8")
    options = ["--cap", 1000, "--min-count", 3, "--against", tmp_path / "metadata.json"]
    assert run(captions, tmp_path / "out.jsonl", *options) == 0
    message = "50 of CAPTIONS are in it, 50 of them selected (100.0%); a random selection of this size would share 49"
    assert message in capsys.readouterr().out


def test_page_is_written(captions, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert run(captions, tmp_path / "out.jsonl", "--page", tmp_path / "pages" / "p.html") == 0
    page = (tmp_path / "pages" / "p.html").read_text(encoding="utf-8")
    assert "595,375" in page and "rules" in page and "<svg" in page


REFUSED = {
    "a missing file": (["missing.jsonl", "out"], "missing.jsonl: cannot be read"),
    "a caption that is missing": (["bad.jsonl", "out"], 'bad.jsonl: line 2: key "caption" must be'),
    "a folder": (["folder", "out"], "not a regular file"),
    "OUT exists": (["captions.jsonl", "bad.jsonl"], "bad.jsonl exists already"),
    "a count of 0": (["captions.jsonl", "out", "--min-count", 0], "must be at least 1"),
    "a cap of 0": (["captions.jsonl", "out", "--cap", 0], "must be at least 1"),
    "a model that is not installed": (["captions.jsonl", "out", "--spacy-model", "no_such_model"], "--spacy-model"),
    "a released file that is missing": (["captions.jsonl", "out", "--against", "missing"], "missing: cannot be read"),
    "a released file of other images": (["captions.jsonl", "out", "--against", "other.jsonl"], "none of its 1 rows"),
    "a URL": (["captions.jsonl", "gs://bucket/out"], "is a URL"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_named_and_nothing_is_written(captions, tmp_path, monkeypatch, capsys, name):
    arguments, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(caption_rows, "MIN_BYTES_KEPT", 0)
    Path("bad.jsonl").write_text('{"image": "a", "caption": "b"}\n{"image": "a"}\n', encoding="utf-8")
    Path("other.jsonl").write_text('{"image": "a", "caption": "b"}\n', encoding="utf-8")
    Path("folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npz"}
    assert written == before


def test_no_frequent_phrase_writes_nothing(captions, tmp_path, capsys):
    assert run(captions, tmp_path / "out.jsonl", "--min-count", 99) == 2
    assert "no noun phrase is in 99 captions; nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_large_file_is_scanned_once(captions, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_rows, "MIN_BYTES_KEPT", 0)
    options = ["--cap", 4, "--phrases", tmp_path / "cache"]
    assert run(captions, tmp_path / "a.jsonl", *options) == 0
    scan = caption_rows.scan_rows
    monkeypatch.setattr(caption_rows, "scan_rows", None)
    assert run(captions, tmp_path / "b.jsonl", *options) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    monkeypatch.setattr(caption_rows, "scan_rows", scan)
    for file in (tmp_path / "cache").glob("*.rows.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert run(captions, tmp_path / "c.jsonl", *options) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    captions.write_text('{"image": "a", "caption": "the dog"}\n' * 5, encoding="utf-8")
    assert run(captions, tmp_path / "d.jsonl", *options) == 0
    assert len((tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_part_and_resumes(tmp_path, stop):
    rows = (f'{{"image": "{i}", "caption": "a box {i % 700} beside the bus number {i}"}}\n' for i in range(30_000))
    (tmp_path / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    # In the background of a script SIGINT is ignored, also by child processes.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); from llava_jax.__main__ import main; "
    arguments = ["datagen", "filter", "captions.jsonl", "out.jsonl", "--workers", "0"]
    command = [sys.executable, "-c", program + "sys.exit(main(sys.argv[1:]))", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    cache = tmp_path / "out.jsonl.phrases"
    while not list(cache.glob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(stop)
    assert process.wait(30) not in (0, 1, 2)
    names = [path.name for path in cache.iterdir()]
    assert names and all(name.endswith(".npz") for name in names) and not (tmp_path / "out.jsonl").exists()
    assert subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True).returncode == 0
    assert (tmp_path / "out.jsonl").exists() and set(names) <= {path.name for path in cache.iterdir()}
