"""The estimated seconds of a compiled program, and what `lint` detects in it."""

import pytest

from llava_jax.planning.estimate import estimate
from llava_jax.planning.hlo.parse import Array, parse_program
from llava_jax.planning.lint import float32_gathers, has_windowed_einsum, largest_square, not_aliased, reductions
from llava_jax.planning.topologies import parse_topology as topology
from tests.planning.saved_programs import MIB, coords, program

SMALL, V5E = topology("v5e:2x2"), topology("v5e:4x4")


def estimate_saved(name: str, slice_):
    return estimate(program(name), slice_, [list(coord) for coord in coords(slice_)])  # lists, as in JAX


def test_matmul_takes_slightly_longer_than_at_peak():
    result = estimate_saved("matmul", SMALL)
    ideal = 2 * 2048 * 4096 * 4096 / 197e12
    assert 1 <= result.matmul / ideal < 1.1
    assert result.lower == result.upper == result.compute and result.other == result.attention == result.exposed == 0
    assert result.mfu(4 * 2 * 2048 * 4096 * 4096, SMALL) == pytest.approx((ideal / result.matmul,) * 2)


def test_thirty_matmuls_take_thirty_times_as_long():
    result = estimate_saved("loops", SMALL)
    assert 30 < result.matmul / (2 * 1024**3 / 197e12) < 1.4 * 30  # with a tanh each


def test_sync_gathers_are_exposed_and_async_gathers_hidden():
    result = estimate_saved("gathers", V5E)
    gathered = 4 * 32 * MIB
    assert result.traffic["all-gather", "sync", "bf16"] == result.traffic["all-gather", "async", "bf16"] == gathered
    seconds = gathered * 15 / 16 / (2 * 45e9)
    assert result.hidden == pytest.approx(seconds) and result.exposed == pytest.approx(seconds, rel=1e-3)
    assert result.upper - result.lower == pytest.approx(result.hidden)
    assert result.lower == pytest.approx(result.matmul + result.other + result.exposed)


def test_attention_kernels_run_at_half_the_peak():
    result = estimate_saved("attention", SMALL)
    flops = 7 * 2 * (2 * 8) * 1024 * 1024 * 256 / 2
    assert result.attention == pytest.approx(flops / (0.5 * 197e12))
    assert result.hardware_flops == flops


def test_memory_bandwidth_bounds_the_time():
    result = estimate_saved("offload", SMALL)
    assert result.memory == pytest.approx(result.hbm_bytes / 819e9) and result.host_bytes == 64 * MIB
    text = """HloModule m
ENTRY %main (x: f32[1048576]) -> f32[1048576] {
  %x = f32[1048576]{0} parameter(0)
  ROOT %y = f32[1048576]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"15"}}
}
"""
    bound = estimate(text, SMALL, coords(SMALL))
    assert bound.compute == pytest.approx(1e-8)
    assert bound.lower == bound.upper == pytest.approx(8 * MIB / 819e9)


def test_assumptions_list_only_what_the_program_uses():
    names = "gathers", "attention", "offload", "matmul"
    lines = {name: "\n".join(estimate_saved(name, V5E).assumptions) for name in names}
    assert {name for name in lines if "links: 45 GB/s each way, without wrap-around" in lines[name]} == {"gathers"}
    assert {name for name in lines if "asynchronous" in lines[name]} == {"gathers"}
    assert {name for name in lines if "50% of the peak" in lines[name]} == {"attention"}
    assert {name for name in lines if "to and from the host count as 0 s" in lines[name]} == {"offload"}
    assert all("1.5 GHz" in text and "819 GB/s" in text for text in lines.values())


def test_unknown_kernels_and_endless_loops_are_listed():
    text = """HloModule m
%body (p: (s32[])) -> (s32[]) {
  ROOT %p = (s32[]) parameter(0)
}
%until (p: (s32[])) -> pred[] {
  %q = (s32[]) parameter(0)
  ROOT %stop = pred[] constant(false)
}
ENTRY %main (x: (s32[])) -> (s32[]) {
  %x = (s32[]) parameter(0)
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %w = (s32[]) while(%x), condition=%until, body=%body
}
"""
    lines = "\n".join(estimate(text, SMALL, coords(SMALL)).assumptions)
    assert "count as 0 s: k x 1" in lines and "count once: w" in lines


# ------------------------------------------------------------------------------------------------------- lint


def test_float32_gathers_and_windowed_einsums_are_detected():
    saved = program("gathers")
    assert float32_gathers(saved) == [] and not has_windowed_einsum(saved)
    text = """HloModule m
%windowed_dot_general_body (y: f32[8]) -> f32[8] {
  ROOT %y = f32[8] parameter(0)
}
ENTRY %main (x: f32[512,1024]) -> f32[1024,1024] {
  %x = f32[512,1024]{1,0} parameter(0)
  ROOT %g = f32[1024,1024]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}
"""
    (gather,) = float32_gathers(parse_program(text))
    assert gather.payload[0].shape == (1024, 1024) and has_windowed_einsum(parse_program(text))


def test_reductions_list_kinds_and_shapes():
    kinds_and_shapes = {(c.kind, c.payload[0].shape) for c in reductions(program("collectives"))}
    assert kinds_and_shapes == {("all-reduce", (1024, 1024)), ("reduce-scatter", (528, 2048, 4))}


def test_not_aliased_names_inputs_that_are_not_donated():
    assert not_aliased(program("matmul")) == {"b": Array("bf16", (4096, 4096), 0)}
    assert not_aliased(program("offload")).keys() == {"w['up']", "w['down']", "x"}


def test_largest_square_finds_scores_but_none_with_a_kernel():
    assert largest_square(program("attention"), 1024) is None
    assert largest_square(program("loops"), 1024) == Array("bf16", (1024, 1024), 0)
