"""Decoding on the device with an explicit KV cache: a prefill, then one token per row and step.

view = decode_view(params)                            # once per model
state = prefill(model, view, prompt, ...)             # one compilation per shape of the prompts
state = decode(model, view, state, steps, finished)   # one more, whatever `steps` is
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from llava_jax.inference.sampling import SamplingParams, choose
from llava_jax.models.cache import KVCache, unstack
from llava_jax.models.llava import Llava
from llava_jax.runtime.sharding import logical_rules
from llava_jax.text.token_row import Batch


class DecodeState(struct.PyTreeNode):
    """A batch between two steps. `count` tokens of each answer are chosen; the last one is not in the cache yet."""

    cache: KVCache
    answer: jax.Array  # int32[B, N], stop_ids[0] where no token is chosen
    token: jax.Array  # int32[B], the last token of each answer
    position: jax.Array  # int32[B], its position in its row
    count: jax.Array  # int32[]
    done: jax.Array  # bool[B]
    limit: jax.Array  # int32[B], the most tokens of each answer
    stop_ids: jax.Array  # int32[k]
    sampling: SamplingParams


def decode_view(params: dict) -> dict:
    """The nested parameter tree as decoding uses it: one tree per block of the LLM instead of stacked arrays.

    With stacked arrays, each step would first copy every weight out of its stack. The view holds a second copy of the
    LLM's blocks; drop `params` where memory is short. A view is returned as it is.
    """
    if isinstance(params["llm"]["layers"], tuple):
        return params
    return params | {"llm": params["llm"] | {"layers": _unstack(params["llm"]["layers"])}}


_unstack = jax.jit(unstack)


def _hidden(model: Llava, params: dict, *arrays):
    with logical_rules():
        return model.apply({"params": params}, *arrays, method=Llava.hidden)


def last_logits(model: Llava, params: dict, hidden: jax.Array) -> jax.Array:
    """[B, D] -> float32[B, V]."""
    with logical_rules():
        return model.apply({"params": params}, hidden[:, None], method=Llava.logits)[:, 0]


@partial(jax.jit, static_argnames=("model", "new"))
def prefill(
    model: Llava,
    params: dict,
    prompt: Batch,
    sampling: SamplingParams,
    stop_ids: jax.Array,
    limit: jax.Array,
    new: int,
) -> DecodeState:
    """Reads the prompts, encodes their images, and chooses the first token of every answer.

    params: a decode_view. prompt: one segment per row; targets are not read. stop_ids: int32[k], k >= 1, end an answer
    and are part of it. limit: int32[B], each up to `new`, the number of slots that are added. Rows of only padding
    (which fill a batch) are done before they start.
    """
    b, t = prompt.tokens.shape
    lengths = prompt.segment_ids.sum(axis=1)
    cache = KVCache.empty(model.config.llm, b, t, model.config.dtype)
    arrays = prompt.tokens, prompt.images, prompt.positions, prompt.segment_ids
    hidden, cache = _hidden(model, params, *arrays, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    with logical_rules():
        cache = cache.with_capacity(new)  # only now, so that the prompt does not attend over the answer's slots
    state = DecodeState(
        cache=cache,
        answer=jnp.full((b, new), stop_ids[0], jnp.int32),
        token=jnp.full(b, stop_ids[0], jnp.int32),
        position=lengths - 1,
        count=jnp.int32(0),
        done=(lengths == 0) | (limit == 0),
        limit=limit,
        stop_ids=stop_ids,
        sampling=sampling,
    )
    return _choose_next(state, last_logits(model, params, last), cache)


def _choose_next(state: DecodeState, logits: jax.Array, cache: KVCache) -> DecodeState:
    """Chooses the next token of every row that is not done."""
    token = choose(logits, state.sampling, state.position + 1)
    token = jnp.where(state.done, state.stop_ids[0], token)
    count = state.count + 1
    return state.replace(
        cache=cache,
        answer=jax.lax.dynamic_update_slice(state.answer, token[:, None], (0, state.count)),
        token=token,
        position=state.position + 1,
        count=count,
        done=state.done | jnp.isin(token, state.stop_ids) | (count >= state.limit),
    )


def _step(model: Llava, params: dict, state: DecodeState) -> DecodeState:
    """One more token per row: runs the last token through the model and chooses the next."""
    b, size = state.token.shape[0], model.config.image_size
    no_images = jnp.zeros((b, 0, size, size, 3), jnp.uint8)
    inputs = state.token[:, None], no_images, state.position[:, None], jnp.ones((b, 1), jnp.int32)
    hidden, cache = _hidden(model, params, *inputs, state.cache)
    return _choose_next(state, last_logits(model, params, hidden[:, 0]), cache)


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def decode(model: Llava, params: dict, state: DecodeState, steps: jax.Array, finished: jax.Array) -> DecodeState:
    """Up to `steps` (int32[]) more tokens per row, fewer if all rows are done. Donates `state`.

    finished: bool[B], rows that the caller has ended, for example at a stop string.
    """
    end = state.count + steps
    state = state.replace(done=state.done | finished)
    is_running = lambda s: (s.count < end) & ~jnp.all(s.done)  # noqa: E731
    return jax.lax.while_loop(is_running, partial(_step, model, params), state)
