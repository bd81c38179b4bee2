"""Stage layouts: replicated and sharded weights give the same training."""

import dataclasses

import jax
import numpy as np
import pytest

from llava_jax.config import Data, Stage
from llava_jax.errors import ConfigError
from llava_jax.models.llava import Llava
from llava_jax.runtime.mesh import make_mesh, without_fsdp
from llava_jax.runtime.sharding import global_batch
from llava_jax.train import stages
from llava_jax.train.state import all_params, init_stage_state
from llava_jax.train.step import make_train_step
from tests.fixtures.tiny_models import EVEN, random_params
from tests.fixtures.train_setup import OPTIMIZER, STAGE_1, STAGE_2, make_batch

STAGE = Stage(batch=8, learning_rates=STAGE_1, optimizer=OPTIMIZER, data=Data(length=16))
SECOND = dataclasses.replace(STAGE, learning_rates=STAGE_2)


def layout(stage: Stage, weights: str, mesh) -> stages.StageLayout:
    return stages.make_stage_layout("one", dataclasses.replace(stage, weights=weights), EVEN, mesh, 20)


def trained(weights: str) -> tuple[list[float], dict]:
    """(losses, parameters) of three steps of a first stage with `weights`, then three of a sharded second stage."""
    mesh, losses = make_mesh(1, 4, 2), []
    params = random_params(EVEN)
    for stage, layout_weights in ((STAGE, weights), (SECOND, "sharded")):
        stage_layout = layout(stage, layout_weights, mesh)
        with jax.set_mesh(stage_layout.mesh):
            state = init_stage_state(params, jax.random.PRNGKey(0), stage_layout.abstract, stage_layout.tx)
            step = make_train_step(Llava(EVEN), stage_layout.tx, stage_layout.abstract, 1, 1)
            for seed in range(3):
                state, metrics = step(state, global_batch(make_batch(8, seed=seed), stage_layout.mesh))
                losses.append(float(metrics["loss"]))
        params = all_params(state)
    return losses, params


def test_replicated_stage_equals_sharded_and_feeds_the_next():
    replicated = layout(STAGE, "replicated", make_mesh(1, 4, 2))
    assert replicated.mesh.shape["fsdp"] == 1  # otherwise nothing is compared
    (expected, weights), (losses, params) = trained("sharded"), trained("replicated")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for path, w in weights.items():
        np.testing.assert_allclose(params[path], w, rtol=1e-3, atol=1e-5, err_msg=path)
        assert params[path].sharding == w.sharding, path


def test_without_fsdp_keeps_device_order_and_tensor():
    mesh = make_mesh(2, 2, 2)
    replicated = without_fsdp(mesh)
    assert dict(replicated.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert replicated.devices.ravel().tolist() == mesh.devices.ravel().tolist()


@pytest.mark.parametrize("share, fsdp", [(2.1, 1), (1.9, 8)])
def test_auto_replicates_up_to_half_of_device_memory(monkeypatch, share, fsdp):
    mesh = make_mesh(1, 8, 1)
    state = layout(STAGE, "replicated", mesh).abstract
    size = sum(x.size * x.dtype.itemsize for x in [*jax.tree.leaves(state), *state.trainable.values()])
    monkeypatch.setitem(stages.MEMORY_GIB, jax.devices()[0].device_kind, share * size / 2**30)
    assert layout(STAGE, "auto", mesh).mesh.shape["fsdp"] == fsdp


def test_auto_keeps_the_mesh_on_unknown_devices():
    mesh = make_mesh(1, 8, 1)
    assert layout(STAGE, "auto", mesh).mesh == mesh


def test_indivisible_batch_is_refused_with_a_suggestion():
    stage = dataclasses.replace(STAGE, batch=12)
    with pytest.raises(ConfigError, match="12 rows .* = 8 devices; make batch .* e.g. 16, or let config.mesh.tensor"):
        layout(stage, "sharded", make_mesh(1, 8, 1))
