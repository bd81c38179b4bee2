import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from llava_jax.models.flops import model_flops
from llava_jax.models.llava import Llava
from llava_jax.models.params import abstract_model, nested
from llava_jax.runtime.sharding import global_batch, logical_rules
from llava_jax.train.loss import count_targets, token_losses
from llava_jax.train.optimizer import learning_rates_per_parameter
from llava_jax.train.state import all_params, init_stage_state, params_sha256
from llava_jax.train.step import gradients, make_eval_step
from tests.fixtures.tiny_models import EVEN, changed, random_params
from tests.fixtures.train_setup import EVERYTHING, STAGE_1, STAGE_2, make_batch, setup

MESHES = {"one": (1, 1, 1), "fsdp=8": (1, 8, 1), "data=2,fsdp=2,tensor=2": (2, 2, 2)}
_, SPECS = abstract_model(EVEN)


def same_layout(x: jax.Array, spec: PartitionSpec) -> bool:
    return x.sharding.is_equivalent_to(jax.sharding.NamedSharding(x.sharding.mesh, spec), x.ndim)


# ---------------------------------------------------------------------------------------------------- the loss


@functools.cache
def logits_of(rows: int) -> np.ndarray:
    batch = make_batch(rows)
    arrays = batch.tokens, batch.images, batch.positions, batch.segment_ids
    apply = jax.jit(Llava(EVEN).apply)
    return np.asarray(apply({"params": nested(random_params(EVEN))}, *arrays))


@pytest.mark.parametrize("chunks", [1, 4])
def test_loss_is_next_token_cross_entropy_over_targets(chunks):
    batch = make_batch(4)
    batch.target_mask[0, 0] = True  # the first token has no context, so it is no target
    expected, count = 0.0, 0
    for row, tokens in enumerate(batch.tokens):
        for at in range(1, len(tokens)):
            if batch.target_mask[row, at]:
                z = logits_of(4)[row, at - 1].astype(np.float64)
                expected += np.log(np.exp(z - z.max()).sum()) + z.max() - z[tokens[at]]
                count += 1
    loss, targets = make_eval_step(Llava(EVEN), chunks)(random_params(EVEN), batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert float(targets) == count == float(count_targets(batch)) > 10


# ------------------------------------------------------------------------------------------- accumulation, chunks


def gradients_of(mesh: tuple, accumulation: int, chunks: int):
    """(loss, gradients, targets) on the host, and the gradients on the devices."""
    run = setup(EVERYTHING, mesh)
    shardings = {path: x.sharding for path, x in run.abstract.trainable.items()}

    @jax.jit
    def f(trainable, frozen, batch):
        with logical_rules():
            return gradients(run.model, trainable, frozen, batch, accumulation, chunks, shardings)

    with jax.set_mesh(run.mesh):
        loss, grads, targets = f(run.state.trainable, run.state.frozen, run.batch(16))
    return float(loss), jax.tree.map(np.asarray, grads), float(targets), grads


@pytest.fixture(scope="module")
def at_once():
    return gradients_of((1, 1, 1), accumulation=1, chunks=1)


# The ViT's final norm and last block are not used; a key's bias adds the same to every score of a query.
WITHOUT_EFFECT = ("vision/post_norm/scale", "vision/post_norm/bias", "vision/layers/k/bias")


@pytest.mark.parametrize(
    "mesh, accumulation, chunks",
    [((1, 1, 1), 2, 1), ((2, 2, 2), 4, 1), ((1, 1, 1), 1, 4)],
    ids=["2", "4 on 8 devices", "chunks"],
)
def test_accumulation_and_chunks_keep_loss_and_gradients(at_once, mesh, accumulation, chunks):
    loss, grads, targets, laid_out = gradients_of(mesh, accumulation, chunks)
    assert targets == at_once[2]
    np.testing.assert_allclose(loss, at_once[0], rtol=1e-6)
    for path, expected in at_once[1].items():
        largest = np.abs(expected).max()
        assert largest < 1e-8 if path in WITHOUT_EFFECT else largest > 1e-4, path
        bound = dict(rtol=0, atol=1e-8) if path in WITHOUT_EFFECT else dict(rtol=1e-5, atol=1e-5 * largest)
        np.testing.assert_allclose(grads[path], expected, **bound, err_msg=path)
        assert same_layout(laid_out[path], SPECS[path]), path  # also the sums inside the loop


def test_mean_of_micro_batch_means_is_another_loss(at_once):
    batch = make_batch(16)
    step = make_eval_step(Llava(EVEN), 1)
    parts = [step(random_params(EVEN), jax.tree.map(lambda x, i=i: x[i::4], batch)) for i in range(4)]
    assert len({float(n) for _, n in parts}) > 1
    assert abs(np.mean([float(loss / n) for loss, n in parts]) / at_once[0] - 1) > 1e-4


# ------------------------------------------------------------------------------------------------------ meshes


@pytest.fixture(scope="module", params=MESHES.values(), ids=MESHES)
def trained(request):
    """20 steps of stage 2."""
    run = setup(STAGE_2, request.param)
    with jax.set_mesh(run.mesh):
        batches = [run.batch(8, seed=i % 5) for i in range(20)]
        text = run.step.lower(run.state, batches[0]).as_text()
        losses = []
        for batch in batches:
            run.state, metrics = run.step(run.state, batch)
            losses.append(float(metrics["loss"]))
    return run, losses, text


CURVES = {}


def test_loss_curve_is_independent_of_the_mesh(trained):
    run, losses, _ = trained
    reference = CURVES.setdefault("one", losses)  # the first mesh is a single device
    assert run.mesh.size == (1 if reference is losses else 8)
    assert losses[-1] < losses[0] - 0.1
    np.testing.assert_allclose(losses, reference, rtol=1e-4)


def test_step_keeps_shardings_and_compiles_once(trained):
    run, _, _ = trained
    for path, x in all_params(run.state).items():
        assert same_layout(x, SPECS[path]), path
    (adam,) = (s for s in run.state.opt_state if isinstance(s, optax.ScaleByAdamState))
    for moments in (adam.mu, adam.nu):
        assert moments.keys() == run.state.trainable.keys()
        for path, x in moments.items():
            assert same_layout(x, SPECS[path]), path
    assert run.step._cache_size() == 1


def test_activations_are_constrained_only_under_set_mesh(trained):
    run, _, text = trained
    without = run.step.lower(run.abstract, make_batch(8)).as_text()
    gradients = len(run.state.trainable)
    assert without.count("sharding_constraint") == gradients
    assert text.count("sharding_constraint") >= gradients + 8


# ------------------------------------------------------------------------------------------------------ freezing


@pytest.fixture(scope="module")
def stage_1():
    return setup(STAGE_1, steps=50)


def fresh_state(run):
    return init_stage_state(random_params(EVEN), jax.random.PRNGKey(0), run.abstract, run.tx)


def test_only_frozen_parameters_are_bit_equal_after_50_steps(stage_1):
    state = fresh_state(stage_1)
    first = state.trainable
    frozen, trainable = params_sha256(state.frozen), jax.tree.map(np.array, first)
    with jax.set_mesh(stage_1.mesh):
        for i in range(50):
            state, _ = stage_1.step(state, stage_1.batch(4, seed=i))
    assert all(x.is_deleted() for x in first.values()), "the state is donated"
    assert params_sha256(state.frozen) == frozen
    for path, x in state.trainable.items():
        assert np.mean(np.asarray(x) != trainable[path]) > 0.99, path
    assert int(state.step) == 50


def test_filler_rows_give_zero_loss_and_gradient(stage_1):
    filler = jax.tree.map(np.zeros_like, make_batch(4))
    with jax.set_mesh(stage_1.mesh):
        _, metrics = stage_1.step(fresh_state(stage_1), global_batch(filler, stage_1.mesh))
    assert metrics.pop("applied") and not np.any(metrics.pop("norms"))
    assert {k: float(v) for k, v in metrics.items()} == {"loss": 0.0, "grad_norm": 0.0, "targets": 0.0}


WIDE = changed(
    vision=dict(width=64, mlp_width=256, layers=2), llm=dict(width=64, head_size=16, mlp_width=256, layers=1),
    unroll=True,  # the body of a loop would be counted once
)  # fmt: skip


def flops(table) -> float:
    run = setup(table, config=WIDE)
    with jax.set_mesh(run.mesh):
        return run.step.lower(run.state, run.batch(8, length=32)).compile().cost_analysis()["flops"]


def test_projector_stage_costs_at_most_70_percent_of_the_flops():
    """The backward pass only computes the gradient with respect to the language model's inputs. Its weight gradients, a
    third of the work, are not computed, nor those of the vision tower. The step still clips and reports a norm.
    (0.64 here; 0.97 if all gradients are computed and the optimizer masks most of them.)"""
    assert flops(STAGE_1) <= 0.70 * flops(EVERYTHING)


@pytest.mark.parametrize("table", [STAGE_1, STAGE_2, EVERYTHING], ids=["stage 1", "stage 2", "everything"])
def test_model_flops_match_the_compiled_step(table):
    """XLA also counts norms, softmax and the optimizer; `model_flops` counts matrix products only."""
    shapes, _ = abstract_model(WIDE)
    trained = {p for p, rate in learning_rates_per_parameter(shapes, table).items() if rate is not None}
    counted = model_flops(WIDE, {p: x.size for p, x in shapes.items()}, trained, rows=8, length=32, images=1)
    assert 0.8 < counted / flops(table) < 1.0


# ------------------------------------------------------------------------------------------------------ metrics


def test_metrics_cover_the_global_batch_before_clipping(at_once):
    run = setup(EVERYTHING, accumulation=4)
    with jax.set_mesh(run.mesh):
        _, metrics = run.step(run.state, run.batch(16))
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in at_once[1].values()))
    assert norm > 1.1, "clipping to 1 would show"
    assert metrics.keys() == {"loss", "grad_norm", "targets", "applied", "norms"}
    norms = [np.linalg.norm(at_once[1][path].astype(np.float64)) for path in sorted(at_once[1])]
    np.testing.assert_allclose(metrics["norms"], norms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], at_once[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert float(metrics["targets"]) == make_batch(16).target_mask[:, 1:].sum()


def test_token_losses_are_float32_with_bfloat16_compute():
    config = changed(dtype="bfloat16", feature_dtype="bfloat16")
    out = jax.eval_shape(lambda p, b: token_losses(Llava(config), nested(p), b, 2), random_params(EVEN), make_batch(2))
    assert out.dtype == jnp.float32 and out.shape == ()
