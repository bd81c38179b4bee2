import dataclasses
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llava_jax.errors import ConfigError
from llava_jax.models.params import abstract_model, nested
from llava_jax.runtime.mesh import arrange_slices, count_slices, make_mesh
from llava_jax.train.optimizer import state_bytes
from llava_jax.train.state import all_params, init_params_for, init_stage_state, params_sha256
from tests.fixtures.tiny_models import EVEN, changed
from tests.fixtures.train_setup import EVERYTHING, STAGE_1, STAGE_2, setup

# How each parameter is sharded over the mesh axes. In llm/layers and vision/layers the first axis stacks the layers.
SPECS = {
    "llm/embed/embedding": P("tensor", "fsdp"),
    "llm/head/kernel": P("fsdp", "tensor"),
    "llm/layers/attention_norm/scale": P(None, "fsdp"),
    "llm/layers/down/kernel": P(None, "tensor", "fsdp"),
    "llm/layers/gate/kernel": P(None, "fsdp", "tensor"),
    "llm/layers/k/kernel": P(None, "fsdp", "tensor", None),
    "llm/layers/mlp_norm/scale": P(None, "fsdp"),
    "llm/layers/o/kernel": P(None, "tensor", None, "fsdp"),
    "llm/layers/q/kernel": P(None, "fsdp", "tensor", None),
    "llm/layers/up/kernel": P(None, "fsdp", "tensor"),
    "llm/layers/v/kernel": P(None, "fsdp", "tensor", None),
    "llm/norm/scale": P("fsdp"),
    "projector/linear_1/bias": P("tensor"),
    "projector/linear_1/kernel": P("fsdp", "tensor"),
    "projector/linear_2/bias": P("fsdp"),
    "projector/linear_2/kernel": P("tensor", "fsdp"),
    "vision/cls/embedding": P("fsdp"),
    "vision/layers/attention_norm/bias": P(None, "fsdp"),
    "vision/layers/attention_norm/scale": P(None, "fsdp"),
    "vision/layers/down/bias": P(None, "fsdp"),
    "vision/layers/down/kernel": P(None, "tensor", "fsdp"),
    "vision/layers/k/bias": P(None, "tensor", None),
    "vision/layers/k/kernel": P(None, "fsdp", "tensor", None),
    "vision/layers/mlp_norm/bias": P(None, "fsdp"),
    "vision/layers/mlp_norm/scale": P(None, "fsdp"),
    "vision/layers/o/bias": P(None, "fsdp"),
    "vision/layers/o/kernel": P(None, "tensor", None, "fsdp"),
    "vision/layers/q/bias": P(None, "tensor", None),
    "vision/layers/q/kernel": P(None, "fsdp", "tensor", None),
    "vision/layers/up/bias": P(None, "tensor"),
    "vision/layers/up/kernel": P(None, "fsdp", "tensor"),
    "vision/layers/v/bias": P(None, "tensor", None),
    "vision/layers/v/kernel": P(None, "fsdp", "tensor", None),
    "vision/patch/kernel": P(None, None, None, "fsdp"),
    "vision/position/embedding": P(None, "fsdp"),
    "vision/post_norm/bias": P("fsdp"),
    "vision/post_norm/scale": P("fsdp"),
    "vision/pre_norm/bias": P("fsdp"),
    "vision/pre_norm/scale": P("fsdp"),
}


def test_every_parameter_has_the_expected_partition_spec():
    _, specs = abstract_model(EVEN)
    assert specs == SPECS


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_new_parameters_and_moments_are_sharded(mesh):
    run = setup(EVERYTHING, mesh)
    for path, x in run.state.trainable.items():
        layouts = [x, *(m[path] for s in run.state.opt_state for m in (getattr(s, "mu", 0), getattr(s, "nu", 0)) if m)]
        assert len(layouts) == 3, "parameter and two moments"
        for y in layouts:
            assert y.sharding.spec == SPECS[path], path
            shard = tuple(
                n // (run.mesh.shape[axis] if axis else 1)
                for n, axis in zip(y.shape, [*SPECS[path], *[None] * y.ndim], strict=False)
            )
            assert {s.data.shape for s in y.addressable_shards} == {shard}, path
    bytes_per_device = sum(x.addressable_shards[0].data.nbytes for x in run.state.trainable.values())
    assert bytes_per_device < 1.2 * sum(x.nbytes for x in run.state.trainable.values()) / (mesh[1] * mesh[2])


@pytest.mark.parametrize("table, trained", [(STAGE_1, {"projector"}), (STAGE_2, {"projector", "llm"})])
def test_frozen_parameters_have_no_optimizer_state(table, trained):
    config = changed(dtype="bfloat16")
    run = setup(table, config=config)
    state = run.state
    assert {p.split("/")[0] for p in state.trainable} == trained
    assert {**state.trainable, **state.frozen}.keys() == SPECS.keys()
    assert all(x.dtype == jnp.float32 for x in state.trainable.values())
    for path, x in state.frozen.items():
        assert x.dtype == (jnp.float32 if path.startswith("vision/") else jnp.bfloat16), path
    counters = 2 * 4
    assert state_bytes(state.opt_state) == 2 * sum(x.nbytes for x in state.trainable.values()) + counters
    assert state_bytes(state.opt_state) == state_bytes(run.abstract.opt_state)


def test_initial_values_are_independent_of_mesh_and_subset():
    key = jax.random.PRNGKey(3)
    on_one_device = init_params_for(EVEN, make_mesh(1, 1, 1, jax.devices()[:1]), key, list(SPECS))
    part = [p for p in SPECS if not p.startswith("llm/")]
    on_eight_devices = init_params_for(EVEN, make_mesh(2, 2, 2), key, part)
    assert on_one_device.keys() == SPECS.keys() and on_eight_devices.keys() == set(part)
    assert params_sha256(on_eight_devices) == params_sha256({p: on_one_device[p] for p in part})


def test_next_stage_keeps_weights_and_resets_the_optimizer():
    first, second = setup(STAGE_1), setup(STAGE_2)
    weights = all_params(first.state)
    used_opt_state = jax.tree.map(lambda x: x + 1, first.state.opt_state)
    state = first.state.replace(step=first.state.step + 5, opt_state=used_opt_state)
    before = params_sha256(weights)
    state = init_stage_state(all_params(state), state.rng, second.abstract, second.tx)
    assert params_sha256(all_params(state)) == before
    assert int(state.step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_params_sha256_covers_values_names_shapes_and_dtypes():
    x = {"a": jnp.zeros(4), "b": jnp.ones((2, 2))}
    others = [
        {"a": jnp.zeros(4), "b": jnp.ones((2, 2)).at[1, 1].set(1 + 1e-6)},
        {"a": jnp.zeros(4), "c": jnp.ones((2, 2))},
        {"a": jnp.zeros(4), "b": jnp.ones(4)},
        {"a": jnp.zeros(4, jnp.int32), "b": jnp.ones((2, 2))},
    ]
    assert len({params_sha256(y) for y in [x, *others]}) == 5
    assert params_sha256(dict(reversed(x.items()))) == params_sha256(x)


def test_nested_splits_paths_into_a_tree():
    assert nested({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize("sizes", [(2, 2, 1), (0, 8, 1), (-1, -1, 1), (-1, 3, 1), (3, 3, 3)], ids=str)
def test_mesh_that_does_not_cover_the_devices_is_refused(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        make_mesh(*sizes)


def test_mesh_that_does_not_divide_a_parameter_names_it():
    with pytest.raises(ConfigError, match=r"mesh tensor = 8 does not divide llm/layers/k/kernel .* axis of 2;"):
        setup(EVERYTHING, mesh=(1, 1, 8))


def test_mesh_size_minus_one_is_inferred():
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a TPU v5e device that a mesh needs."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0


CHIPS = [Chip(4 * i + 2 * y + x, i, (x, y, 0)) for i in range(3) for y in range(2) for x in range(2)]


@pytest.mark.parametrize("sizes", [(3, 4, 1), (3, 2, 2), (6, 2, 1), (12, 1, 1)], ids=str)
def test_only_the_data_axis_spans_slices(sizes):
    mesh = arrange_slices(list(sizes), count_slices(CHIPS), random.Random(0).sample(CHIPS, 12))
    assert mesh.shape == sizes and {chip.id for chip in mesh.flat} == set(range(12))
    for i in range(sizes[0]):
        assert {chip.slice_index for chip in mesh[i].flat} == {i * 3 // sizes[0]}


def test_weights_split_over_slices_are_refused():
    with pytest.raises(ConfigError, match=r"mesh.data=1 does not go over 3 TPU slices; set it to 3, or a multiple"):
        make_mesh(1, -1, 1, CHIPS)


def test_chips_without_slice_index_count_as_one_slice():
    assert count_slices([SimpleNamespace(platform="tpu")] * 4) == 1


def test_gpu_hosts_are_not_slices():
    assert count_slices([dataclasses.replace(chip, platform="gpu") for chip in CHIPS]) == 1
