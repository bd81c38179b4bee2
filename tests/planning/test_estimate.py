"""Seconds of a compiled program, and what it has and has not."""

import pytest

from llava_jax.planning.estimate import estimate
from llava_jax.planning.hlo.parse import Array, parse_program
from llava_jax.planning.lint import float32_gathers, has_windowed_einsum, largest_square, not_aliased, reductions
from llava_jax.planning.topologies import parse_topology as topology
from tests.planning.known import MIB, places, program

SMALL, V5E = topology("v5e:2x2"), topology("v5e:4x4")


def estimated(name: str, slice_):
    return estimate(program(name), slice_, [list(place) for place in places(slice_)])  # lists, as JAX has them


def test_a_product_takes_a_little_longer_than_at_the_peak():
    one = estimated("matmul", SMALL)
    ideal = 2 * 2048 * 4096 * 4096 / 197e12
    assert 1 <= one.matmul / ideal < 1.1
    assert one.lower == one.upper == one.compute and one.other == one.attention == one.exposed == 0
    assert one.mfu(4 * 2 * 2048 * 4096 * 4096, SMALL) == pytest.approx((ideal / one.matmul,) * 2)


def test_thirty_products_take_thirty_times_as_long():
    one = estimated("loops", SMALL)
    assert 30 < one.matmul / (2 * 1024**3 / 197e12) < 1.4 * 30  # with a tanh each


def test_synchronous_gathers_are_waited_for_and_asynchronous_ones_may_be():
    one = estimated("gathers", V5E)
    gathered = 4 * 32 * MIB
    assert one.traffic["all-gather", "sync", "bf16"] == one.traffic["all-gather", "async", "bf16"] == gathered
    seconds = gathered * 15 / 16 / (2 * 45e9)
    assert one.hidden == pytest.approx(seconds) and one.exposed == pytest.approx(seconds, rel=1e-3)
    assert one.upper - one.lower == pytest.approx(one.hidden)
    assert one.lower == pytest.approx(one.matmul + one.other + one.exposed)


def test_attention_runs_at_half_the_peak_and_counts_as_work():
    one = estimated("attention", SMALL)
    flops = 7 * 2 * (2 * 8) * 1024 * 1024 * 256 / 2
    assert one.attention == pytest.approx(flops / (0.5 * 197e12))
    assert one.hardware_flops == flops


def test_no_program_is_faster_than_its_memory():
    one = estimated("offload", SMALL)
    assert one.memory == pytest.approx(one.hbm_bytes / 819e9) and one.host_bytes == 64 * MIB
    text = """HloModule m
ENTRY %main (x: f32[1048576]) -> f32[1048576] {
  %x = f32[1048576]{0} parameter(0)
  ROOT %y = f32[1048576]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"15"}}
}
"""
    bound = estimate(text, SMALL, places(SMALL))
    assert bound.compute == pytest.approx(1e-8)
    assert bound.lower == bound.upper == pytest.approx(8 * MIB / 819e9)


def test_assumptions_name_what_concerns_this_program_only():
    of = {name: "\n".join(estimated(name, V5E).assumptions) for name in ("gathers", "attention", "offload", "matmul")}
    assert {name for name in of if "links: 45 GB/s each way, without wrap-around" in of[name]} == {"gathers"}
    assert {name for name in of if "asynchronous" in of[name]} == {"gathers"}
    assert {name for name in of if "50% of the peak" in of[name]} == {"attention"}
    assert {name for name in of if "to and from the host count as 0 s" in of[name]} == {"offload"}
    assert all("1.5 GHz" in text and "819 GB/s" in text for text in of.values())


def test_what_is_not_known_is_said():
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
    lines = "\n".join(estimate(text, SMALL, places(SMALL)).assumptions)
    assert "count as 0 s: k x 1" in lines and "count once: w" in lines


# ------------------------------------------------------------------------------------------------------- facts


def test_weights_are_gathered_in_bfloat16_and_not_in_pieces():
    known = program("gathers")
    assert float32_gathers(known) == [] and not has_windowed_einsum(known)
    text = """HloModule m
%windowed_dot_general_body (y: f32[8]) -> f32[8] {
  ROOT %y = f32[8] parameter(0)
}
ENTRY %main (x: f32[512,1024]) -> f32[1024,1024] {
  %x = f32[512,1024]{1,0} parameter(0)
  ROOT %g = f32[1024,1024]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}
"""
    (one,) = float32_gathers(parse_program(text))
    assert one.payload[0].shape == (1024, 1024) and has_windowed_einsum(parse_program(text))


def test_reductions_have_shapes():
    found = {(one.kind, one.payload[0].shape) for one in reductions(program("collectives"))}
    assert found == {("all-reduce", (1024, 1024)), ("reduce-scatter", (528, 2048, 4))}


def test_what_is_not_donated_is_named():
    assert not_aliased(program("matmul")) == {"b": Array("bf16", (4096, 4096), 0)}
    assert not_aliased(program("offload")).keys() == {"w['up']", "w['down']", "x"}


def test_scores_would_be_found_and_an_attention_kernel_leaves_none():
    assert largest_square(program("attention"), 1024) is None
    assert largest_square(program("loops"), 1024) == Array("bf16", (1024, 1024), 0)
