"""Forbidden phrases and variable names: paraphrases of technical terms, and names that do not say what they hold.

`pytest tests/test_words.py -s -n 0` prints the occurrences.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fixtures.package_source import ROOT

PHRASES = {  # regular expression, case-insensitive: what to write instead
    "behind step": "after step N",
    "(go|goes|going|gone|went) on": "resumes, continues",
    "(is|are|was|were|be|been) told": "is reported, is logged",
    "(is|are|was|were|be|been) said": "is reported, is logged",
    "half (a character|characters)": "lone surrogate",
    "set aside": "quarantined, kept, skipped",
    "(begins?|begun|beginning|starts?|started) anew": "starts over",
    "(is|are|was|were|be|been) taken": "is used, is chosen, is read",
    "sign of life": "heartbeat",
    "place in the data": "iterator state, data state",
}
NAMES = {  # of a variable, a parameter, a field or a function: what to write instead
    "said": "message, lines, record",
    "told": "message, lines, reported",
    "found": "the noun of what was found",
    "took": "seconds, duration",
    "asked": "questions, requests",
    "about": "metadata, description",
    "place": "data_state, position, device",
    "watch": "step_guard, watchdog",
    "one": "checkpoint, row, tensor ...",
    "words": "tokenizer, tokens, text",
    "how": "options, settings",
    "say": "log",
    "tell": "log, on_progress",
}
TREES = {  # name: files and folders
    "llava_jax": ["llava_jax"],
    "configs": ["configs"],
    "launch": ["launch"],
    "tests": ["tests"],
    "texts": ["README.md", "docs"],
}
TEXT = {".py", ".sh", ".md", ".yaml", ".sbatch", ".toml"}


def files(tree: str) -> list[Path]:
    """The text files of a tree, except this one."""
    roots = [ROOT / name for name in TREES[tree]]
    every = [file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return [file for file in every if (file.suffix in TEXT or file.name == "Dockerfile") and file != Path(__file__)]


def phrases_in(text: str) -> Counter[str]:
    """Counts each of PHRASES, also across line ends of prose and comments, and in names."""
    text = re.sub(r"\s*\n\s*(#+ )?", " ", text).replace("_", " ")
    return Counter({phrase: len(re.findall(rf"\b{phrase}\b", text, re.IGNORECASE)) for phrase in PHRASES})


def names_in(tree: ast.AST) -> Counter[str]:
    """Counts each of NAMES as an assigned name: variables, parameters, fields, imports, functions, classes."""
    given = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                given.append(name)
            case ast.arg(arg=name) | ast.alias(asname=str(name)) | ast.MatchAs(name=str(name)):
                given.append(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                given.append(name)
    return Counter(name.strip("_") for name in given if name.strip("_") in NAMES)


def total(counts: dict[Path, Counter]) -> int:
    """Sums all counts and prints those above 0, the largest first."""
    for file, counter in sorted(counts.items(), key=lambda item: -item[1].total()):
        if counter.total():
            shown = ", ".join(f"{name!r} {count}" for name, count in counter.most_common() if count)
            print(f"{counter.total():5} {file.relative_to(ROOT)}: {shown}")
    return sum(counter.total() for counter in counts.values())


@pytest.mark.parametrize("tree", TREES)
def test_no_forbidden_phrases(tree):
    print(f"\n{tree}: phrases")
    counts = {file: phrases_in(file.read_text(encoding="utf-8")) for file in files(tree)}
    assert total(counts) == 0, "what to write instead: PHRASES; where: above"


@pytest.mark.parametrize("tree", [tree for tree in TREES if tree != "texts"])
def test_no_forbidden_names(tree):
    print(f"\n{tree}: names")
    python = [file for file in files(tree) if file.suffix == ".py"]
    counts = {file: names_in(ast.parse(file.read_text(encoding="utf-8"))) for file in python}
    assert total(counts) == 0, "what to write instead: NAMES; where: above"


def test_phrases_match_across_lines_and_case():
    counts = phrases_in("It stops behind\n    # step 3. Is\ntold twice. Going on. Ongoing. test_it_goes_on_twice")
    assert counts.total() == 4 and counts["behind step"] == 1


def test_names_are_detected_in_every_binding():
    text = """
def f(said, *, about=1):
    found, x = 1, 2
    self.told = [one for one in range(3)]
    return g(how=found)
"""
    assert names_in(ast.parse(text)) == Counter(said=1, about=1, found=1, told=1, one=1)
