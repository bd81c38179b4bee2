"""The collectives of a program, in each form in which the compiler writes them."""

import pytest

from llava_jax.planning.estimate import seconds
from llava_jax.planning.hlo.collectives import Collective, collectives, replica_groups
from llava_jax.planning.hlo.parse import Array, parse_program
from llava_jax.planning.topologies import parse_topology as topology
from tests.planning.saved_programs import MIB, coords, program

V5E = topology("v5e:4x4")
ROWS = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(4))
COLUMNS = tuple(zip(*ROWS, strict=True))
ALL = (tuple(range(16)),)


def test_each_kind_is_found_with_groups_and_bytes():
    transfers = {(c.kind, c.groups): c for c in collectives(program("collectives"))}
    ring = tuple((i, (i + 4) % 16) for i in range(16))
    sent = {key: (c.is_async, c.dtype, c.bytes / MIB, c.times) for key, c in transfers.items()}
    assert {(kind, tuple(sorted(groups))): rest for (kind, groups), rest in sent.items()} == {
        ("all-gather", ROWS): (False, "bf16", 16, 1),
        ("all-reduce", ROWS): (False, "f32", 4, 1),
        ("all-reduce", ALL): (False, "f32", 4, 1),
        ("reduce-scatter", COLUMNS): (False, "bf16", 8.25, 1),
        ("all-to-all", ROWS): (False, "bf16", 8, 1),
        ("collective-permute", ring): (True, "bf16", 1, 1),
    }


def test_gather_spread_over_fusions_counts_once_as_async():
    gathers = [c for c in collectives(program("gathers")) if c.kind == "all-gather"]
    assert [(c.is_async, c.bytes / MIB, c.times, c.groups) for c in gathers] == [
        (False, 32, 4, ALL),
        (True, 32, 4, ALL),
    ]


def collectives_in(lines: str, body: str = "") -> list[Collective]:
    entry = f"ENTRY %main (x: bf16[8,256]) -> bf16[8,256] {{\n  %x = bf16[8,256]{{1,0}} parameter(0)\n{lines}\n}}\n"
    return collectives(parse_program(f"HloModule m\n{body}{entry}"))


def test_all_reduce_then_slice_is_a_reduce_scatter():
    body = """%all-reduce-scatter (y: bf16[8,256]) -> bf16[2,256] {
  %y = bf16[8,256]{1,0:S(1)} parameter(0)
  %all-reduce.1 = bf16[8,256]{1,0} all-reduce(%y), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %kept = bf16[2,256]{1,0} dynamic-slice(%all-reduce.1, %i, %i), dynamic_slice_sizes={2,256}
}
"""
    (c,) = collectives_in("  ROOT %r = bf16[2,256]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter", body)
    assert (c.kind, c.is_async, c.bytes, c.groups) == ("reduce-scatter", False, 4096, ((0, 1, 2, 3),))


def test_start_done_pair_is_async_and_flags_are_no_payload():
    (c,) = collectives_in(
        "  %s = (bf16[2,256]{1,0}, bf16[8,256]{1,0}, u32[]{:S(2)}) all-gather-start(%x), replica_groups=[1,4]<=[4]\n"
        "  ROOT %d = bf16[8,256]{1,0} all-gather-done(%s)"
    )
    assert (c.kind, c.is_async, c.bytes) == ("all-gather", True, 4096)


def test_collective_wrapped_in_async_start_is_async():
    body = """%wrapped (y: bf16[8,256]) -> bf16[2,256] {
  %y = bf16[8,256]{1,0} parameter(0)
  ROOT %r = bf16[2,256]{1,0} reduce-scatter(%y), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
"""
    (c,) = collectives_in(
        "  %s = ((bf16[8,256]), bf16[2,256], u32[]) async-start(%x), calls=%wrapped\n"
        "  ROOT %d = bf16[2,256]{1,0} async-done(%s)",
        body,
    )
    assert (c.kind, c.is_async, c.bytes) == ("reduce-scatter", True, 4096)


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
def test_replica_groups_parse_in_every_format(text, groups):
    assert replica_groups(f", channel_id=1, {text}, dimensions={{0}}") == groups


def test_unreadable_replica_groups_raise():
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
        ("all-gather", "v5e:16x16", (tuple(range(8)),), 7 / 8 / LINK),  # half an axis does not wrap around
        ("all-gather", "v4:4x4x4", (), 63 / 64 / (6 * LINK)),
        ("all-gather", "v5p:2x2x2", (), 7 / 8 / (6 * LINK)),  # three axes, links twice as fast
        ("all-gather", "v5e:4x4", ((0, 5, 10, 15),), 3 / 4 / LINK),  # not a box: a line
        ("all-to-all", "v5e:4x4", ALL, 1 / LINK),
        ("collective-permute", "v5e:4x4", ((0, 1), (1, 0)), 1 / LINK),
        ("all-gather", "v5e:4x4", ((3,),), 0),
    ],
)
def test_link_time_of_collectives(kind, name, groups, expected):
    slice_ = topology(name)
    c = Collective(kind, False, (Array("bf16", (1000, 1000), 0),), groups, 1, "")
    assert seconds(c, slice_, coords(slice_)) == pytest.approx(2e6 * expected)
