"""Lines of text, and how far a verb has come where there is no terminal."""

import contextlib
from types import SimpleNamespace

import pytest

from llava_jax.output import console


def test_pace_counts_only_work_of_this_process(capsys, monkeypatch):
    """What was done before took it no time."""
    clock = iter(range(0, 99_000, 1000))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.progress("answered", total=13, initial=4) as report_progress:
        report_progress(8)
        report_progress(9)
    pace = "answered 8 of 13, 0.00 a second, 0:20:50 left\nanswered 9 of 13, 0.00 a second, 0:26:40 left\n"
    assert capsys.readouterr().err == pace


def test_progress_lines_appear_at_intervals_with_the_unit(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.progress("checked", "rows") as report_progress:
        for count in (1, 22, 24):
            report_progress(count, 1000)
    assert capsys.readouterr().err == "checked 22 of 1,000 rows, 2.00 a second, 0:08:09 left\n"


@pytest.mark.parametrize("to_stderr", [False, True])
def test_log_flushes_plain_text_to_one_stream(tmp_path, monkeypatch, to_stderr):
    files = {name: open(tmp_path / name, "w", encoding="utf-8") for name in ("stdout", "stderr")}
    with contextlib.ExitStack() as stack:
        for name, file in files.items():
            monkeypatch.setattr(console.sys, name, stack.enter_context(file))
        console.log("red \x1b[31m\ud800.jpg\n\tstep 3", to_stderr=to_stderr)
        text = [(tmp_path / name).read_text() for name in files]  # before the files are closed: it is flushed
    assert text == (["", "red [31m?.jpg\n\tstep 3\n"] if to_stderr else ["red [31m?.jpg\n\tstep 3\n", ""])


def test_lost_output_is_reported_once_and_then_dropped(monkeypatch):
    """A training run logs more lines while it saves."""
    lost = []
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(console.sys, "stdout", full)
        with pytest.raises(console.OutputLost, match="standard output cannot be written: No space left on device"):
            console.log("first")
        console.log("second")
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(console.sys, "stdout", full)
        for line in ("first", "second"):
            console.log_until_lost(console.log, lambda: lost.append("lost"), line)
        assert lost == ["lost"]
