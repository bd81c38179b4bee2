"""Text files are UTF-8 whatever the locale: every place that opens one says so."""

import ast

from tests.fixtures.package_source import parsed_modules

BINARY = set("bU")


def without_encoding(tree: ast.AST) -> list[int]:
    """Lines that open a text file, or read the text of a process, in the locale's encoding."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        is_path = isinstance(node.func, ast.Attribute)
        owner = node.func.value.id if is_path and isinstance(node.func.value, ast.Name) else ""
        if "encoding" in options:
            continue
        if "text" in options or "universal_newlines" in options:
            opens_text = owner == "subprocess"
        elif name in ("read_text", "write_text"):
            opens_text = is_path
        elif name == "open" and owner not in ("Image", "os", "webbrowser"):
            position = 0 if is_path else 1
            mode = node.args[position] if len(node.args) > position else options.get("mode", ast.Constant("r"))
            opens_text = isinstance(mode, ast.Constant) and not BINARY & set(str(mode.value))
        else:
            opens_text = False
        if opens_text:
            lines.append(node.lineno)
    return lines


def test_every_text_file_is_opened_as_utf8():
    modules = parsed_modules("llava_jax", "configs", "launch")
    assert {name: lines for name, tree in modules.items() if (lines := without_encoding(tree))} == {}


def test_opening_in_the_locale_is_detected():
    text = """
open(f)
open(f, "w")
path.open()
path.read_text()
path.write_text("x")
subprocess.run(command, text=True)
open(f, "rb"), open(f, encoding="utf-8"), path.open("ab"), path.write_text("x", encoding="utf-8")
Image.open(f), os.open(f, 0), os.fdopen(1)
"""
    assert without_encoding(ast.parse(text)) == [2, 3, 4, 5, 6, 7]
