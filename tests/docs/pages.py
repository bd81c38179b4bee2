"""Parses README, docs/ and launch/README.md: code blocks, commands, links, inline code."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"(?:<!-- (run[^\n]*?) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n)+")


class Block(NamedTuple):
    """A fenced block of code. `marker`: what the comment `<!-- run ... -->` above it contains, None without one."""

    marker: str | None
    language: str
    code: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [Block(marker or None, language, code) for marker, language, code in _FENCE.findall(text)]


def prose(text: str) -> str:
    """The text without code blocks."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text: str) -> list[list[str]]:
    """Every shell command of code blocks and inline code as a list of words, without comments."""
    shell = [block.code for block in blocks(text) if block.language == "bash"]
    indented = [re.sub("^    ", "", block, flags=re.M) for block in _INDENTED.findall(_FENCE.sub("", text))]
    lines = "\n".join(shell + indented).replace("\\\n", " ").splitlines()
    lines += [code for code in inline_code(text) if " " in code]
    return [command for line in lines for command in _split(line) if command]


def _split(line: str) -> list[list[str]]:
    """The commands of a line as lists of words: `a | b`, `a && b` and `a; b` are two commands."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        tokens = list(lexer)
    except ValueError:  # inline code that is not shell
        return []
    parts: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set("|&;"):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Targets of links and images, except URLs."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
