"""What a program sends between chips, found in each of the compiler's ways to write it."""

import pytest

from llava_jax.planning.estimate import seconds
from llava_jax.planning.hlo.collectives import Collective, collectives, replica_groups
from llava_jax.planning.hlo.parse import Array, parse_program
from llava_jax.planning.topologies import parse_topology as topology
from tests.planning.known import MIB, places, program

V5E = topology("v5e:4x4")
ROWS = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(4))
COLUMNS = tuple(zip(*ROWS, strict=True))
ALL = (tuple(range(16)),)


def test_one_of_each_kind():
    found = {(c.kind, c.groups): c for c in collectives(program("collectives"))}
    ring = tuple((i, (i + 4) % 16) for i in range(16))
    sent = {key: (one.is_async, one.dtype, one.bytes / MIB, one.times) for key, one in found.items()}
    assert {(kind, tuple(sorted(groups))): rest for (kind, groups), rest in sent.items()} == {
        ("all-gather", ROWS): (False, "bf16", 16, 1),
        ("all-reduce", ROWS): (False, "f32", 4, 1),
        ("all-reduce", ALL): (False, "f32", 4, 1),
        ("reduce-scatter", COLUMNS): (False, "bf16", 8.25, 1),
        ("all-to-all", ROWS): (False, "bf16", 8, 1),
        ("collective-permute", ring): (True, "bf16", 1, 1),
    }


def test_a_gather_that_fusions_carry_on_is_counted_once_and_is_asynchronous():
    found = [c for c in collectives(program("gathers")) if c.kind == "all-gather"]
    assert [(c.is_async, c.bytes / MIB, c.times, c.groups) for c in found] == [(False, 32, 4, ALL), (True, 32, 4, ALL)]


def in_a_program(lines: str, before: str = "") -> list[Collective]:
    entry = f"ENTRY %main (x: bf16[8,256]) -> bf16[8,256] {{\n  %x = bf16[8,256]{{1,0}} parameter(0)\n{lines}\n}}\n"
    return collectives(parse_program(f"HloModule m\n{before}{entry}"))


def test_an_all_reduce_that_keeps_a_slice_is_a_reduce_scatter():
    before = """%all-reduce-scatter (y: bf16[8,256]) -> bf16[2,256] {
  %y = bf16[8,256]{1,0:S(1)} parameter(0)
  %all-reduce.1 = bf16[8,256]{1,0} all-reduce(%y), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %kept = bf16[2,256]{1,0} dynamic-slice(%all-reduce.1, %i, %i), dynamic_slice_sizes={2,256}
}
"""
    (one,) = in_a_program("  ROOT %r = bf16[2,256]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter", before)
    assert (one.kind, one.is_async, one.bytes, one.groups) == ("reduce-scatter", False, 4096, ((0, 1, 2, 3),))


def test_a_pair_is_asynchronous_and_its_flags_are_no_payload():
    (one,) = in_a_program(
        "  %s = (bf16[2,256]{1,0}, bf16[8,256]{1,0}, u32[]{:S(2)}) all-gather-start(%x), replica_groups=[1,4]<=[4]\n"
        "  ROOT %d = bf16[8,256]{1,0} all-gather-done(%s)"
    )
    assert (one.kind, one.is_async, one.bytes) == ("all-gather", True, 4096)


def test_what_an_async_start_wraps_is_asynchronous():
    before = """%wrapped (y: bf16[8,256]) -> bf16[2,256] {
  %y = bf16[8,256]{1,0} parameter(0)
  ROOT %r = bf16[2,256]{1,0} reduce-scatter(%y), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
"""
    (one,) = in_a_program(
        "  %s = ((bf16[8,256]), bf16[2,256], u32[]) async-start(%x), calls=%wrapped\n"
        "  ROOT %d = bf16[2,256]{1,0} async-done(%s)",
        before,
    )
    assert (one.kind, one.is_async, one.bytes) == ("reduce-scatter", True, 4096)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'b'}, x=1", ((0, 2, 4), (1, 3, 5))),
        ("replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a'}", ((0, 1), (2, 3), (4, 5))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups={}", ()),
    ],
)
def test_groups_are_read_in_every_form(text, groups):
    assert replica_groups(f", channel_id=1, {text}, dimensions={{0}}") == groups


def test_groups_that_cannot_be_read_are_not_guessed():
    with pytest.raises(ValueError, match="groups of devices"):
        replica_groups(", replica_groups=mesh['a'=4] {'a':(1)2}")


LINK = 45e9


@pytest.mark.parametrize(
    ("kind", "name", "groups", "expected"),
    [
        ("all-gather", "v5e:4x4", ALL, 15 / 16 / (2 * LINK)),
        ("all-gather", "v5e:4x4", ROWS, 3 / 4 / LINK),
        ("reduce-scatter", "v5e:4x4", COLUMNS, 3 / 4 / LINK),
        ("all-reduce", "v5e:4x4", ALL, 2 * 15 / 16 / (2 * LINK)),
        ("all-gather", "v5e:4x4", (), 15 / 16 / (2 * LINK)),
        ("all-gather", "v5e:16x16", (), 255 / 256 / (4 * LINK)),  # both ends of both axes
        ("all-gather", "v5e:16x16", (tuple(range(8)),), 7 / 8 / LINK),  # half an axis ends
        ("all-gather", "v4:4x4x4", (), 63 / 64 / (6 * LINK)),
        ("all-gather", "v5p:2x2x2", (), 7 / 8 / (6 * LINK)),  # three axes, links of twice the speed
        ("all-gather", "v5e:4x4", ((0, 5, 10, 15),), 3 / 4 / LINK),  # no box: a line
        ("all-to-all", "v5e:4x4", ALL, 1 / LINK),
        ("collective-permute", "v5e:4x4", ((0, 1), (1, 0)), 1 / LINK),
        ("all-gather", "v5e:4x4", ((3,),), 0),
    ],
)
def test_the_time_on_the_links(kind, name, groups, expected):
    slice_ = topology(name)
    one = Collective(kind, False, (Array("bf16", (1000, 1000), 0),), groups, 1, "")
    assert seconds(one, slice_, places(slice_)) == pytest.approx(2e6 * expected)
