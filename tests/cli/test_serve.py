"""The verb `serve`: flags that are refused before anything is loaded, the key file, a missing library."""

import sys
from pathlib import Path

import pytest
import tyro

from llava_jax.cli.flags import read_key
from llava_jax.cli.serve import ServeFlags, is_loopback, serve
from llava_jax.errors import ConfigError


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--port=-1"], "--port -1 is out of range"),
        (["--port=70000"], "--port 70000 is out of range"),
        (["--slots=0"], "--slots 0 is out of range"),
        (["--length=8"], "--length 8 is out of range"),
        (["--queue=0"], "--queue 0 is out of range"),
        (["--drain-seconds=-1"], "--drain-seconds -1.0 is out of range"),
        (["--drain-seconds=nan"], "--drain-seconds nan is out of range"),
        (["--host=0.0.0.0"], "--api-key-file FILE, or --insecure"),
        (["--host=::"], "--api-key-file FILE, or --insecure"),
        (["--host=example.org"], "--api-key-file FILE, or --insecure"),
        (["--template=vicuna"], "'vicuna'"),
        (["--api-key-file=gone"], "gone cannot be read: No such file"),
    ],
)
def test_bad_flags_are_refused_before_loading(flags, message):
    with pytest.raises(ConfigError, match=message):
        tyro.cli(serve, args=["no model", *flags], config=(tyro.conf.FlagCreatePairsOff,))


def test_other_hosts_need_a_key_or_the_flag():
    ServeFlags(host="0.0.0.0", insecure=True).check()
    ServeFlags(host="0.0.0.0", api_key_file=Path("k")).check()
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not [host for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "") if is_loopback(host)]


@pytest.mark.parametrize(
    "text", ["", "short", "two words of a long key", "line one is long\nline two is too", "ä" * 20]
)
def test_file_without_a_key_is_refused_without_its_text(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="does not hold a key") as raised:
        read_key(file)
    assert not text or text not in str(raised.value)
    file.write_text("0123456789abcdef\n")
    assert read_key(file) == "0123456789abcdef"


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sse_starlette", None)
    with pytest.raises(ConfigError, match=r"sse_starlette: pip install 'llava_jax\[serve\]'"):
        tyro.cli(serve, args=["m"], config=(tyro.conf.FlagCreatePairsOff,))
