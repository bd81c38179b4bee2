"""How far a verb has come, in lines where there is no terminal."""

from types import SimpleNamespace

from llava_jax.output import console


def test_the_pace_is_that_of_this_process(capsys, monkeypatch):
    """What was done before took it no time."""
    clock = iter(range(0, 99_000, 1000))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.progress("answered", total=13, begun=4) as tell:
        tell(8)
        tell(9)
    pace = "answered 8 of 13, 0.00 a second, 0:20:50 left\nanswered 9 of 13, 0.00 a second, 0:26:40 left\n"
    assert capsys.readouterr().err == pace


def test_lines_come_at_times_and_name_what_is_counted(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.progress("checked", "rows") as tell:
        for count in (1, 22, 24):
            tell(count, 1000)
    assert capsys.readouterr().err == "checked 22 of 1,000 rows, 2.00 a second, 0:08:09 left\n"
