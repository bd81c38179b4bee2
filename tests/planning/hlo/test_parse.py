"""Parsing the text of a compiled program, and how often each instruction runs."""

import pytest

from llava_jax.planning.hlo.parse import HBM, HOST, Array, arrays, parse_program, trip_count
from tests.planning.saved_programs import program


def loops_of(program) -> dict[str, tuple[int | None, int]]:
    """Loop -> (its trip count, how often the loop itself runs)."""
    walked = [(c, i, times) for c, i, times in program.walk() if i.opcode == "while"]
    return {i.name: (trip_count(program, c, i), times) for c, i, times in walked}


def test_nested_loop_trip_counts_multiply():
    saved = program("loops")
    assert sorted(loops_of(saved).values()) == [(3, 10), (10, 1)]
    times = [n for _, i, n in saved.walk() if "convolution" in i.name]
    assert times == [30]


def test_array_types_have_bytes_and_memory_space():
    text = "(bf16[4,256]{1,0:T(8,128)(2,1)S(1)}, f32[], s8[3]{0:T(128)S(5)}, u4[3], pred[7]{0}, c64[2])"
    parsed = arrays(text)
    assert [a.bytes for a in parsed] == [2048, 4, 3, 2, 7, 16]
    assert [a.space for a in parsed] == [1, HBM, HOST, HBM, HBM, HBM]
    assert parsed[0] == Array("bf16", (4, 256), 1)


LOOP = """HloModule m, entry_computation_layout={()->s32[]}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %copied = s32[]{:S(6)} copy(%i)
  %step = s32[] constant(STEP)
  %next = s32[] add(%copied, %step)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  ROOT %both = (s32[], f32[8]{0}) tuple(%next, %x)
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] constant(END)
  ROOT %less = pred[] compare(%i.1, %end), direction=DIRECTION
}
ENTRY %main () -> s32[] {
  %zero = s32[] constant(BEGIN)
  %begin = s32[] copy(%zero)
  %x.1 = f32[8]{0} broadcast(%zero), dimensions={}
  %start = (s32[], f32[8]{0}) tuple(%begin, %x.1)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body NOTE
  ROOT %last = s32[] get-tuple-element(%loop), index=0
}
"""


@pytest.mark.parametrize(
    ("begin", "end", "step", "direction", "backend_config", "times"),
    [
        (0, 4, 1, "LT", "", 4),
        (1, 4, 1, "LT", "", 3),  # its first iteration was peeled
        (0, 4, 1, "LE", "", 5),
        (0, 7, 2, "LT", "", 4),
        (4, 4, 1, "LT", "", 0),
        (0, 4, 1, "NE", "", None),
        (0, 4, 1, "NE", ', backend_config={"known_trip_count":{"n":"6"}}', 6),
    ],
)
def test_trip_count_is_read_from_counter_and_bound(begin, end, step, direction, backend_config, times):
    text = LOOP.replace("BEGIN", str(begin)).replace("END", str(end)).replace("STEP", str(step))
    parsed = parse_program(text.replace("DIRECTION", direction).replace("NOTE", backend_config))
    assert loops_of(parsed) == {"loop": (times, 1)}


def test_longest_branch_is_followed_and_strings_may_span_lines():
    parsed = parse_program("""HloModule m
%short (a: f32[]) -> f32[] {
  ROOT %a = f32[] parameter(0)
}
%long (b: f32[]) -> f32[] {
  %b = f32[] parameter(0)
  ROOT %c = f32[] negate(%b), backend_config={"window_config":{"estimated_cycles":"70"}}
}
ENTRY %main (p: s32[], x: f32[]) -> f32[] {
  %p = s32[] parameter(0)
  %x = f32[] parameter(1), metadata={op_name="state[\\'w\\']"}
  %k = f32[] custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"note":"%y = f32[] add(%x, %x)"
}}, backend_config={"estimated_cycles":"5"}
  ROOT %d = f32[] conditional(%p, %k, %x), branch_computations={%short, %long}
}
""")
    assert sum(i.cycles * times for _, i, times in parsed.walk()) == 75
    assert parsed.parameters()[1].op_name == "state['w']"
    assert parsed.computations["main"].keys() == {"p", "x", "k", "d"}


@pytest.mark.parametrize("text", ["", "not a program", "HloModule m\n"])
def test_text_that_is_no_hlo_raises(text):
    with pytest.raises(ValueError):
        parse_program(text)
