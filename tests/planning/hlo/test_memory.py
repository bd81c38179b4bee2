"""Bytes that a program moves to and from memory and the host."""

from llava_jax.planning.hlo.memory import moved
from llava_jax.planning.hlo.parse import parse_program
from tests.planning.saved_programs import MIB, program


def in_mib(name: str) -> tuple[float, float]:
    hbm, host = moved(program(name))
    return round(hbm / MIB, 1), round(host / MIB, 1)


def test_matmul_reads_both_operands_and_writes_the_result():
    assert in_mib("matmul") == (2 * 16 + 32, 0)


def test_vector_memory_traffic_is_free():
    """30 matmuls of arrays of 2 MiB: two are fetched and one is written back."""
    assert in_mib("loops") == (6, 0)


def test_offloaded_activations_travel_to_the_host_and_back():
    assert in_mib("offload")[1] == 2 * 4 * 8  # four layers' inputs, bfloat16 [2, 1024, 2048]


def test_slice_traffic_counts_only_the_slice():
    text = """HloModule m
%slices (stack: bf16[32,1024,1024], i: s32[]) -> bf16[1,1024,1024] {
  %stack = bf16[32,1024,1024]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = bf16[1,1024,1024]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,1024,1024}
}
%writes (stack.1: bf16[32,1024,1024], new: bf16[1,1024,1024], i.1: s32[]) -> bf16[32,1024,1024] {
  %stack.1 = bf16[32,1024,1024]{2,1,0} parameter(0)
  %new = bf16[1,1024,1024]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %all = bf16[32,1024,1024]{2,1,0} dynamic-update-slice(%stack.1, %new, %i.1, %i.1, %i.1)
}
ENTRY %main (x: bf16[32,1024,1024], n: s32[]) -> bf16[32,1024,1024] {
  %x = bf16[32,1024,1024]{2,1,0} parameter(0)
  %n = s32[]{:S(6)} parameter(1)
  %layer = bf16[1,1024,1024]{2,1,0} fusion(%x, %n), kind=kLoop, calls=%slices
  ROOT %y = bf16[32,1024,1024]{2,1,0} fusion(%x, %layer, %n), kind=kLoop, calls=%writes
}
"""
    assert moved(parse_program(text)) == (4 * 2 * MIB, 0)


def test_slice_in_nested_fusions_counts_only_the_slice():
    """This is how a matmul reads its layer's weights from the stack."""
    text = """HloModule m
%takes (stack: bf16[32,1024,1024], i: s32[]) -> bf16[1,1024,1024] {
  %stack = bf16[32,1024,1024]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = bf16[1,1024,1024]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,1024,1024}
}
%product (x: bf16[1,1024,1024], stack.1: bf16[32,1024,1024], i.1: s32[]) -> bf16[1,1024,1024] {
  %x = bf16[1,1024,1024]{2,1,0} parameter(0)
  %stack.1 = bf16[32,1024,1024]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %w = bf16[1,1024,1024]{2,1,0} fusion(%stack.1, %i.1), kind=kLoop, calls=%takes
  ROOT %y = bf16[1,1024,1024]{2,1,0} multiply(%x, %w)
}
ENTRY %main (a: bf16[1,1024,1024], b: bf16[32,1024,1024], n: s32[]) -> bf16[1,1024,1024] {
  %a = bf16[1,1024,1024]{2,1,0} parameter(0)
  %b = bf16[32,1024,1024]{2,1,0} parameter(1)
  %n = s32[]{:S(6)} parameter(2)
  ROOT %y.1 = bf16[1,1024,1024]{2,1,0} fusion(%a, %b, %n), kind=kOutput, calls=%product
}
"""
    assert moved(parse_program(text)) == (3 * 2 * MIB, 0)


def test_loop_traffic_counts_every_iteration():
    text = """HloModule m
%body (p: (f32[1024])) -> (f32[1024]) {
  %p = (f32[1024]{0}) parameter(0)
  %x = f32[1024]{0} get-tuple-element(%p), index=0
  %y = f32[1024]{0} negate(%x)
  ROOT %t = (f32[1024]{0}) tuple(%y)
}
%more (p: (f32[1024])) -> pred[] {
  %q = (f32[1024]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}
ENTRY %main (x: (f32[1024])) -> (f32[1024]) {
  %a = (f32[1024]{0}) parameter(0)
  ROOT %w = (f32[1024]{0}) while(%a), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""
    assert moved(parse_program(text)) == (5 * 2 * 4096, 0)
