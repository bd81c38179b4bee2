"""The loss of a batch: cross entropy over the target tokens, optionally in chunks of positions."""

import jax
import jax.numpy as jnp
import optax

from llava_jax.models.llava import Llava
from llava_jax.text.token_row import Batch


def token_losses(model: Llava, params: dict, batch: Batch, chunks: int) -> jax.Array:
    """Sum of the next-token cross entropy over the target tokens, float32 scalar.

    params: nested tree. Position t predicts token t+1 where `predicts_target` is True. With `chunks` > 1, only the
    logits of T / chunks positions exist at a time, and the backward pass recomputes them.
    """
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.images, batch.positions, batch.segment_ids, method=Llava.hidden
    )
    # Shifting the targets instead of the hidden states keeps T, and so the chunks and the sharding.
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
    """bool[B, T]: whether token t+1 is a target of the same segment, so that position t predicts it.

    So the first token of a segment is never predicted: in a packed row the token before it is of another sample.
    """
    is_target, segment_ids = (jnp.roll(x, -1, axis=1) for x in (batch.target_mask, batch.segment_ids))
    return (is_target & (segment_ids == batch.segment_ids)).at[:, -1].set(False)


def count_targets(batch: Batch) -> jax.Array:
    """Number of predicted target tokens, float32 scalar."""
    return jnp.sum(predicts_target(batch), dtype=jnp.float32)
