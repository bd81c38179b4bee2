"""Files that are not what their name says."""

import bz2
import gzip
import lzma
import re

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.output.file_kind import wrong_kind
from llava_jax.output.files import local_path, read_object

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"
KINDS = {
    "pointer": (POINTER, "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "bucket error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "hub reply": (b"Entry not found", r"server's reply \(Entry not found\)"),
    "gated": (b"Access to model meta-llama/Llama-3 is restricted.", "server's reply"),
    "json reply": (b'{"error":"Repository not found"}', "server's reply"),
    "gzip": (gzip.compress(b"{}", mtime=0), r"compressed \(gzip\)"),
    "bzip2": (bz2.compress(b"{}"), r"compressed \(bzip2\)"),
    "xz": (lzma.compress(b"{}"), r"compressed \(xz\)"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00\x01", r"compressed \(zstd\)"),
    "utf-16": ("[]".encode("utf-16"), "UTF-16"),
    "tiktoken": (b"IQ== 0\nIg== 1\nIw== 2\n", "tiktoken"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("content, message", KINDS.values(), ids=KINDS)
def test_wrong_file_is_named_with_what_to_do(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    assert re.search(message, wrong_kind(tmp_path / "file"))


@pytest.mark.parametrize("content", [b"{}", b'{"model": {"type": "BPE"}}', b"\x80\0\0\0\0\0\0\0{}", b"\n\x07\n\x05"])
def test_right_files_and_missing_ones_are_not_named(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert wrong_kind(tmp_path / "file") is None
    assert wrong_kind(tmp_path / "missing") is None


def test_json_object_that_is_a_pointer_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(POINTER)
    with pytest.raises(DataError, match="config.json is a git-lfs pointer"):
        read_object(tmp_path / "config.json", "the model")


@pytest.mark.parametrize("url", ["gs://bucket/run", "https://host/model", "s3://b", "file:///tmp/x"])
def test_url_is_no_local_path(url):
    with pytest.raises(ConfigError, match="--workdir: .* is a URL"):
        local_path(url, "--workdir")


def test_local_paths_stay(tmp_path):
    assert local_path(tmp_path, "x") == tmp_path
    assert str(local_path("a:b/c", "x")) == "a:b/c"
    assert str(local_path("C:/data", "x")) == "C:/data"
