"""README, docs/ and launch/README.md as data: pages, code blocks, commands, links and the names in them."""

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
    """The text without its blocks of code."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text: str) -> list[list[str]]:
    """Every shell command in blocks and inline code as its words, continued lines joined and comments left out."""
    shell = [block.code for block in blocks(text) if block.language == "bash"]
    indented = [re.sub("^    ", "", block, flags=re.M) for block in _INDENTED.findall(_FENCE.sub("", text))]
    lines = "\n".join(shell + indented).replace("\\\n", " ").splitlines()
    lines += [code for code in inline_code(text) if " " in code]
    return [command for line in lines for command in _split(line) if command]


def _split(line: str) -> list[list[str]]:
    """The commands of a line, each as its words: `a | b`, `a && b` and `a; b` are two."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        tokens = list(lexer)
    except ValueError:  # inline code that is no shell
        return []
    parts: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set("|&;"):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Targets of links and images that are not on the net."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
