"""Size limits: files, functions, the code that training needs, rooms and floors.

`pytest tests/test_sizes.py -s -n 0` prints the numbers.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.fixtures.package_source import ROOT, module_name, own_imports, parsed_modules, room

PACKAGE = ROOT / "llava_jax"
FILE_LINES, FUNCTION_LINES = 350, 80
TRAINING, TRAINING_LINES = ("config", "runtime", "models", "train", "inference"), 5_000
ROOMS, FLOORS = 23, 8


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def function_lines() -> dict[str, int]:
    """Dotted name of every function and method of the package, inner ones included -> its lines."""
    return {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, tree in parsed_modules("llava_jax").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def room_imports() -> dict[str, set[str]]:
    """Room -> the rooms it imports. A room is a folder or a file of the package's root; configs and launch are two."""
    modules = parsed_modules("llava_jax", "configs", "launch")
    graph = {room(module): set() for module in modules}
    for module, tree in modules.items():
        graph[room(module)] |= {room(other) for other in own_imports(tree, module, modules)} - {room(module)}
    return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> rooms in the longest chain of imports that begins with it, itself included. CycleError for a circle."""
    height = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[other] for other in graph[name]), default=0)
    return height


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    height = floors(graph)
    chain = [max(height, key=height.get)]
    while graph[chain[-1]]:
        chain.append(max(sorted(graph[chain[-1]]), key=height.get))
    return chain


def test_no_file_is_too_long():
    sizes = {str(file.relative_to(ROOT)): lines(file) for file in PACKAGE.rglob("*.py")}
    longest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    print(f"\npackage         {sum(sizes.values()):,} lines in {len(sizes)} files")
    print("longest files   " + ", ".join(f"{name} {count}" for name, count in longest))
    assert {name: count for name, count in sizes.items() if count > FILE_LINES} == {}


def test_no_function_is_too_long():
    sizes = function_lines()
    longest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    print("\nlongest functions " + ", ".join(f"{name} {count}" for name, count in longest))
    assert {name: n for name, n in sizes.items() if n > FUNCTION_LINES} == {}


def reached_from(start: str) -> set[str]:
    """The modules of a room and all that they import, directly or not."""
    modules = parsed_modules("llava_jax")
    reached, unread = set(), {module for module in modules if room(module) == start}
    while unread:
        module = unread.pop()
        reached.add(module)
        unread |= own_imports(modules[module], module, modules) & modules.keys() - reached
    return reached


def test_training_code_stays_small():
    """In the rooms of TRAINING, what training does not import is not counted: the slots of a server, for example."""
    reached = reached_from("train")
    files = {name: [f for f in (PACKAGE / name).rglob("*.py") if module_name(f) in reached] for name in TRAINING}
    sizes = {name: sum(map(lines, files[name])) for name in TRAINING}
    total = sum(sizes.values())
    print(f"\ntraining        {total:,} lines: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()))
    assert total <= TRAINING_LINES


def test_room_and_floor_counts_stay_small():
    graph = room_imports()
    chain = longest_chain(graph)
    print(f"\nrooms           {len(graph)}: {' '.join(sorted(graph))}")
    print(f"floors          {len(chain)}: {' > '.join(chain)}")
    assert len(graph) <= ROOMS
    assert len(chain) <= FLOORS


def test_floors_are_the_longest_chain():
    graph = {"cli": {"train", "errors"}, "train": {"models"}, "models": {"errors"}, "errors": set()}
    assert floors(graph)["cli"] == 4 and longest_chain(graph) == ["cli", "train", "models", "errors"]
