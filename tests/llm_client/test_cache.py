"""The reply cache: torn lines, foreign files, locking, and a full disk."""

import json
import os

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.llm_client.cache import BatchRecord, Reply, ReplyCache, cache_key, read_replies

REPLY = Reply("It is \ud83d\n\u2028 so.", "stop", False, "fake-1", 100, 10)


def test_added_replies_are_read_back(tmp_path):
    path = tmp_path / "new" / "cache.jsonl"
    with ReplyCache(path) as cache:
        cache.add("k1", REPLY)
        assert read_replies(path) == ({"k1": REPLY}, 0)  # before the cache is closed
        cache.add("k2", Reply("", "content_filter", True, "fake-1"))
    assert list(ReplyCache(path).replies) == ["k1", "k2"] and path.read_bytes().count(b"\n") == 2
    assert read_replies(tmp_path / "gone") == ({}, 0) and not (tmp_path / "gone").exists()


def test_torn_line_loses_only_its_own_reply(tmp_path):
    """The next line is not appended to it."""
    path = tmp_path / "cache.jsonl"
    with ReplyCache(path) as cache:
        cache.add("k1", REPLY)
        whole = path.read_bytes()
        cache.add("k2", REPLY)
    both = path.read_bytes()
    for end in range(len(whole) + 1, len(both)):
        path.write_bytes(both[:end])
        with ReplyCache(path) as cache:
            is_whole = end == len(both) - 1  # only the line break is missing
            assert list(cache.replies) == (["k1", "k2"] if is_whole else ["k1"]) and cache.ledger.torn == (not is_whole)
            cache.add("k3", REPLY)
        assert list(read_replies(path)[0]) == (["k1", "k2", "k3"] if is_whole else ["k1", "k3"])


def test_cache_key_covers_everything_that_is_sent():
    messages = [{"role": "user", "content": "Why?"}]
    key = cache_key("m", messages, {"temperature": 0.0, "max_tokens": 5})
    assert key == cache_key("m", [{"content": "Why?", "role": "user"}], {"max_tokens": 5, "temperature": 0.0})
    other_keys = [
        cache_key("n", messages, {"temperature": 0.0, "max_tokens": 5}),
        cache_key("m", messages * 2, {"temperature": 0.0, "max_tokens": 5}),
        cache_key("m", [{"role": "system", "content": "Why?"}], {"temperature": 0.0, "max_tokens": 5}),
        cache_key("m", messages, {"temperature": 0.5, "max_tokens": 5}),
        cache_key("m", messages, {"temperature": 0.0, "max_tokens": 6}),
        cache_key("m", messages, {"temperature": 0.0, "max_completion_tokens": 5}),
    ]
    assert len({key, *other_keys}) == 7


@pytest.mark.parametrize(
    "content",
    [
        b"# A README\n\nof mine",
        b'{"question_id": "1", "text": "A"}\n',
        b'{"key": "k", "text": "A"}\n',
        b'{"key": "k", "text": 1, "finish": "", "is_refused": false, "model": ""}\n',
        b"[1]\n",
        b"\xff\xfe",
    ],
)
def test_foreign_file_is_rejected_and_unchanged(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    for read in (ReplyCache, read_replies):
        with pytest.raises(DataError, match="mine: line 1 is not a line of a reply cache"):
            read(path)
    assert path.read_bytes() == content


def test_cache_is_locked_by_one_process(tmp_path):
    with ReplyCache(tmp_path / "c"), pytest.raises(ConfigError, match="another process is using this cache"):
        ReplyCache(tmp_path / "c")
    ReplyCache(tmp_path / "c").__exit__()
    ReplyCache(tmp_path / "c")


def test_full_disk_loses_one_reply(tmp_path, monkeypatch):
    write = os.write
    with ReplyCache(tmp_path / "c") as cache:
        cache.add("k1", REPLY)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda file, line: write(file, line[:20]))
            with pytest.raises(ConfigError, match="c: cannot be written .No space left on device"):
                cache.add("k2", REPLY)
    with ReplyCache(tmp_path / "c") as cache:
        assert list(cache.replies) == ["k1"] and cache.ledger.torn == 1
        cache.add("k2", REPLY)
    assert list(read_replies(tmp_path / "c")[0]) == ["k1", "k2"]
    lines = (tmp_path / "c").read_text().splitlines()
    assert json.loads(lines[-1])["key"] == "k2"


def test_unwritable_path_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "c", tmp_path):
        with pytest.raises(ConfigError, match="cannot be written"):
            ReplyCache(path)


GOOD = b'{"key": "k1", "text": "A", "finish": "stop", "is_refused": false, "model": "m"}\n'
ODD_LINES = {
    "nested deeply": GOOD.replace(b'"A"', b"[" * 30_000 + b"]" * 30_000),
    "5,000 digits": GOOD.replace(b'"A"', b"9" * 5000),
    "a key twice": GOOD.replace(b'"model"', b'"text": "B", "model"'),
    "bad UTF-8": GOOD.replace(b'"A"', b'"\xff"'),
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_line_that_is_no_plain_json_is_torn(tmp_path, name):
    (tmp_path / "c").write_bytes(ODD_LINES[name] + GOOD.replace(b"k1", b"k2").replace(b"\n", b"\r\n"))
    replies, torn = read_replies(tmp_path / "c")
    assert list(replies) == ["k2"] and torn == 1


@pytest.mark.parametrize("change", [b'"input_tokens": "9"', b'"output_tokens": true', b'"finish": null'])
def test_reply_with_values_of_wrong_types_is_rejected(tmp_path, change):
    key = change.split(b":")[0]
    line = (
        GOOD.replace(b'"finish": "stop"', change) if key == b'"finish"' else GOOD.replace(b"}", b", " + change + b"}")
    )
    (tmp_path / "c").write_bytes(line)
    with pytest.raises(DataError, match="line 1 is not a line of a reply cache"):
        read_replies(tmp_path / "c")


def test_tries_and_batches_are_read_back(tmp_path):
    with ReplyCache(tmp_path / "c") as cache:
        for key in ("k1", "k1", "k2", "k3"):
            cache.add_sent(key, "text")
        cache.add_unpaid("k1", "500")
        cache.add("k2", REPLY)
        cache.add_batch("b1", {"k4": "a", "k5": "b"})
        cache.add_batch("b2", {"k6": "c"})
        cache.set_batch("b1", batch_id="batch_9")
        cache.add_batch_replies({"k4": Reply("x", "stop", False, "m", is_batch=True)})
        cache.set_batch("b2", batch_ended="expired")
        written = cache.ledger
    with ReplyCache(tmp_path / "c") as cache:
        ledger = cache.ledger
    assert ledger == written and list(ledger.replies) == ["k2", "k4"] and ledger.replies["k4"].is_batch
    assert +ledger.open_tries == {"k1": 1, "k3": 1}
    assert ledger.live_batches() == {"b1": BatchRecord(["k4", "k5"], "batch_9", None)}


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "k", "sent": 5}', b'{"key": "k", "sent": "x", "more": 1}', b'{"key": "k", "sent": "x", "batch": 1}',
        b'{"key": "k", "unpaid": null}', b'{"key": "b", "batch_id": "x"}', b'{"key": "b", "batch_ended": "failed"}',
        b'{"key": "k"}',
    ],
)  # fmt: skip
def test_unknown_event_is_no_line_of_a_cache(tmp_path, line):
    (tmp_path / "c").write_bytes(line + b"\n")
    with pytest.raises(DataError, match="line 1 is not a line of a reply cache"):
        read_replies(tmp_path / "c")


def test_old_cache_without_tries_is_read(tmp_path):
    (tmp_path / "c").write_bytes(GOOD)
    replies, _ = read_replies(tmp_path / "c")
    assert replies["k1"].text == "A" and not replies["k1"].is_batch
