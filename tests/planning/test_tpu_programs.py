"""The saved programs compiled again: the parser reads what the installed TPU compiler writes."""

from pathlib import Path

import pytest

from llava_jax.planning.hlo.collectives import collectives
from llava_jax.planning.hlo.flops import kernels, product_flops
from llava_jax.planning.hlo.memory import moved
from llava_jax.planning.hlo.parse import parse_program
from llava_jax.planning.lint import has_windowed_einsum
from tests.fixtures.once import make_once, run_tpu_compiler
from tests.planning.saved_programs import MIB

SCRIPT = Path(__file__).with_name("tpu_programs.py")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = make_once(tmp_path_factory, "tpu_programs", lambda folder: run_tpu_compiler(SCRIPT, folder))
    return {path.stem: parse_program(path.read_text()) for path in folder.iterdir()}


def test_matmuls_in_loops_count_every_iteration(programs):
    assert product_flops(programs["loops"]) == 30 * 2 * 1024**3
    assert product_flops(programs["gathers"]) == product_flops(programs["windowed"]) == 4 * 4 * 2048 * 2048 * 8192
    cycles = [i.cycles for _, i, _ in programs["matmul"].walk() if i.cycles]
    assert 1 <= sum(cycles) / 1.5e9 * 197e12 / (2 * 2048 * 4096 * 4096) < 1.1


def test_collectives_have_expected_bytes_and_groups(programs):
    sizes = {(c.kind, len(c.groups)): c.bytes / MIB for c in collectives(programs["collectives"])}
    assert sizes["all-reduce", 1] == sizes["all-reduce", 4] == 4
    assert (sizes["all-gather", 4], sizes["all-to-all", 4], sizes["reduce-scatter", 4]) == (16, 8, 8.25)
    gathered = sum(c.times * c.bytes for c in collectives(programs["gathers"]) if c.kind == "all-gather")
    assert gathered == 2 * 4 * 32 * MIB
    assert has_windowed_einsum(programs["windowed"]) and not has_windowed_einsum(programs["gathers"])


def test_attention_kernels_and_host_transfers_are_found(programs):
    attention, unknown = kernels(programs["attention"])
    assert sum(k.times * k.flops for k in attention) == 7 * 2 * (2 * 8) * 1024 * 1024 * 256 / 2 and unknown == {}
    assert moved(programs["offload"])[1] == 64 * MIB
