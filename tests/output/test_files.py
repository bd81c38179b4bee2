"""Files that are written whole or not at all."""

import os

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import atomic_path, date_of, write_atomically, write_whole


def test_folders_are_made_and_a_file_is_replaced(tmp_path):
    out = tmp_path / "new" / "x.json"
    for text in ("one", "zwei \N{SNOWMAN}"):
        write_whole(out, text)
        assert out.read_bytes() == text.encode() and [p.name for p in out.parent.iterdir()] == ["x.json"]


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    """As root, /dev/null could be replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_what_was_there_stays_where_the_new_text_cannot_be_written(tmp_path):
    out = tmp_path / "x.json"
    write_whole(out, "before")
    with pytest.raises(DataError, match="half a character .* behind 'so far '"):
        write_whole(out, "so far \ud83d")
    assert out.read_text() == "before"
    with pytest.raises(ConfigError, match="x.json/y: cannot be written .*Name another place"):
        write_whole(out / "y", "after")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_folder", [False, True])
def test_after_an_error_the_old_content_stays_and_no_partial(tmp_path, error, is_folder):
    out = tmp_path / "x"
    write_atomically(out, "before")
    with pytest.raises(type(error)), atomic_path(out) as partial:
        partial.mkdir() if is_folder else None
        (partial / "y" if is_folder else partial).write_text("half")
        assert out.read_text() == "before"
        raise error
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "before"


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_path(tmp_path / "x") as partial:
        partial.mkdir()
        (partial / "y").touch()
        assert partial == tmp_path / "x.partial" and not (tmp_path / "x").exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["x", "x/y"]


def test_bytes_and_text_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "x", b"\xff\r\n")
    write_atomically(tmp_path / "y", "a\r\n\N{SNOWMAN}")
    assert (tmp_path / "x").read_bytes() == b"\xff\r\n" and (tmp_path / "y").read_bytes() == "a\r\n\N{SNOWMAN}".encode()


def test_the_data_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda handle: events.append((tmp_path / "x").exists()))
    write_atomically(tmp_path / "x", "text")
    assert events == []
    (tmp_path / "x").unlink()
    write_atomically(tmp_path / "x", "text", sync=True)
    assert events == [False] and (tmp_path / "x").read_text() == "text"


def test_writers_with_partial_files_of_their_own_do_not_meet(tmp_path):
    out = tmp_path / "x"
    with atomic_path(out, tmp_path / "1.partial") as first, atomic_path(out, tmp_path / "2.partial") as second:
        first.write_text("one")
        second.write_text("two")
    assert out.read_text() == "one" and list(tmp_path.iterdir()) == [out]


def test_the_date_of_a_file_is_of_its_last_change_in_utc(tmp_path):
    (tmp_path / "x").touch()
    os.utime(tmp_path / "x", (0, 86_400 * 365 - 1))
    assert date_of(tmp_path / "x") == "1970-12-31" and date_of(tmp_path / "y") == ""
