"""Non-finite steps do not change the state; they are only counted."""

import dataclasses
import json
import math
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llava_jax import config
from llava_jax.config.architectures import MEAN, STD
from llava_jax.runtime.mesh import make_mesh
from llava_jax.runtime.sharding import global_batch
from llava_jax.text.token_row import Batch
from llava_jax.train import step
from llava_jax.train.step_guard import StepGuard, parameter_norms, sample_ids, write_skipped
from tests.fixtures.tiny_models import EVEN, random_params
from tests.fixtures.train_setup import EVERYTHING, Setup, make_batch, setup

LEAF = "llm/layers/q/kernel"
STEPS = 52


# --------------------------------------------------------------------------------------------------- the jitted step


@pytest.fixture(scope="module")
def faults_in_batches():
    """Adds the batch's `bad_loss`, float32[B], to the loss, and its `bad_leaf` to one element of one gradient; zeros
    change nothing."""
    token_losses, gradients = step.token_losses, step.gradients

    def with_bad_loss(model, params, batch, chunks):
        return token_losses(model, params, batch, chunks) + jnp.sum(batch.bad_loss)

    def with_bad_leaf(model, trainable, frozen, batch, *rest):
        loss, grads, total = gradients(model, trainable, frozen, batch, *rest)
        leaf = grads[LEAF]
        return loss, {**grads, LEAF: leaf.at[(0,) * leaf.ndim].add(jnp.sum(batch.bad_leaf))}, total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "token_losses", with_bad_loss)
        patch.setattr(step, "gradients", with_bad_leaf)
        yield


@dataclasses.dataclass
class Prepared:
    """A compiled step, and the initial state on the host."""

    run: Setup
    first: object

    def state(self):
        return jax.device_put(self.first, jax.tree.map(lambda x: x.sharding, self.run.abstract))

    def step(self, state, batch, limit=math.inf):
        return self.run.step(state, global_batch(batch, self.run.mesh), np.float32(limit))


def prepare(**changes) -> Prepared:
    run = setup(EVERYTHING, steps=STEPS, **changes)
    return Prepared(run, jax.tree.map(np.array, run.state))


@pytest.fixture(scope="module")
def prepared(faults_in_batches):
    return prepare()


FaultyBatch = namedtuple("FaultyBatch", (*Batch._fields, "bad_loss", "bad_leaf"))


def batch_with(fault: str | None, seed: int, value: float = math.nan) -> FaultyBatch:
    batch = make_batch(8, seed=seed)
    images = ((batch.images / 255 - MEAN) / STD).astype(np.float32)
    batch = FaultyBatch(*batch._replace(images=images), np.zeros(8, np.float32), np.zeros(8, np.float32))
    if fault == "pixel":
        batch.images[5, 0, 3, 4, 1] = value
    elif fault:
        getattr(batch, fault)[5] = value
    return batch


def same_bytes(a, b) -> bool:
    same = [
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    ]
    return all(same)


def check_skipped_steps(prepared: Prepared, bad_steps: tuple[int, ...], steps: int) -> None:
    with jax.set_mesh(prepared.run.mesh):
        clean = prepared.state()
        for i in sorted(set(range(steps)) - set(bad_steps)):
            clean, metrics = prepared.step(clean, batch_with(None, i))
            assert metrics["applied"]
        for fault in ("bad_loss", "bad_leaf", "pixel"):
            state, skipped = prepared.state(), []
            for i in range(steps):
                state, metrics = prepared.step(state, batch_with(fault if i in bad_steps else None, i))
                skipped += [] if metrics["applied"] else [i]
                if fault == "bad_leaf" and i in bad_steps:
                    assert math.isfinite(metrics["loss"]), "only the gradient is bad"
                    nan = np.flatnonzero(np.isnan(metrics["norms"]))
                    assert nan.tolist() == [sorted(state.trainable).index(LEAF)]
            assert tuple(skipped) == bad_steps, fault
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.trainable)), fault
            assert same_bytes((state.trainable, state.opt_state), (clean.trainable, clean.opt_state)), fault
            assert (int(state.step), int(clean.step)) == (steps, steps - len(bad_steps))


def test_skipped_steps_leave_parameters_and_optimizer_state_bit_equal(prepared):
    """NaN in the loss, in one element of one gradient, in one pixel, at steps 0, 3 and 50: parameters and optimizer
    state are bit-equal to those of the good steps alone. Only the step counter includes the bad ones."""
    check_skipped_steps(prepared, (0, 3, 50), STEPS)


def test_skipped_steps_leave_no_trace_with_accumulation_on_a_mesh(faults_in_batches):
    check_skipped_steps(prepare(mesh=(2, 2, 2), accumulation=2), (0, 3), 5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30])
def test_infinite_gradient_and_overflowing_norm_are_skipped(prepared, value):
    with jax.set_mesh(prepared.run.mesh):
        state, metrics = prepared.step(prepared.state(), batch_with("bad_leaf", 0, value))
    assert not metrics["applied"] and math.isfinite(metrics["loss"])
    assert same_bytes((state.trainable, state.opt_state), (prepared.first.trainable, prepared.first.opt_state))


def test_only_a_loss_above_the_limit_is_skipped(prepared):
    batch, first = batch_with(None, 0), prepared.first
    with jax.set_mesh(prepared.run.mesh):
        loss = np.asarray(prepared.step(prepared.state(), batch)[1]["loss"])
        state, metrics = prepared.step(prepared.state(), batch, np.nextafter(loss, np.float32(0)))
        assert not metrics["applied"] and same_bytes(state.trainable, first.trainable)
        state, metrics = prepared.step(prepared.state(), batch, loss)
        assert metrics["applied"] and not same_bytes(state.opt_state, first.opt_state)


# ----------------------------------------------------------------------------------------------------- on the host


def test_only_consecutive_skipped_steps_end_a_run():
    guard = StepGuard(config.StepGuardConfig(in_a_row=2))
    too_many = []
    for i, applied in enumerate([False, False, True, False, False, False], 1):
        guard.update(i, 1.0 if applied else math.nan, applied)
        too_many.append(guard.has_too_many())
    assert too_many == [False] * 5 + [True]
    assert (guard.skipped, guard.in_a_row) == (5, 3)


SPIKES = config.StepGuardConfig(spike=3.0, window=4)


def test_spike_limit_is_the_window_median_two_steps_back():
    guard, limits = StepGuard(SPIKES), []
    losses = [5.0, 4.0, 2.0, 3.0, 1.0, 100.0, 1.0, 1.0, 1.0]
    for at, loss in enumerate(losses, 1):
        limits.append(float(guard.limit(at)))
        guard.update(at, loss, loss <= limits[-1])
    medians = [3.5, 2.5, 2.5, 1.5]  # of steps 1-4, 2-5, 2-5 (step 6 was skipped), and 3, 4, 5, 7
    assert limits == [math.inf] * 5 + [3 * m for m in medians]
    assert guard.skipped == 1
    assert guard.reason(9, {"loss": 100.0, "grad_norm": 1.0}) == "the loss 100.0000 is above 4.5000, 3 x the median"


def test_resumed_guard_decides_like_an_uninterrupted_one():
    losses = np.random.default_rng(0).exponential(size=40).astype(np.float32).tolist()
    whole = StepGuard(SPIKES)
    for at, loss in enumerate(losses, 1):
        resumed = StepGuard(SPIKES, json.loads(json.dumps(whole.record())))
        limit = whole.limit(at)
        assert resumed.limit(at) == limit and resumed.record() == whole.record()
        whole.update(at, loss, loss <= limit)
        assert whole.limit(at + 1) == resumed.limit(at + 1), (
            "whether read before the next step, as at a save, or after it"
        )
    assert whole.skipped > 3


def test_without_spike_factor_no_loss_is_kept():
    for settings, expected in (
        (config.StepGuardConfig(), 0),
        (config.StepGuardConfig(spike=2.0, window=4, on_spike="warn"), 6),
    ):
        guard = StepGuard(settings)
        for at in range(1, 20):
            guard.update(at, 1.0, True)
            assert guard.limit(at + 1) == math.inf
        assert len(guard.record()["losses"]) == expected
    assert guard.spike_above(20) == 2.0, "warned of"


class Named:
    def names(self, index):
        return [f"sample-{index}-{i}" for i in range(1 + index % 2)]


def test_sample_ids_keep_the_order_and_omit_fillers():
    ids = sample_ids(Named(), np.array([7, -1, 2**32 + 4]))
    assert ids == ["sample-7-0", "sample-7-1", f"sample-{2**32 + 4}-0"]


def test_skipped_file_is_strict_json_with_norms_by_module(tmp_path):
    mesh, params = make_mesh(1, 8, 1), random_params(EVEN)
    weights = parameter_norms(params | {"llm/norm/scale": params["llm/norm/scale"].astype("bfloat16")}, mesh)
    for path, norm in weights.items():
        assert norm == pytest.approx(np.linalg.norm(params[path].astype(np.float64)), rel=1e-3)
    gradients = {"llm/a": 3.0, "llm/b": 4.0, "projector/a": math.nan, "vision/a": math.inf}
    record = {"stage": "one", "step": 7, "loss": math.nan}
    file = write_skipped(tmp_path, record, ["a", "b"], {"gradient": gradients, "parameter": weights})
    assert file == tmp_path / "skipped" / "one-000007.json"
    dump = json.loads(file.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert dump["loss"] == "nan" and dump["samples"] == ["a", "b"]
    assert dump["modules"]["gradient"] == {"llm": 5.0, "projector": "nan", "vision": "inf"}
    assert dump["modules"]["parameter"].keys() == {"vision", "projector", "llm"}
    assert dump["parameters"]["gradient"]["projector/a"] == "nan"
