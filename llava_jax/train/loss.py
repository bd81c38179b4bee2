"""The loss of a batch: cross entropy over target tokens, the vocabulary whole or in chunks."""

import jax
import jax.numpy as jnp
import optax

from llava_jax.models.llava import Llava
from llava_jax.text.token_row import Batch


def token_losses(model: Llava, params: dict, batch: Batch, chunks: int) -> jax.Array:
    """Sum over target tokens of the next-token cross entropy, float32 scalar.

    params: nested tree. Position t predicts token t+1 where `predicts_target` says so. With `chunks` > 1 the [B, T, V]
    logits exist only for T / chunks positions at a time, and are made again in the backward pass.
    """
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.images, batch.positions, batch.segment_ids, method=Llava.hidden
    )
    # Shifting the targets, not the states, keeps T (and so the chunks and the sharding) as it is.
    targets, mask = jnp.roll(batch.tokens, -1, axis=1), predicts_target(batch)

    def chunk_loss(args):
        hidden, targets, mask = args
        logits = model.apply({"params": params}, hidden, method=Llava.logits)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mask, targets, 0))
        return jnp.sum(jnp.where(mask, losses, 0.0))

    if chunks == 1:
        return chunk_loss((hidden, targets, mask))

    def split(x):  # [B, T, ...] -> [chunks, B, T / chunks, ...]
        return x.reshape(x.shape[0], chunks, -1, *x.shape[2:]).swapaxes(0, 1)

    def add(total, args):
        return total + jax.checkpoint(chunk_loss)(args), None

    return jax.lax.scan(add, jnp.zeros(()), (split(hidden), split(targets), split(mask)))[0]


def predicts_target(batch: Batch) -> jax.Array:
    """bool[B, T]: position t is to predict token t+1, which is a target and of the same segment.

    The first token of a segment is predicted by nobody, wherever the segment lies: what is before it in a packed row is
    another sample.
    """
    is_target, segment_ids = (jnp.roll(x, -1, axis=1) for x in (batch.target_mask, batch.segment_ids))
    return (is_target & (segment_ids == batch.segment_ids)).at[:, -1].set(False)


def count_targets(batch: Batch) -> jax.Array:
    """Target tokens that are predicted, float32 scalar."""
    return jnp.sum(predicts_target(batch), dtype=jnp.float32)
