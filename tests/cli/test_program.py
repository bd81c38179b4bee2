"""Verbs as whole programs: consoles that cannot show or receive text, and Ctrl-C while they start."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.fixtures.child_process import ROOT

LLAVA = [sys.executable, "-m", "llava_jax"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
NAME = "Bär 熊 🐻"


def run(arguments: list[str], folder, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess:
    """Runs python -m llava_jax ARGUMENTS within a line of a shell, where it is "$@"."""
    return subprocess.run(
        ["/bin/bash", "-c", shell, "bash", *LLAVA, *arguments], cwd=folder, encoding="utf-8", capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, timeout=100,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Pairs of an image and a caption, both not ASCII."""
    line = json.dumps({"image": f"{NAME}.png", "caption": NAME}, ensure_ascii=False)
    (tmp_path / f"{NAME}.jsonl").write_text(line + "\n", encoding="utf-8")
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / f"{NAME}.png").write_bytes(b"")
    return tmp_path


def test_ascii_console_gets_marks_and_files_stay_utf8(folder):
    """Also the names of files: an ASCII locale alone could not open this image."""
    captions = ["data", "captions", f"{NAME}.jsonl", "out.json", "--images", NAME]
    done = run(captions, folder, **ASCII)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.json: 1 samples\n", "")
    (row,) = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert row["image"] == f"{NAME}.png" and row["conversations"][1]["value"] == NAME
    again = run([*captions[:3], f"{NAME}.json", *captions[4:]], folder, **ASCII)
    assert (again.returncode, again.stdout, again.stderr) == (0, "B?r ? ?.json: 1 samples\n", "")
    refused = run([*captions[:3], f"{NAME}.json", *captions[4:]], folder, **ASCII)
    assert refused.returncode == 2 and refused.stderr.startswith("error: B?r ? ?.json exists already")


@pytest.mark.parametrize(
    "shell, code, err",
    [
        ('"$@" > /dev/full', 1, "error: standard output cannot be written: No space left on device\n"),
        ('"$@" <&- >&- 2>&-', 0, ""),
        ('"$@" | true; exit ${PIPESTATUS[0]}', 1, ""),
    ],
)
def test_lost_output_is_no_traceback_and_files_are_whole(folder, shell, code, err):
    """A pipe to `true` has no reader when the verb prints its only line."""
    done = run(["data", "captions", f"{NAME}.jsonl", "out.json"], folder, shell)
    assert (done.returncode, done.stderr) == (code, err)
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))[0]["image"] == f"{NAME}.png"


def test_help_on_a_full_disk_is_one_line(folder):
    done = run(["data", "check", "--help"], folder, '"$@" > /dev/full')
    assert done.returncode == 1 and done.stderr.startswith("error: standard output") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_signal_while_a_verb_is_imported_prints_nothing(folder, name, code):
    """tyro is replaced by a module whose import never ends."""
    (folder / "tyro.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    with_signals = "import os, sys; from signal import *; signal(SIGINT, SIG_DFL); signal(SIGHUP, SIG_DFL); "
    with_signals += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = subprocess.Popen(
        [LLAVA[0], "-c", with_signals, *LLAVA[1:], "data", "check", "x"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, encoding="utf-8", env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(getattr(signal, name))
    started_at = time.monotonic()
    assert process.communicate(timeout=50) == ("", "") and process.returncode == code
    assert time.monotonic() - started_at < 5
