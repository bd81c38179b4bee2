"""The KV cache of the decoder. Axis letters: see layers."""

import jax
import jax.numpy as jnp
from flax import struct

from llava_jax.config.architectures import LlamaConfig
from llava_jax.models.matmul import dot, dtype_of
from llava_jax.runtime.sharding import constrain

# One write for each row of a decode step, instead of a loop over rows that a TPU's compiler makes of a scatter: 0.12 ms
# less for each layer of 8 rows (7B, v5e).
UNROLLED_ROWS = 32


class KVCache(struct.PyTreeNode):
    """Keys and values of the tokens so far. All rows write to the same slot. A row's padding is segment 0, to which no
    token attends, so rows of unequal length decode together: `positions` counts, not the slot. A cache of `at_lengths`
    has rows that write to slots of their own.

    With a `part` of one row's prompt, a step has one row of N + C tokens: one for each of the N rows of `index`, then
    the C of the part. So the weights are read once for all of them.

    Every layer has its own arrays, with heads before slots: a step writes one slot in place and reads the rest without
    a copy. One array for all layers, or slots before heads, would be copied for every token.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]  # per layer keys and values, [max(B, 2), K, S, E] each
    positions: jax.Array  # int32[B, S]
    segment_ids: jax.Array  # int32[B, S], 0 at empty slots and padding
    index: jax.Array  # int32[], the next slot, or int32[B], that of every row
    part: tuple[jax.Array, jax.Array] | None = None  # int32[] each: its row, and the slot of its first token

    @classmethod
    def empty(cls, config: LlamaConfig, batch: int, length: int, dtype: str) -> "KVCache":
        """An empty cache of `length` slots, for prompt and answer together: writing beyond the end is not detected."""
        rows = max(batch, 2)  # XLA drops an axis of size one, and then transposes the whole cache for every token
        zeros = lambda: jnp.zeros((rows, config.kv_heads, length, config.head_size), dtype_of(dtype))  # noqa: E731
        slots = jnp.zeros((batch, length), jnp.int32)
        return cls(tuple((zeros(), zeros()) for _ in range(config.layers)), slots, slots, jnp.zeros((), jnp.int32))

    @classmethod
    def at_lengths(cls, layers: tuple[tuple[jax.Array, jax.Array], ...], lengths: jax.Array, part=None) -> "KVCache":
        """A cache in which slot i holds position i, and row b continues at its lengths[b]: int32[B], or int32[0] for a
        part alone. What lies beyond is never attended to, because its positions are later."""
        rows = len(lengths) if part is None else 1
        slots = jnp.broadcast_to(jnp.arange(layers[0][0].shape[2]), (rows, layers[0][0].shape[2]))
        return cls(layers, slots, jnp.ones_like(slots), lengths, part)

    def with_capacity(self, length: int) -> "KVCache":
        """A copy with `length` more slots at the end."""
        extend = lambda x, axis: jnp.pad(x, [(0, length if i == axis else 0) for i in range(x.ndim)])  # noqa: E731
        layers = tuple((_on_mesh(extend(k, 2)), _on_mesh(extend(v, 2))) for k, v in self.layers)
        return KVCache(layers, extend(self.positions, 1), extend(self.segment_ids, 1), self.index)

    def write_tokens(self, positions: jax.Array, segment_ids: jax.Array) -> "KVCache":
        """Records T tokens (int32[B, T] each) in the next T slots; the blocks write their keys and values."""
        if self.index.ndim:  # of `at_lengths`: the positions of all slots are known
            return self.replace(index=self.index + (positions.shape[1] if self.part is None else 1))
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, self.index))  # noqa: E731
        return self.replace(
            positions=write(self.positions, positions),
            segment_ids=write(self.segment_ids, segment_ids),
            index=self.index + positions.shape[1],
        )


def _on_mesh(cache: jax.Array) -> jax.Array:
    return constrain(cache, "batch", "kv_heads", None, None)


def write_and_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, past: tuple[jax.Array, jax.Array], mask: jax.Array, cache: KVCache
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Writes keys and values [B, T, K, E] to those of one layer, `past`, and attends to them -> (as q, the new past).
    q: [B, T, H, E]. mask: bool[B, T, S]. cache: says where; its layers are not used. With a part, B = 1."""
    if cache.part is None:
        past = write_cache(past[0], k, cache.index), write_cache(past[1], v, cache.index)
        return attend_cache(q, *past, mask), past
    rows, results = cache.index.shape[0], []
    if rows:
        split = lambda x: x[0, :rows, None]  # noqa: E731
        past = write_cache(past[0], split(k), cache.index), write_cache(past[1], split(v), cache.index)
    # After the rows: the one that is being read has no token of its own yet, and wrote to the part's first slot.
    row, start = cache.part
    past = write_cache(past[0], k[:, rows:], start, row), write_cache(past[1], v[:, rows:], start, row)
    if rows:
        results.append(attend_cache(split(q), *past, split(mask)).swapaxes(0, 1))
    own = (jax.lax.dynamic_slice_in_dim(x, row, 1) for x in past)
    results.append(attend_cache(q[:, rows:], *own, mask[:, rows:]))
    return jnp.concatenate(results, axis=1), past


def write_cache(cache: jax.Array, new: jax.Array, slot: jax.Array, first: jax.Array | int = 0) -> jax.Array:
    """Writes new [B, T, K, E] to one layer's keys or values [max(B, 2), K, S, E], from `slot` on (int32[], or int32[B]:
    every row at its own). first: the row of the first new one, if `slot` is one for all."""

    def plain(cache, new):
        if slot.ndim == 0:
            return jax.lax.dynamic_update_slice(cache, new, (first, 0, slot, 0))
        rows = cache.shape[0]  # the second of a single row is never read
        new, slots = jnp.broadcast_to(new, (rows, *new.shape[1:])), jnp.broadcast_to(slot, rows)
        if rows <= UNROLLED_ROWS:
            for row in range(rows):
                cache = jax.lax.dynamic_update_slice(cache, new[row : row + 1], (row, 0, slots[row], 0))
            return cache
        write = jax.vmap(lambda row, new, slot: jax.lax.dynamic_update_slice(row, new, (0, slot, 0)))
        return write(cache, new, slots)

    def as_bits(cache, new):
        return plain(cache.view(jnp.uint16), new.view(jnp.uint16)).view(jnp.bfloat16)

    new = new.swapaxes(1, 2).astype(cache.dtype)
    if cache.dtype == jnp.bfloat16:
        # To write bfloat16, XLA for CPU converts the whole cache to float32 and back; a TPU copies it for `view`.
        return _on_mesh(jax.lax.platform_dependent(cache, new, cpu=as_bits, default=plain))
    return _on_mesh(plain(cache, new))


def attend_cache(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`reference_attention` on a cache: q [B, T, H, E], k, v [max(B, 2), K, S, E], mask bool[B, T, S] -> as q."""
    b, t, h, e = q.shape
    heads = k.shape[1]
    rows = k.shape[0] if t == 1 else b
    q = jnp.broadcast_to(q.reshape(b, t, heads, h // heads, e), (rows, t, heads, h // heads, e))
    if t == 1 and q.dtype == jnp.float32:
        y = jax.lax.platform_dependent(q, k, v, mask, cpu=_attend_by_elements, default=_attend_by_matmuls)
    else:
        y = _attend_by_matmuls(q, k[:rows], v[:rows], mask)
    return y[:b].reshape(b, t, h, e)


def _attend_by_matmuls(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, T, K, G, E]; k, v [B, K, S, E] -> as q.

    Both matmuls have their axes in the order of the cache, and the cache as the right operand. Otherwise XLA transposes
    the whole cache first, for every token (and has no bfloat16 matmul at all on CPU).
    """
    dtype, t, group, e = q.dtype.name, q.shape[1], *q.shape[3:]
    if t == 1 and group == 1:
        q = jnp.repeat(q, 2, axis=1)  # a matmul of one row converts (CPU) or copies (TPU) the whole cache first
    scores = dot("btkge,bkse->bktgs", q, k, dtype, out="float32") / e**0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return dot("bktgs,bkse->bktge", weights, v, dtype)[:, :, :t].swapaxes(1, 2)


def _attend_by_elements(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`_attend_by_matmuls` of one token as two fused loops over the cache, for a CPU: it runs the small float32 matmuls
    of all rows and heads one after the other on one core, and takes twice as long."""
    scores = (q[:, 0, :, :, None] * k[:, :, None]).sum(axis=-1) / q.shape[-1] ** 0.5  # [B, K, G, S]
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return (weights[..., None] * v[:, :, None]).sum(axis=3)[:, None]


def unstack(stacked: dict) -> tuple[dict, ...]:
    """Splits the parameters of all blocks, [L, ...] each, into one tree per block."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count))
