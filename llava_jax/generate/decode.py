"""Greedy decoding with the explicit key/value cache: one prefill, then a token per row and step, all on the device."""

from functools import partial

import jax
import jax.numpy as jnp

from llava_jax.models.llama import Cache
from llava_jax.models.llava import Llava
from llava_jax.sharding import logical_rules


@partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def greedy(
    model: Llava, params: dict, prompt: dict[str, jax.Array], stop_ids: jax.Array, max_new_tokens: int
) -> jax.Array:
    """Most likely continuation of every prompt: int32[B, max_new_tokens], filled with stop_ids[0] behind a stop.

    params: nested tree. prompt: `tokens`, `positions`, `segment_ids` int32[B, T] right-padded (segment 0), `images`
    uint8[B, N, H, W, 3]. stop_ids: int32[k], k >= 1; the stop token itself is part of the result. Rows of unequal
    length decode together: every row writes the same cache slot, and positions, not slots, say what follows what.
    """
    with logical_rules():
        b, t = prompt["tokens"].shape
        lengths = prompt["segment_ids"].sum(axis=1)
        cache = Cache.empty(model.config.llm, b, t + max_new_tokens, model.config.dtype)
        no_images = prompt["images"][:, :0]

        def forward(tokens, images, positions, segment_ids, cache):
            return model.apply(
                {"params": params}, tokens, images, positions, segment_ids, cache, method=Llava.hidden
            )  # fmt: skip

        def choose(hidden):  # [B, D] -> int32[B]
            return jnp.argmax(model.apply({"params": params}, hidden[:, None], method=Llava.logits)[:, 0], axis=-1)

        hidden, cache = forward(prompt["tokens"], prompt["images"], prompt["positions"], prompt["segment_ids"], cache)
        last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
        first = choose(last).astype(jnp.int32)
        answer = jnp.full((b, max_new_tokens), stop_ids[0], jnp.int32).at[:, 0].set(first)

        def more(carry):
            n, _, _, done, _ = carry
            return (n < max_new_tokens) & ~jnp.all(done)

        def one(carry):
            n, token, answer, done, cache = carry
            position = (lengths + n - 1)[:, None]
            hidden, cache = forward(token[:, None], no_images, position, jnp.ones_like(position), cache)
            token = jnp.where(done, stop_ids[0], choose(hidden[:, 0])).astype(jnp.int32)
            answer = jax.lax.dynamic_update_slice(answer, token[:, None], (0, n))
            return n + 1, token, answer, done | jnp.isin(token, stop_ids), cache

        # A row of padding alone (a batch's filler) is done before it starts.
        done = jnp.isin(first, stop_ids) | (lengths == 0)
        return jax.lax.while_loop(more, one, (jnp.int32(1), first, answer, done, cache))[2]
