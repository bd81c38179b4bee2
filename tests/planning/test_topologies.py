"""TPU slices by name."""

import pytest

from llava_jax.errors import ConfigError
from llava_jax.planning.topologies import listing, parse_topology
from llava_jax.runtime.accelerators import GENERATIONS, PEAK_TFLOPS


def test_name_gives_generation_and_shape():
    v5e = parse_topology("v5e:4x4")
    assert (v5e.name, v5e.chips, v5e.device_count, v5e.shape) == ("v5e:4x4", 16, 16, (4, 4))
    assert (v5e.peak_flops, v5e.hbm_bytes_per_s, v5e.hbm_bytes) == (197e12, 819e9, int(15.75 * 2**30))
    assert parse_topology("v5:2x2x1").name == "v5p:2x2x1"


def test_two_devices_per_chip_each_get_half():
    ironwood = parse_topology("tpu7x:2x2x1")
    assert (ironwood.chips, ironwood.device_count) == (4, 8)
    assert (ironwood.peak_flops * 2, ironwood.hbm_bytes_per_s * 2) == (2307e12, 7370e9)


@pytest.mark.parametrize(
    ("name", "wraps"),
    [("v5e:8x8", False), ("v5e:8x16", False), ("v6e:16x16", True), ("v4:2x2x4", False), ("v5p:4x4x8", True)],
)
def test_only_whole_pods_wrap_around(name, wraps):
    assert parse_topology(name).wraps == wraps


@pytest.mark.parametrize("name", ["v5litepod-16", "v5e", "v5e:", "ironwood:2x2x1", "list", "v5e:4", ""])
def test_unknown_slice_error_lists_all_slices(name):
    with pytest.raises(ConfigError, match="(?s)GENERATION:SHAPE.*v4 .*2x2x4.*v6e .*16x16"):
        parse_topology(name)


def test_unknown_shape_error_lists_shapes_of_the_generation():
    with pytest.raises(ConfigError, match="v5e has no slice of 3x3; there are 1x1, 2x2, 2x4"):
        parse_topology("v5e:3x3")


def test_listing_names_every_slice():
    text = listing()
    assert all(f"{g.name} " in text and " ".join(g.shapes) in text for g in GENERATIONS.values())


def test_peaks_match_the_train_loop_and_the_clock():
    """A v5e has 4 units of 128 x 128, v4 and v5p have 8, a v6e 4 of 256 x 256, tpu7x 8 of those."""
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 8 * 256**2}
    for g in GENERATIONS.values():
        assert units[g.name] * 2 * g.clock_ghz / 1000 == pytest.approx(g.peak_tflops, rel=2e-3)
        assert PEAK_TFLOPS[g.kind] == g.peak_tflops / g.cores
