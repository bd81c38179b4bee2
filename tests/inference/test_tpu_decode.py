"""Decoding compiled for a TPU that is not present: a step must not copy the cache.

The shapes are those of a 7B model, except for its layers and its vocabulary: the compiler keeps copies of small arrays
in fast memory, and moves them back.
"""

import json
import math
import re
from pathlib import Path

import pytest

from tests.fixtures.once import make_once, run_tpu_compiler

SCRIPT = Path(__file__).with_name("tpu_decode.py")
IN_PLACE = {"parameter", "get-tuple-element", "bitcast", "dynamic-update-slice"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """A folder with the text and the memory use of each program."""
    return make_once(tmp_path_factory, "tpu_decode", lambda folder: run_tpu_compiler(SCRIPT, folder))


def moved(program: str, shape: list[int]) -> list[str]:
    """Instructions that make an array with as many elements as `shape`, other than in place."""
    copies = []
    for line in program.splitlines():
        match = re.match(r" *(?:ROOT )?%?[\w.-]+ = \(?\w+\[([\d,]+)\]\S* (?:.*\) )?([\w-]+)\(", line)
        if not match or math.prod(map(int, match[1].split(","))) != math.prod(shape):
            continue
        if match[2] == "fusion":
            body = _body(program, re.search(r"calls=%([\w.-]+)", line)[1])
            root = re.search(r"^ *ROOT .* ([\w-]+)\(", body, re.M)[1]
            in_place = root in ("bitcast", "dynamic-update-slice")
        else:
            in_place = match[2] in IN_PLACE | {"tuple", "while"}
        if not in_place:
            copies.append(line.strip()[:120])
    return copies


def _body(program: str, name: str) -> str:
    return re.search(rf"^%{re.escape(name)} .*?^}}", program, re.M | re.S)[0]


# A batch runs the loop, a server single steps, which write the rows one by one, and a part of a prompt beside them.
@pytest.mark.parametrize("name", ["loop-8-32", "loop-8-8", "slots-8-32", "part-8-32"])
def test_decode_step_writes_one_slot_and_copies_no_cache(programs, name):
    check(name, (programs / f"{name}.txt").read_text(), json.loads((programs / f"{name}.json").read_text()))


def check(name: str, program: str, memory: dict) -> None:
    cache, layers = memory["cache"], memory["layers"]
    assert moved(program, cache) == []
    written = re.findall(rf"bf16\[{','.join(map(str, cache))}\]\S* dynamic-update-slice\(", program)
    writes = {"loop": 1, "slots": cache[0], "part": cache[0] + 1}[name.split("-")[0]]
    assert len(written) == 2 * layers * writes, "keys and values of every layer are written once"
    size = 2 * math.prod(cache)  # bytes of one layer's keys
    assert memory["reused"] >= 2 * layers * size, "the output cache aliases the input cache"


def test_moved_detects_copies():
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
    copies = [line.split(" = ")[0] for line in moved(program, [2, 3])]
    assert copies == ["ROOT %transpose.1", "%fusion.2", "%copy-start.1", "ROOT %copy.1"]
