"""`chat --server`: the same conversation as with a loaded model, over a running server."""

import io
import sys

import pytest
import tyro
from PIL import Image

from llava_jax.cli.chat import chat
from llava_jax.errors import ConfigError, DataError, TooLong
from llava_jax.llm_client.chat_server import ChatServer
from tests.serve.conftest import NAME, data_uri, question, running_site

KEY = "k3y-" + "y" * 28


def run_chat(monkeypatch, lines: str, *flags: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    tyro.cli(chat, args=list(flags), config=(tyro.conf.FlagCreatePairsOff,))


def test_conversation_with_images_equals_the_clients(site, client, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    flags = "--server", f"{site.url}/v1", "--image", str(picture), "--max-new-tokens=8", "--verbose"
    run_chat(monkeypatch, "what color is it ?\nand then ?\n", *flags)
    out, err = capsys.readouterr()
    messages = question("what color is it ?", data_uri())
    first = client.chat.completions.create(messages=messages, model=NAME, max_tokens=8).choices[0].message.content
    messages += [{"role": "assistant", "content": first}, *question("and then ?")]
    second = client.chat.completions.create(messages=messages, model=NAME, max_tokens=8).choices[0].message.content
    assert out == f"{first}\n{second}\n"
    assert f"{NAME} at {site.url}" in err and err.count("8 tokens in ") == 2 and "tokens/s" in err


def test_key_is_read_from_a_file(scheduler, monkeypatch, capsys, tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    with running_site(scheduler, KEY, hosts=None) as site:
        run_chat(monkeypatch, "hello\n", "--server", site.url, "--api-key-file", str(file), "--max-new-tokens=2")
        out, err = capsys.readouterr()
        assert out.strip() and KEY not in out + err
        with pytest.raises(DataError, match="API key is missing or wrong .* pass --api-key-file"):
            run_chat(monkeypatch, "hello\n", "--server", site.url)


def test_too_long_conversation_is_named(site):
    with pytest.raises(TooLong, match="a slot 128"):
        list(ChatServer(site.url).stream(question("word " * 300), model=NAME))


def test_refusal_of_the_server_is_a_note_and_the_chat_continues(site, monkeypatch, capsys):
    run_chat(monkeypatch, "hello\n", "--server", site.url, "--temperature=3")
    out, err = capsys.readouterr()
    assert out == "" and "the server refused: temperature" in err


def test_fault_in_a_stream_is_an_error(site, monkeypatch):
    stream = iter(ChatServer(site.url).stream(question("hello"), model=NAME, max_tokens=100, temperature=1.5, seed=2))
    next(stream)
    monkeypatch.setattr(site.engine, "advance", lambda: 1 / 0)
    with pytest.raises(DataError, match="the model failed"):
        list(stream)
    monkeypatch.undo()
    site.wait_until_idle()


def test_server_that_is_not_there_is_one_line():
    with pytest.raises(DataError, match="127.0.0.1:9 does not answer .Connection refused.; is the server"):
        ChatServer("http://127.0.0.1:9").model()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://user:word@x", "http://x/?key=1", "http://x:0", ""]
)
def test_invalid_url_is_a_usage_error(url):
    with pytest.raises(ConfigError, match="--server must be"):
        ChatServer(url)


def test_model_and_server_exclude_each_other(monkeypatch):
    for flags in ([], ["m", "--server", "http://127.0.0.1:9"]):
        with pytest.raises(ConfigError, match="pass a MODEL, or --server URL"):
            run_chat(monkeypatch, "", *flags)
    with pytest.raises(ConfigError, match="needs --server"):
        run_chat(monkeypatch, "", "m", "--api-key-file", "k")
