"""The order of the modules: imports go downwards only, and each kind of thing has one home."""

import ast
import functools
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llava_jax"
# The longest name that fits decides. Within a rank, modules of one package may import each other, without cycles.
RANKS = {
    "llava_jax": 0, "llava_jax.errors": 0, "llava_jax.architectures": 0, "llava_jax.config": 0,
    "llava_jax.sharding": 1, "llava_jax.processes": 1, "llava_jax.data": 1, "llava_jax.progress": 1,
    "llava_jax.whole_file": 0, "llava_jax.compiler_options": 0, "llava_jax.command_line": 1, "llava_jax.chat_api": 1,
    "llava_jax.compile_cache": 1, "llava_jax.models": 2, "llava_jax.planning": 2,
    "llava_jax.checkpoint": 3, "llava_jax.generate": 3,
    "llava_jax.train": 4,
    "llava_jax.plan_step": 5, "llava_jax.plan_report": 6, "llava_jax.plan": 7,
    "llava_jax.loaded": 5, "llava_jax.loading": 5, "llava_jax.transformers_trace": 5,
    "llava_jax.evaluation": 6, "llava_jax.verify": 6, "llava_jax.terminal": 6,
    "llava_jax.convert": 7, "llava_jax.main": 7, "llava_jax.ckpt": 7, "llava_jax.data_build": 7,
    "llava_jax.eval_predict": 7, "llava_jax.eval_ask": 7,
    "llava_jax.data_cli": 8, "llava_jax.eval_cli": 8, "llava_jax.__main__": 9,
}  # fmt: skip
BEFORE_JAX = (  # they answer at once
    "llava_jax.main", "llava_jax.__main__", "llava_jax.command_line", "llava_jax.ckpt", "llava_jax.convert",
    "llava_jax.plan",
    "llava_jax.terminal", "llava_jax.data_build", "llava_jax.data_cli", "llava_jax.eval_cli", "llava_jax.eval_predict",
    "llava_jax.eval_ask",
)  # fmt: skip
THEIRS = "llava_jax.transformers_trace"  # the only one that computes with torch, to compare
RANK_0_MAY_USE = sys.stdlib_module_names | {"ml_collections", "llava_jax"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, module: str) -> set[str]:
    """Dotted names that a module imports anywhere in it, functions included; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rank(name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if ".".join(parts[:end]) in RANKS:
            return RANKS[".".join(parts[:end])]
    assert len(parts) == 1 or ".".join(parts[:2]) in modules(), f"{name} has no rank; add its package to RANKS"
    return RANKS["llava_jax"]


@functools.cache
def modules() -> dict[str, ast.AST]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in files}


def ours(tree: ast.AST, module: str, known) -> set[str]:
    """The modules of this project that a module imports; a name from a module counts as that module."""
    found = {name for name in imports(tree, module) if name.split(".")[0] == "llava_jax"}
    return {name if name in known else name.rsplit(".", 1)[0] for name in found}


def faults(trees: dict[str, ast.AST]) -> list[str]:
    """Every broken rule, in words."""
    found = []
    for module, tree in trees.items():
        package = module.rsplit(".", 1)[0]
        used = imports(tree, module)
        for other in ours(tree, module, trees):
            if other not in trees:
                found.append(f"{module} imports {other}, which does not exist")
            elif rank(other) > rank(module):
                found.append(f"{module} (rank {rank(module)}) imports {other} (rank {rank(other)})")
            elif rank(other) == rank(module) > 0 and not other.startswith(package):
                found.append(f"{module} imports {other}, its neighbour of the same rank")
        outside = {name.split(".")[0] for name in used}
        if module.startswith("llava_jax.data") and outside & {"jax", "flax", "optax", "orbax"}:
            found.append(f"{module} imports {outside & {'jax', 'flax', 'optax', 'orbax'}}: data is numpy only")
        if rank(module) == 0 and outside - RANK_0_MAY_USE:
            found.append(f"{module} (rank 0) imports {outside - RANK_0_MAY_USE}")
        if module in BEFORE_JAX:
            early = {name for name in top_level(tree) if not name.startswith("llava_jax.") or rank(name) > 1}
            early = {name for name in early if name.split(".")[0] in ("jax", "llava_jax")} - set(BEFORE_JAX)
            early = {name for name in early if name.rsplit(".", 1)[0] not in BEFORE_JAX}
            if early:
                found.append(f"{module} imports {early} before the command line is read")
        if any(name.startswith("jax._src") for name in used) or "._src" in ast.unparse(tree):
            found.append(f"{module} reaches into a library's _src")
        if outside & {"torch", "transformers", "tensorflow"} and module != THEIRS:
            found.append(f"{module} imports {outside & {'torch', 'transformers', 'tensorflow'}}")
        if module.split(".")[-1] in ("utils", "util", "helpers", "common", "misc"):
            found.append(f"{module}: a name that says nothing")
        for node in ast.walk(tree):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(base.split(".")[-1] == "Module" for base in bases) and not module.startswith("llava_jax.models"):
                found.append(f"{module}: {node.name} is a Module outside models/")
    return found


def top_level(tree: ast.Module) -> set[str]:
    """What is imported as soon as the module is, by itself or by what it imports of ours (rank 0, see above)."""
    return imports(ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], []), "")


def test_imports_go_downwards_and_each_kind_of_thing_has_one_home():
    assert faults(modules()) == []


def test_no_imports_in_a_circle():
    trees = modules()
    graph = {module: ours(tree, module, trees) - {module} for module, tree in trees.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(trees)  # CycleError names the circle


def test_every_package_has_a_rank():
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" and path.stem != "__init__" or (path / "__init__.py").exists():
            assert f"llava_jax.{path.stem}" in RANKS


BROKEN = {
    "upwards": ("llava_jax.models.clip", "from llava_jax.train import step"),
    "upwards, inside a function": ("llava_jax.config", "def f():\n    from llava_jax.sharding import make_mesh"),
    "upwards, as a package": ("llava_jax.sharding", "import llava_jax.train.loop"),
    "sideways": ("llava_jax.generate.decode", "from llava_jax.checkpoint.store import Store"),
    "sharding in data": ("llava_jax.data.images", "from llava_jax.sharding import make_mesh"),
    "jax in data": ("llava_jax.data.images", "import jax.numpy as jnp"),
    "numpy in rank 0": ("llava_jax.config", "import numpy"),
    "jax in main": ("llava_jax.main", "import jax"),
    "jax in a verb, through ours": ("llava_jax.convert", "from llava_jax.loading import load"),
    "_src": ("llava_jax.sharding", "from jax._src import mesh"),
    "_src by attribute": ("llava_jax.sharding", "import jax\nm = jax._src.mesh"),
    "torch": ("llava_jax.checkpoint.weights", "import torch"),
    "utils": ("llava_jax.train.utils", ""),
    "a module outside models": ("llava_jax.train.step", "class Head(nn.Module): pass"),
    "a module that is not there": ("llava_jax.train.step", "from llava_jax.gone import x"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name):
    module, text = BROKEN[name]
    planted = faults(modules() | {module: ast.parse(text)})
    assert [fault for fault in planted if fault.startswith(module)], planted
