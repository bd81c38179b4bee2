"""decode.py on a TPU, compiled without one: what a token costs must not grow with a copy of the cache.

The shapes are those of a 7B model, but for its number of layers: of small arrays the compiler keeps copies in fast
memory, and brings them back.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("tpu_decode.py")
STAYS = {"parameter", "get-tuple-element", "bitcast", "dynamic-update-slice"}


@pytest.fixture(scope="module", params=[(8, 32), (1, 32), (8, 8)], ids=["b8", "b1", "b8-grouped"])
def compiled(request, tmp_path_factory):
    """({loop, single} -> the optimised program's text, what memory.json says)."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is missing: pip install 'jax[tpu]' (it needs no TPU)")
    folder = tmp_path_factory.mktemp("tpu")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, request.param)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {f.stem: f.read_text() for f in folder.glob("*.txt")}, json.loads((folder / "memory.json").read_text())


def moved(program: str, shape: list[int]) -> list[str]:
    """Instructions that make an array of as many numbers as `shape`, other than in place."""
    found = []
    for line in program.splitlines():
        made = re.match(r" *(?:ROOT )?%?[\w.-]+ = \(?\w+\[([\d,]+)\]\S* (?:.*\) )?([\w-]+)\(", line)
        if not made or math.prod(map(int, made[1].split(","))) != math.prod(shape):
            continue
        if made[2] == "fusion":
            body = _body(program, re.search(r"calls=%([\w.-]+)", line)[1])
            root = re.search(r"^ *ROOT .* ([\w-]+)\(", body, re.M)[1]
            in_place = root in ("bitcast", "dynamic-update-slice")
        else:
            in_place = made[2] in STAYS | {"tuple", "while"}
        if not in_place:
            found.append(line.strip()[:120])
    return found


def _body(program: str, name: str) -> str:
    return re.search(rf"^%{re.escape(name)} .*?^}}", program, re.M | re.S)[0]


@pytest.mark.parametrize("kind", ["loop", "single"])
def test_a_token_writes_one_slot_of_the_cache_and_copies_none_of_it(compiled, kind):
    programs, memory = compiled
    cache, layers = memory["cache"], memory["layers"]
    size = 2 * math.prod(cache)  # bytes of one layer's keys
    written = re.findall(rf"bf16\[{','.join(map(str, cache))}\]\S* dynamic-update-slice\(", programs[kind])
    assert len(written) == 2 * layers, "every layer's keys and values are written once"
    assert moved(programs[kind], cache) == []
    assert memory[kind]["reused"] >= 2 * layers * size, "the cache that comes out is the one that went in"


def test_a_copy_would_be_found():
    program = """
%bitcast_fusion.1 (x: bf16[2,3]) -> bf16[2,3] {
  ROOT %bitcast.1 = bf16[2,3]{1,0:T(8,128)} bitcast(%x)
}
%fused (x: bf16[2,3]) -> bf16[3,2] {
  ROOT %transpose.1 = bf16[3,2]{1,0} transpose(%x)
}
ENTRY %main (x: bf16[2,3]) -> bf16[2,3] {
  %fusion.1 = bf16[2,3]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%bitcast_fusion.1
  %fusion.2 = bf16[3,2]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused
  %copy-start.1 = (bf16[2,3]{1,0:T(8,128)S(1)}, bf16[2,3]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  ROOT %copy.1 = bf16[2,3]{0,1:T(8,128)} copy(%x), metadata={op_name="jit(decode)/while/body/x"}
}
"""
    found = [line.split(" = ")[0] for line in moved(program, [2, 3])]
    assert found == ["ROOT %transpose.1", "%fusion.2", "%copy-start.1", "ROOT %copy.1"]
