"""The train step and the evaluation step: pure functions of (state, batch).

Legend: B rows, T tokens, D width, V vocabulary, A micro-batches.
"""

import math

import jax
import jax.numpy as jnp
import optax

from llava_jax.models.llava import Llava
from llava_jax.models.params import nested
from llava_jax.runtime.compilation import compiler_options
from llava_jax.runtime.sharding import constrain, logical_rules
from llava_jax.text.token_row import Batch
from llava_jax.train.loss import count_targets, token_losses
from llava_jax.train.state import TrainState, shardings_of


def gradients(
    model: Llava, trainable: dict, frozen: dict, batch: Batch, accumulation: int, chunks: int, shardings: dict
):
    """(loss, gradients of the trainable parameters, number of target tokens).

    shardings: path -> NamedSharding of each trainable parameter, also used for its gradient and the sum of it.

    The loss is the sum over all target tokens divided by their number in the *global* batch, also with micro-batches,
    so accumulation only saves memory. (The original averages the micro-batch means, which weights short answers more.)
    """
    total = count_targets(batch)

    def loss_fn(trainable, part):
        # Only `trainable` is differentiated: frozen parameters have no gradients, not even for the norm.
        return token_losses(model, nested({**frozen, **trainable}), part, chunks) / jnp.maximum(total, 1.0)

    def loss_and_gradients(part):
        loss, grads = jax.value_and_grad(loss_fn)(trainable, part)
        # Without the constraint, the embedding's gradient would be replicated over `tensor`.
        return loss, jax.lax.with_sharding_constraint(grads, shardings)

    if accumulation == 1:
        return *loss_and_gradients(batch), total

    def split(x):  # micro-batch i has rows i, i+A, i+2A, ..., so that each is spread over all devices
        parts = x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", *[None] * (x.ndim - 1))

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, loss_and_gradients(part)), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
    (loss, grads), _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    return loss, grads, total


def make_train_step(
    model: Llava, tx: optax.GradientTransformation, abstract: TrainState, accumulation: int, chunks: int
):
    """jitted (state, batch, limit=inf) -> (state, metrics). The state is donated. `abstract` has the devices, which
    determine the compiler options.

    metrics: float32 scalars `loss`, `grad_norm` (before clipping, trained parameters only), `targets`, and `replaced`
    and `stop` where the batch has them; bool scalar `applied`; `norms`, float32[trained parameters], the norm of each
    gradient in the order of the sorted paths.

    A step with a non-finite loss or gradient, or a loss above `limit` (float32 scalar), is not applied: parameters and
    optimizer state stay unchanged, including its counts. So the schedule and Adam's bias correction count applied
    updates only, as if the bad batch did not exist. Only `state.step` advances, in step with the data.
    """

    shardings = shardings_of(abstract)

    def step(state: TrainState, batch: Batch, limit: float | jax.Array = math.inf):
        with logical_rules():
            loss, grads, targets = gradients(
                model, state.trainable, state.frozen, batch, accumulation, chunks, shardings.trainable
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        grad_norm = optax.global_norm(grads)
        # A NaN or infinity in any gradient makes the norm non-finite. So does a norm too large for float32, by which
        # clipping would divide.
        applied = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= limit)
        # Selected, not multiplied: 0 * NaN is NaN.
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old), (trainable, opt_state), (state.trainable, state.opt_state)
        )
        norms = jnp.stack([optax.global_norm(grads[path]) for path in sorted(grads)])
        metrics = {"loss": loss, "grad_norm": grad_norm, "targets": targets, "applied": applied, "norms": norms}
        # Summed here, so that every process gets the total. In a fixed order, because all processes must compile the
        # same program; the order of a set differs between them.
        for name in ("replaced", "stop"):
            if (counts := getattr(batch, name)) is not None:
                metrics[name] = jnp.sum(counts, dtype=jnp.float32)
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    # Without out_shardings the state may return with other shardings, and the second step compiles again. The metrics
    # are replicated, like `step`, so that every process can read them.
    platform = shardings.step.mesh.devices.flat[0].platform
    return jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, shardings.step),
        compiler_options=compiler_options(platform, accumulation),
    )  # fmt: skip


def make_eval_step(model: Llava, chunks: int):
    """jitted (flat params, batch) -> (sum of target losses, number of targets)."""

    @jax.jit
    def step(params, batch: Batch):
        with logical_rules():
            return token_losses(model, nested(params), batch, chunks), count_targets(batch)

    return step
