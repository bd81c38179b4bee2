"""Decoding on the device for requests that come and go: fixed slots, each with a conversation of its own.

    slots = empty_slots(config, count, length)
    slots, chosen = read_chunk(model, view, slots, pool, chunk)        # a part of a prompt; one compilation per size
    slots, chosen = decode_slots(model, view, slots, active, wanted)   # one token for every active slot
    slots, chosen = read_chunk(model, view, slots, pool, chunk, active)  # both at once

Slot i of the cache is position i of its row, and the shapes never change. So the numbers of a row depend neither on the
other rows nor on how its prompt was divided, as far as the matmuls of the device keep rows apart.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from llava_jax.config.architectures import ModelConfig
from llava_jax.inference.decode import last_logits
from llava_jax.inference.sampling import SamplingParams, choose
from llava_jax.models.cache import KVCache
from llava_jax.models.llava import Llava
from llava_jax.runtime.sharding import constrain, logical_rules

TOP = 20  # tokens whose log-probabilities a step can return


class Slots(struct.PyTreeNode):
    """B conversations between two steps."""

    layers: tuple[tuple[jax.Array, jax.Array], ...]  # per layer keys and values, [max(B, 2), K, S, E] each
    token: jax.Array  # int32[B], the last token of each conversation, which is not in the cache yet
    length: jax.Array  # int32[B], tokens in the cache, and so the position of `token`
    sampling: SamplingParams  # of every slot


class Chosen(struct.PyTreeNode):
    """What a step chose, for each of its rows."""

    token: jax.Array  # int32[B]
    is_finite: jax.Array  # bool[B], whether all logits were numbers; else the token means nothing
    logprob: jax.Array  # float32[B] of the token, before temperature, top-k and top-p; 0 where not wanted
    top_ids: jax.Array  # int32[B, TOP], the likeliest tokens
    top_logprobs: jax.Array  # float32[B, TOP]


class Chunk(struct.PyTreeNode):
    """A part of one prompt."""

    slot: jax.Array  # int32[]
    start: jax.Array  # int32[], its first position
    count: jax.Array  # int32[], tokens that are not padding, at least 1
    tokens: jax.Array  # int32[C]
    features: jax.Array  # int32[C], the row of the feature pool for each placeholder token
    sampling: SamplingParams  # of the slot, each float32[1] etc.
    wants_logprobs: jax.Array  # bool[], also for the active slots beside it


def _chosen(logits, sampling, positions, wants_logprobs) -> Chosen:
    token = choose(logits, sampling, positions)

    def logprobs():
        values = jax.nn.log_softmax(logits)
        top, ids = jax.lax.top_k(values, min(TOP, logits.shape[-1]))
        return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0], ids, top

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(logprobs))
    own, ids, top = jax.lax.cond(wants_logprobs, logprobs, lambda: nothing)
    return Chosen(token, jnp.isfinite(logits).all(axis=-1), own, ids, top)


@partial(jax.jit, static_argnames=("config", "count", "length"))
def empty_slots(config: ModelConfig, count: int, length: int) -> Slots:
    """`count` slots of `length` tokens each."""
    layers = KVCache.empty(config.llm, count, length, config.dtype).layers
    zeros = lambda dtype: jnp.zeros(count, dtype)  # noqa: E731
    sampling = SamplingParams(*map(zeros, (jnp.float32, jnp.int32, jnp.float32, jnp.uint32, jnp.uint32)))
    return _on_mesh(Slots(layers, zeros(jnp.int32), zeros(jnp.int32), sampling))


def _on_mesh(slots: Slots) -> Slots:
    """Every program returns them with the same sharding, or the next one would be compiled again."""
    with logical_rules():
        layers = jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", None, None), slots.layers)
        others = jax.tree.map(lambda x: constrain(x, None), (slots.token, slots.length, slots.sampling))
    return Slots(layers, *others)


@partial(jax.jit, static_argnames="model", donate_argnames="slots")
def decode_slots(
    model: Llava, params: dict, slots: Slots, active: jax.Array, wants_logprobs: jax.Array
) -> tuple[Slots, Chosen]:
    """One more token for every active slot. Donates `slots`.

    params: a decode_view. active: bool[B]. An inactive row writes to the next position of its cache, which is written
    again before anything attends to it.
    """
    b, size = slots.token.shape[0], model.config.image_size
    cache = KVCache.at_lengths(slots.layers, slots.length)
    inputs = slots.token[:, None], jnp.zeros((b, 0, size, size, 3), jnp.uint8), slots.length[:, None]
    with logical_rules():
        arrays = *inputs, jnp.ones((b, 1), jnp.int32), cache
        hidden, cache = model.apply({"params": params}, *arrays, method=Llava.hidden)
    chosen = _chosen(last_logits(model, params, hidden[:, 0]), slots.sampling, slots.length + 1, wants_logprobs)
    token = jnp.where(active, chosen.token, slots.token)
    return _on_mesh(slots.replace(layers=cache.layers, token=token, length=slots.length + active)), chosen


@partial(jax.jit, static_argnames="model", donate_argnames="slots")
def read_chunk(
    model: Llava, params: dict, slots: Slots, pool: jax.Array, chunk: Chunk, active: jax.Array | None = None
) -> tuple[Slots, Chosen]:
    """Reads a part of a prompt into its slot, and chooses the token after it: that of the last part counts. Donates
    `slots`.

    pool: dtype[P, D], the features of images. The slot must have room for all C tokens, padding included.
    active: None, or bool[B]: every active slot gets its next token too, as from `decode_slots`, and `Chosen` has B + 1
    rows, that of the chunk last. Each weight is read once for both, which is most of the work for a few tokens.
    """
    rows = 0 if active is None else slots.token.shape[0]
    positions = jnp.concatenate([slots.length[:rows], chunk.start + jnp.arange(chunk.tokens.shape[0])])
    cache = KVCache.at_lengths(slots.layers, slots.length[:rows], (chunk.slot, chunk.start))
    with logical_rules():
        tokens = jnp.concatenate([slots.token[:rows], chunk.tokens])
        features = jnp.take(pool, jnp.pad(chunk.features, (rows, 0)), axis=0, mode="clip")
        arrays = tokens[None], features[None], positions[None], jnp.ones_like(tokens)[None]
        hidden, cache = model.apply({"params": params}, *arrays, cache, method=Llava.hidden_of_features)
    last = jax.lax.dynamic_slice_in_dim(hidden[0], rows + chunk.count - 1, 1)
    # At least two rows: a matmul with a single row does not use the matrix units.
    last = jnp.concatenate([hidden[0, :rows] if rows else last, last])
    logits = last_logits(model, params, last)[0 if rows else 1 :]
    length = chunk.start + chunk.count
    sampling = jax.tree.map(lambda x, new: jnp.concatenate([x[:rows], new]), slots.sampling, chunk.sampling)
    after = jnp.append(slots.length[:rows] + 1, length)
    chosen = _chosen(logits, sampling, after, chunk.wants_logprobs)

    put = lambda x, value: x.at[chunk.slot].set(value)  # noqa: E731
    if rows:
        token, lengths = jnp.where(active, chosen.token[:-1], slots.token), slots.length + active
    else:
        token, lengths = slots.token, slots.length
    slots = Slots(
        layers=cache.layers,
        token=put(token, chosen.token[-1]),
        length=put(lengths, length),
        sampling=jax.tree.map(lambda x, new: put(x, new[0]), slots.sampling, chunk.sampling),
    )
    return _on_mesh(slots), chosen


@partial(jax.jit, static_argnames="model", donate_argnames="pool")
def encode_image(model: Llava, params: dict, pool: jax.Array, image: jax.Array, row: jax.Array) -> jax.Array:
    """Writes the features of an image (uint8 or float [H, W, 3]) to the pool, from `row` on. Donates the pool."""
    with logical_rules():
        features = model.apply({"params": params}, image[None, None], method=Llava.encode_images)
        return constrain(jax.lax.dynamic_update_slice(pool, features[0].astype(pool.dtype), (row, 0)), None, None)


@partial(jax.jit, static_argnames="length")
def copy_prefix(slots: Slots, slot: jax.Array, length: int) -> tuple:
    """The keys and values of the first `length` positions of a slot: per layer two arrays [K, length, E]."""
    cut = lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False)[:, :length]  # noqa: E731
    with logical_rules():
        return jax.tree.map(lambda x: constrain(cut(x), "kv_heads", None, None), slots.layers)


@partial(jax.jit, donate_argnames="slots")
def insert_prefix(slots: Slots, prefix: tuple, slot: jax.Array, length: jax.Array) -> Slots:
    """Writes what `copy_prefix` returned to the first positions of a slot, of which `length` count. Donates `slots`."""
    write = lambda x, new: jax.lax.dynamic_update_slice(x, new[None], (slot, 0, 0, 0))  # noqa: E731
    layers = jax.tree.map(write, slots.layers, prefix)
    # The length too: steps of other slots write to the position after it, until the rest of the prompt is read.
    return _on_mesh(slots.replace(layers=layers, length=slots.length.at[slot].set(length)))


@partial(jax.jit, donate_argnames="slots")
def clear_slot(slots: Slots, slot: jax.Array) -> Slots:
    """Zeros in a slot whose values are not numbers: a masked NaN would still be one. Donates `slots`."""
    zero = lambda x: jax.lax.dynamic_update_slice(x, jnp.zeros_like(x[:1]), (slot, 0, 0, 0))  # noqa: E731
    return _on_mesh(slots.replace(layers=jax.tree.map(zero, slots.layers)))
