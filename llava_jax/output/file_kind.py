"""Recognizes files that are not what their name says: what a failed download, git-lfs or a packer leaves behind."""

import re
from pathlib import Path

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# What the Hugging Face hub and common servers answer instead of a file.
REPLIES = (b"Entry not found", b"Access to model", b"Invalid username", b"Repository not found", b'{"error":')
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def wrong_kind(path: Path) -> str | None:
    """Returns what a file really is and what to do, as a clause after the file's name ("is a git-lfs pointer, ..."), if
    its first bytes belong to a frequent mistake; else None. Reads 1 KiB. None as well if it cannot be read."""
    try:
        with path.open("rb") as file:
            return wrong_content(file.read(1024))
    except OSError:
        return None


def wrong_content(start: bytes) -> str | None:
    """Returns the same clause for the first bytes of a file, at most 1 KiB."""
    if not start:
        return "is empty. Download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself. Run `git lfs pull` in its repository"
    if re.match(rb"\s*<(!doctype|html|\?xml|error)", start, re.IGNORECASE):
        return "is a web page, perhaps a server's error message. Download the file again"
    if start.startswith(REPLIES):
        reply = start.splitlines()[0][:80].decode(errors="replace")
        return f"is a server's reply ({reply}), not the file. Download it again, with access to it"
    for magic, name in PACKED.items():
        if start.startswith(magic):
            return f"is compressed ({name}). Unpack it"
    if start.startswith(UTF_16) or re.match(
        rb"(\0[\t\n\r -~]|[\t\n\r -~]\0){4}", start
    ):  # also without a byte order mark
        return "is text in UTF-16. Save it as UTF-8"
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", start):
        return "is a tiktoken file, as in Meta's own Llama 3 releases. Use tokenizer.json of the Hugging Face release"
    return None
