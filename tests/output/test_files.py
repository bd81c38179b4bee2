"""Files that are written whole or not at all."""

import os

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import write_whole


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
