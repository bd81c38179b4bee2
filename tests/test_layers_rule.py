"""Import rules: packages import only from lower ranks, and libraries are used only where allowed."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest

from tests.fixtures.package_source import ROOT, imports, own_imports, parsed_modules, room

PACKAGE = ROOT / "llava_jax"
# Rooms by rank: a module imports from its own room and from rooms of a lower rank.
RANKS = {
    "llava_jax": 0, "errors": 0,
    "config": 1, "output": 1,
    "runtime": 2, "llm_client": 2,
    "text": 3, "images": 3, "models": 3,
    "data": 4, "checkpoint": 4, "inference": 4,
    "train": 5, "api": 5, "datagen": 5,
    "planning": 6, "evaluation": 6, "serve": 6,
    "cli": 7,
    "main": 8, "__main__": 8,
}  # fmt: skip
NO_JAX = ("config", "text", "images", "data", "output", "llm_client", "datagen")
# Names that may be defined in several modules, and why; at most 8.
SEVERAL_MEANINGS = {
    "main": "the usual name of the function that a program starts with",
}
BEFORE_JAX = ("main", "__main__", "cli")  # --help must start fast
THEIRS = "llava_jax.api.parity_transformers"  # the only module that uses torch, for comparison


def modules() -> dict[str, ast.AST]:
    return parsed_modules("llava_jax")


def faults(trees: dict[str, ast.AST]) -> list[str]:
    """Returns a message per violation."""
    violations = []
    for module, tree in trees.items():
        used = imports(tree, module)
        for other in own_imports(tree, module, trees):
            if other not in trees:
                violations.append(f"{module} imports {other}, which does not exist")
            elif room(other) != room(module) and RANKS[room(other)] >= RANKS[room(module)] > 0:
                violations.append(f"{module} (rank {RANKS[room(module)]}) imports {other} (rank {RANKS[room(other)]})")
        outside = {name.split(".")[0] for name in used}
        if room(module) in NO_JAX and outside & {"jax", "flax", "optax", "orbax"}:
            violations.append(f"{module} imports {outside & {'jax', 'flax', 'optax', 'orbax'}}")
        if room(module) in BEFORE_JAX and "jax" in {name.split(".")[0] for name in loaded_with(module, trees)}:
            violations.append(f"{module} imports jax before the command line is read")
        if any(name.startswith("jax._src") for name in used) or "._src" in ast.unparse(tree):
            violations.append(f"{module} reaches into a library's _src")
        if outside & {"torch", "transformers", "tensorflow"} and module != THEIRS:
            violations.append(f"{module} imports {outside & {'torch', 'transformers', 'tensorflow'}}")
        if module.split(".")[-1] in ("utils", "util", "helpers", "common", "misc"):
            violations.append(f"{module}: the name is not specific")
        for node in ast.walk(tree):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(base.split(".")[-1] == "Module" for base in bases) and not module.startswith("llava_jax.models"):
                violations.append(f"{module}: {node.name} is a Module outside models/")
    return violations


def loaded_with(module: str, trees: dict[str, ast.AST]) -> set[str]:
    """All imports that importing the module triggers, directly or through modules of the package."""
    names, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        used = imports(ast.Module([n for n in trees[name].body if isinstance(n, ast.Import | ast.ImportFrom)], []), "")
        modules_of_ours = {n if n in trees else n.rsplit(".", 1)[0] for n in used if n.split(".")[0] == "llava_jax"}
        waiting += sorted((modules_of_ours & set(trees)) - names)
        names |= used | modules_of_ours
    return names


def test_imports_follow_the_ranks_and_library_rules():
    assert faults(modules()) == []


def test_no_circular_imports():
    trees = modules()
    graph = {module: own_imports(tree, module, trees) - {module} for module, tree in trees.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(trees)  # CycleError names the cycle


def test_every_room_has_a_rank():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == set(RANKS) - {"llava_jax"}


BROKEN = {
    "upwards": ("llava_jax.models.clip", "from llava_jax.train import step"),
    "upwards, inside a function": ("llava_jax.config", "def f():\n    from llava_jax.runtime import sharding"),
    "upwards, as a package": ("llava_jax.runtime.sharding", "import llava_jax.train.loop"),
    "sideways": ("llava_jax.inference.decode", "from llava_jax.checkpoint.native.store import Store"),
    "sharding in data": ("llava_jax.images.preprocess", "import jax"),
    "jax in data": ("llava_jax.data.rows", "import jax.numpy as jnp"),
    "jax in main": ("llava_jax.main", "import jax"),
    "jax in a verb, through ours": ("llava_jax.cli.convert", "from llava_jax.api.load import load"),
    "api uses train": ("llava_jax.api.parity", "from llava_jax.train.loop import train"),
    "_src": ("llava_jax.runtime.sharding", "from jax._src import mesh"),
    "_src by attribute": ("llava_jax.runtime.sharding", "import jax\nm = jax._src.mesh"),
    "torch": ("llava_jax.checkpoint.module_file", "import torch"),
    "utils": ("llava_jax.train.utils", ""),
    "a module outside models": ("llava_jax.train.step", "class Head(nn.Module): pass"),
    "a module that is not there": ("llava_jax.train.step", "from llava_jax.gone import x"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_detected(name):
    module, text = BROKEN[name]
    planted = faults(modules() | {module: ast.parse(text)})
    assert [fault for fault in planted if fault.startswith(module)], planted


def definitions(trees: dict[str, ast.AST]) -> dict[str, list[str]]:
    """Public class or function name -> the modules that define it at their top level."""
    homes = defaultdict(list)
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes[node.name].append(module)
    return homes


def test_public_names_are_unique():
    several = {name: homes for name, homes in definitions(modules()).items() if len(homes) > 1}
    print("\n" + "\n".join(f"{name}: {', '.join(homes)}" for name, homes in sorted(several.items())))
    assert len(SEVERAL_MEANINGS) <= 8 and SEVERAL_MEANINGS.keys() <= several.keys()
    assert several.keys() - SEVERAL_MEANINGS.keys() == set()


def test_a_duplicate_public_name_is_detected():
    again = {"llava_jax.data.again": ast.parse("class LlavaModel: pass\ndef _private(): pass\nx = 1")}
    first = {"llava_jax.api.first": ast.parse("def LlavaModel(): pass\ndef _private(): pass\nx = 1")}
    homes = definitions(first | again)
    assert homes == {"LlavaModel": ["llava_jax.api.first", "llava_jax.data.again"]}
