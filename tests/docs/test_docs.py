"""Flags, settings, paths, links and error messages in the documentation exist, and its pages are short."""

import ast
import contextlib
import functools
import io
import re
import shutil
from pathlib import Path

import pytest

from llava_jax import config
from llava_jax.__main__ import main
from llava_jax.cli.verbs import VERBS
from tests.docs.pages import PAGES, README, ROOT, anchors, commands, inline_code, links, prose, read

PACKAGE = ROOT / "llava_jax"
LONGEST = {README: 120}  # lines; other pages 250
TOP = ("llava_jax/", "configs/", "launch/", "tests/", "docs/")
ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --- flags and verbs


@functools.cache
def flags_of(*verb: str) -> frozenset[str]:
    """The flags in `--help` of a verb, with dashes; empty for an unknown verb."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main([*verb, "--help"])
        except SystemExit as e:
            code = e.code
    return frozenset() if code else flags_in(out.getvalue())


def flags_in(text: str) -> frozenset[str]:
    return frozenset(flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def verb_of(tokens: list[str]) -> tuple[str, ...]:
    """("eval", "scienceqa", "score") from the arguments of `python -m llava_jax`."""
    verb, inner = (), VERBS
    for word in tokens:
        if not isinstance(inner, dict) or word not in inner:
            break
        verb, inner = (*verb, word), inner[word]
        inner = inner[1] if isinstance(inner, tuple) else inner  # a group is (description, verbs)
    return verb


def leaves(verbs: dict, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All verbs, without groups."""
    verb_paths = []
    for name, verb in verbs.items():
        verb_paths += leaves(verb[1], (*before, name)) if isinstance(verb, tuple) else [(*before, name)]
    return verb_paths


def flags_of_program(command: list[str]) -> frozenset[str] | None:
    """The flags of our program that a command runs; None if it runs another program."""
    if command[:3] == ["python", "-m", "llava_jax"]:
        verb = verb_of(command[3:])
        assert verb, f"no such verb: {' '.join(command)}"
        return flags_of(*verb)
    if command[:3] == ["python", "-m", "llava_jax.main"]:
        return flags_of("train")
    file = command[1] if command[0] == "python" and len(command) > 1 else command[0]
    if not file.startswith("launch/"):
        return None
    text = read(ROOT / file)  # FileNotFoundError: no such script
    switches = re.findall(r'^\s*flags "([^"]*)" "([^"]*)"', text, re.M)  # launch/common.sh
    named = {f"--{name}" for pair in switches for names in pair for name in names.split()}
    passed_on = flags_of("train") if "llava_jax" in text else frozenset()
    return flags_in(text) | named | passed_on | {"--dry-run", "--help"}


def is_ours(flag: str) -> bool:
    return not re.match(r"--config($|\.)", flag)


@ids
def test_flags_of_each_command_exist(page):
    for command in commands(read(page)):
        known = None if "VERB" in command else flags_of_program(command)
        if known is not None:
            given = {word.split("=")[0].replace("_", "-") for word in command if re.match(r"--[a-z]", word)}
            unknown = {flag for flag in given if is_ours(flag)} - known
            assert not unknown, f"{' '.join(command)}: {sorted(unknown)}"


# Flags of other programs.
FOREIGN = {"--gpus-per-task", "--time"}


@ids
def test_flags_in_the_text_exist(page):
    ours = frozenset().union(*(flags_of(*verb) for verb in leaves(VERBS)))
    scripts = frozenset().union(
        *(flags_of_program([str(p.relative_to(ROOT))]) for p in (ROOT / "launch").rglob("*.sh"))
    )
    named = {
        flag.replace("_", "-") for code in inline_code(read(page)) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)
    }
    assert {flag for flag in named if is_ours(flag)} - ours - scripts - FOREIGN == set()


def our_commands() -> list[list[str]]:
    return [
        command for page in PAGES for command in commands(read(page)) if command[:3] == ["python", "-m", "llava_jax"]
    ]


def test_pages_show_every_verb():
    assert set(leaves(VERBS)) - {verb_of(command[3:]) for command in our_commands()} == set()


# --- settings


PLACEHOLDERS = {"NAME", "name", "a.b"}


@functools.cache
def settings() -> frozenset[str]:
    """Every setting and group of a config; those of a stage without `stages.NAME`."""
    paths = {*config.flatten(config.Config()), *config.flatten(config.Stage()), "stages", "config"}
    return frozenset(".".join(path.split(".")[:n]) for path in paths for n in (1, 2, 3))


def setting_of(name: str) -> str:
    """`config.stages.NAME.data.path` -> `data.path`."""
    name = re.sub(r"^-*(config\.)?", "", name)
    return re.sub(r"^stages\.\w+\.?", "", name) or "stages"


def test_settings_in_commands_exist():
    flags = [
        word for page in PAGES for command in commands(read(page)) for word in command if word.startswith("--config.")
    ]
    assert len(flags) > 10
    assert {flag for flag in flags if setting_of(flag.split("=")[0]) not in settings() | PLACEHOLDERS} == set()


@ids
def test_settings_in_the_text_exist(page):
    groups = "|".join(sorted({name.split(".")[0] for name in settings() if "." in name} - {"config"}))
    pattern = re.compile(rf"(?<![\w./-])(?:--)?(?:config\.\w[\w.]*|(?:{groups})\.\w[\w.]*)")
    named = {name for code in inline_code(read(page)) for name in pattern.findall(code)}
    files = {name for name in named if name.endswith((".json", ".py", ".safetensors"))}
    assert {name for name in named - files if setting_of(name) not in settings() | PLACEHOLDERS} == set()


# --- paths, links, lengths


@ids
def test_links_and_anchors_exist(page):
    for target in links(read(page)):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(read(path)), target


@ids
def test_files_named_in_the_text_exist(page):
    text = read(page)
    tokens = {token for code in inline_code(text) for token in code.split()}
    tokens |= {token for command in commands(text) for token in command}
    for word in tokens:
        word = re.sub(r"^--config=", "", word).rstrip(",;")
        in_launch = page.parent.name == "launch" and re.fullmatch(r"[\w-]+/[\w.-]+\.(sh|py|yaml)", word)
        if (word.startswith(TOP) or in_launch) and not re.search(r"[*<>{}]|\.\.\.", word):
            assert (ROOT / word).exists() or (page.parent / word).exists(), word


@ids
def test_modules_named_in_the_text_exist(page):
    for name in re.findall(r"(?<![\w.])llava_jax(?!\.git)(?:\.\w+)+", read(page)):
        path, *rest = resolve(name.split("."))
        assert not rest or rest[0] in names_in(path), name


def resolve(parts: list[str]) -> list:
    """[the deepest module file, *remaining names]."""
    path = ROOT
    for i, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
        elif (path / f"{part}.py").is_file():
            return [path / f"{part}.py", *parts[i + 1 :]]
        else:
            return [path / "__init__.py", *parts[i:]]
    return [path / "__init__.py"]


def names_in(path: Path) -> set[str]:
    """Names that a module defines or imports; `llava_jax.load` is imported lazily."""
    names = {"load"} if path == PACKAGE / "__init__.py" else set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@ids
def test_pages_are_short(page):
    lines = read(page).splitlines()
    assert len(lines) <= LONGEST.get(page, 250)
    assert [line for line in lines if len(line) > 120 and (page == README or not line.startswith(("|", "stage")))] == []


@ids
def test_rows_of_a_table_have_equally_many_cells(page):
    for table in re.findall(r"(?:^\|.*\n)+", read(page), re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_images_are_small():
    images = [ROOT / target for target in links(read(README)) if target.endswith(".png")]
    assert images and all(image.stat().st_size < 300_000 for image in images)


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / target.split("#")[0]).resolve() for target in links(read(README))}
    assert set(PAGES) - {README} <= linked


# --- error messages


@functools.cache
def messages() -> str:
    """All strings of the package; formatted values are `...`."""
    texts = []
    for path in sorted([*PACKAGE.rglob("*.py")]):
        tree = ast.parse(read(path))
        inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
                texts.append(node.value)
    return "\n".join(texts)


FROM_JAX = {"RESOURCE_EXHAUSTED", "Out of memory", "The following tasks are unhealthy"}
FROM_JAX |= {"the leader task was preempted/died"}


def test_troubleshooting_quotes_messages_of_the_code():
    pages = sorted((ROOT / "docs").glob("troubleshooting*.md"))
    headings = [heading for page in pages for heading in re.findall(r"^### (.+)$", read(page), re.M)]
    texts = [text for heading in headings for text in re.findall("`([^`]+)`", heading)]
    assert len(texts) > 40
    missing = [t for t in texts if t not in FROM_JAX and not re.search(pattern_of(t), messages())]
    assert missing == []


def pattern_of(text: str) -> str:
    """A regular expression: `...` matches anything within one message."""
    return ".{0,60}?".join(re.escape(part.strip()) for part in text.split("...") if part.strip())


# --- tests of the checks


def test_prose_omits_code():
    text = "a `b`\n\n<!-- run -->\n```bash\nc --flag\n```\n\n    d --flag\n\ne\n"
    assert prose(text) == "a `b`\n\n\n\n\ne\n" and inline_code(text) == ["b"]
    assert commands(text) == [["c", "--flag"], ["d", "--flag"]]


def test_commands_are_split_like_a_shell():
    text = "```bash\necho 'a | b' | x --c > out  # not --this\ny \\\n    --d && z\n```\n"
    assert commands(text) == [["echo", "a | b"], ["x", "--c", ">", "out"], ["y", "--d"], ["z"]]


PLANTED = {
    "a flag": (test_flags_of_each_command_exist, "```bash\npython -m llava_jax chat x --imagge y\n```"),
    "a verb": (test_flags_of_each_command_exist, "```bash\npython -m llava_jax chatt x\n```"),
    "a script": (test_flags_of_each_command_exist, "```bash\npython launch/bench/nothing.py\n```"),
    "a flag in the text": (test_flags_in_the_text_exist, "use `--stalled_aftr`"),
    "a setting in the text": (test_settings_in_the_text_exist, "set `data.pathh`"),
    "a link": (test_links_and_anchors_exist, "[x](nothing.md)"),
    "an anchor": (test_links_and_anchors_exist, "[x](training.md#nothing)"),
    "a file": (test_files_named_in_the_text_exist, "see `llava_jax/nothing.py`"),
    "a module": (test_modules_named_in_the_text_exist, "`llava_jax.config.nothing`"),
    "a long page": (test_pages_are_short, "x\n" * 251),
    "a ragged table": (test_rows_of_a_table_have_equally_many_cells, "| a | b |\n|---|---|\n| c |\n"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_detected(fault, tmp_path):
    check, text = PLANTED[fault]
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "training.md", page.parent)
    with pytest.raises((AssertionError, FileNotFoundError)):
        check(page)
