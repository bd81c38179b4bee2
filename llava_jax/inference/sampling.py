"""Chooses tokens from logits: greedy, temperature, top-k, top-p. A row's sample does not depend on its batch."""

import jax
import jax.numpy as jnp
from flax import struct


class SamplingParams(struct.PyTreeNode):
    """How each row chooses its token. All fields are arrays: new values compile nothing, and the rows may differ."""

    temperature: jax.Array  # float32[B]; 0 is greedy, whatever the other fields are
    top_k: jax.Array  # int32[B]; 0 for all
    top_p: jax.Array  # float32[B]; 1 for all
    seed: jax.Array  # uint32[B]
    row: jax.Array  # uint32[B]; equal seeds and rows give equal random numbers


def choose(logits: jax.Array, sampling: SamplingParams, positions: jax.Array) -> jax.Array:
    """The next token of every row: logits float32[B, V], positions int32[B] of the new tokens -> int32[B].

    Logits are divided by the temperature. Then the top_k likeliest tokens remain, and of those the fewest whose
    probabilities sum to top_p or more, at least one; ties go to the lower id. (transformers applies the three in this
    order too.) One uniform number, which depends only on seed, row and position, selects a token.

        probabilities .5 .2 .2 .1, top_k 3, top_p .6:   .5 .2 .2 of .9 -> .56 is not enough, .56 + .22 is -> ids 0, 1
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    is_sampled = sampling.temperature > 0
    sampled = lambda: jnp.where(is_sampled, _sample(logits, sampling, positions), likeliest)  # noqa: E731
    # Sorting a vocabulary costs more than a small model.
    return jax.lax.cond(is_sampled.any(), sampled, lambda: likeliest)


def _sample(logits, sampling, positions):
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    scores = jnp.take_along_axis(logits, order, axis=-1)
    scores = (scores - scores[:, :1]) / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    rank = jnp.arange(logits.shape[-1])
    top_k = jnp.where(sampling.top_k > 0, sampling.top_k, logits.shape[-1])
    weights = jnp.where(rank < top_k[:, None], jnp.exp(scores), 0)

    before = jnp.cumsum(weights, axis=-1) - weights
    top_p = jnp.where(sampling.top_p < 1, sampling.top_p, jnp.inf)[:, None]
    kept = (before < top_p * weights.sum(axis=-1, keepdims=True)) | (rank == 0)
    sums = jnp.cumsum(jnp.where(kept, weights, 0), axis=-1)

    uniform = jax.vmap(_uniform)(sampling.seed, sampling.row, positions)
    chosen = (sums <= uniform[:, None] * sums[:, -1:]).sum(axis=-1)  # the first whose cumulative weight is above it
    return jnp.take_along_axis(order, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _uniform(seed, row, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)
    return jax.random.uniform(key)
