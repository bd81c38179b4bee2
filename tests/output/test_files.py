"""Atomic file writes."""

import os

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import atomic_path, date_of, write_atomically, write_whole


def test_write_creates_folders_and_replaces_the_file(tmp_path):
    out = tmp_path / "new" / "x.json"
    for text in ("one", "zwei \N{SNOWMAN}"):
        write_whole(out, text)
        assert out.read_bytes() == text.encode() and [p.name for p in out.parent.iterdir()] == ["x.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """Otherwise root would replace /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_old_content_survives_a_failed_write(tmp_path):
    out = tmp_path / "x.json"
    write_whole(out, "before")
    with pytest.raises(DataError, match="a lone surrogate follows 'so far '"):
        write_whole(out, "so far \ud83d")
    assert out.read_text() == "before"
    with pytest.raises(ConfigError, match="x.json/y: cannot be written .*Choose another path"):
        write_whole(out / "y", "after")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_keeps_old_content_and_removes_the_partial_file(tmp_path, error, is_folder):
    out = tmp_path / "x"
    write_atomically(out, "before")
    with pytest.raises(type(error)), atomic_path(out) as partial:
        partial.mkdir() if is_folder else None
        (partial / "y" if is_folder else partial).write_text("half")
        assert out.read_text() == "before"
        raise error
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "before"


def test_a_folder_appears_only_when_complete(tmp_path):
    with atomic_path(tmp_path / "x") as partial:
        partial.mkdir()
        (partial / "y").touch()
        assert partial == tmp_path / "x.partial" and not (tmp_path / "x").exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["x", "x/y"]


def test_bytes_and_text_are_written_unchanged(tmp_path):
    write_atomically(tmp_path / "x", b"\xff\r\n")
    write_atomically(tmp_path / "y", "a\r\n\N{SNOWMAN}")
    assert (tmp_path / "x").read_bytes() == b"\xff\r\n" and (tmp_path / "y").read_bytes() == "a\r\n\N{SNOWMAN}".encode()


def test_sync_flushes_before_the_rename(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda handle: events.append((tmp_path / "x").exists()))
    write_atomically(tmp_path / "x", "text")
    assert events == []
    (tmp_path / "x").unlink()
    write_atomically(tmp_path / "x", "text", sync=True)
    assert events == [False] and (tmp_path / "x").read_text() == "text"


def test_writers_with_separate_partial_files_do_not_conflict(tmp_path):
    out = tmp_path / "x"
    with atomic_path(out, tmp_path / "1.partial") as first, atomic_path(out, tmp_path / "2.partial") as second:
        first.write_text("one")
        second.write_text("two")
    assert out.read_text() == "one" and list(tmp_path.iterdir()) == [out]


def test_date_is_the_last_modification_in_utc(tmp_path):
    (tmp_path / "x").touch()
    os.utime(tmp_path / "x", (0, 86_400 * 365 - 1))
    assert date_of(tmp_path / "x") == "1970-12-31" and date_of(tmp_path / "y") == ""
