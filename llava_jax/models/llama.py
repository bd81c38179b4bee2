"""The LLaMA decoder (arXiv 2302.13971): embedding, blocks under one scan, head, and the key/value cache.

Also Llama 2 and 3, Vicuna, SmolLM2, and Qwen2 (biases on q, k, v). Axis letters: see layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from llava_jax.config.architectures import LlamaConfig, ModelConfig
from llava_jax.models import attention
from llava_jax.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    attention_mask,
    dot,
    dtype_of,
    name_qkv,
    rope,
    rope_rotation,
    stacked,
)
from llava_jax.runtime.sharding import constrain


class Cache(struct.PyTreeNode):
    """Keys and values of the tokens so far. All rows write to the same slot; a row's padding stays in segment 0, and
    nobody sees segment 0. So rows of unequal length decode together: what counts is `positions`, not the slot.

    Every layer has arrays of its own, heads before slots: a step then writes one slot in place and reads the rest where
    it lies. One array for all layers, or slots before heads, would be copied for every token.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]  # per layer keys and values, [max(B, 2), K, S, E] each
    positions: jax.Array  # int32[B, S]
    segment_ids: jax.Array  # int32[B, S], 0 where nothing or padding is written
    index: jax.Array  # int32[], the next slot

    @classmethod
    def empty(cls, config: LlamaConfig, batch: int, length: int, dtype: str) -> "Cache":
        """`length` slots for `batch` rows: prompt and answer together, for writing beyond the end is not detected."""
        rows = max(batch, 2)  # XLA drops an axis of one, and then turns the whole cache around for every token
        zeros = lambda: jnp.zeros((rows, config.kv_heads, length, config.head_size), dtype_of(dtype))  # noqa: E731
        slots = jnp.zeros((batch, length), jnp.int32)
        return cls(tuple((zeros(), zeros()) for _ in range(config.layers)), slots, slots, jnp.zeros((), jnp.int32))

    def longer(self, length: int) -> "Cache":
        """The same with `length` more slots behind."""
        add = lambda x, axis: jnp.pad(x, [(0, length if i == axis else 0) for i in range(x.ndim)])  # noqa: E731
        layers = tuple((_on_mesh(add(k, 2)), _on_mesh(add(v, 2))) for k, v in self.layers)
        return Cache(layers, add(self.positions, 1), add(self.segment_ids, 1), self.index)

    def write_tokens(self, positions: jax.Array, segment_ids: jax.Array) -> "Cache":
        """Notes T tokens (int32[B, T] each) in the next T slots and moves on; blocks write their keys and values."""
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, self.index))  # noqa: E731
        return self.replace(
            positions=write(self.positions, positions),
            segment_ids=write(self.segment_ids, segment_ids),
            index=self.index + positions.shape[1],
        )


def _on_mesh(cache: jax.Array) -> jax.Array:
    return constrain(cache, "batch", "kv_heads", None, None)


def _write(cache: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """Puts new [B, T, K, E] at `slot` of one layer's keys or values [max(B, 2), K, S, E]."""

    def plain(cache, new):
        return jax.lax.dynamic_update_slice(cache, new, (0, 0, slot, 0))

    def as_bits(cache, new):
        return plain(cache.view(jnp.uint16), new.view(jnp.uint16)).view(jnp.bfloat16)

    new = new.swapaxes(1, 2).astype(cache.dtype)
    if cache.dtype == jnp.bfloat16:
        # For a write in bfloat16, XLA for CPU converts the whole cache to float32 and back; a TPU copies it for `view`.
        return _on_mesh(jax.lax.platform_dependent(cache, new, cpu=as_bits, default=plain))
    return _on_mesh(plain(cache, new))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`layers.attention` on a cache: q [B, T, H, E], k, v [max(B, 2), K, S, E], mask bool[B, T, S] -> [B, T, H, E].

    Both products have their axes in the order in which the cache lies, and the cache on the right: any other way, XLA
    turns the whole cache around first, per token (and on CPU finds no bfloat16 product at all).
    """
    b, t, h, e = q.shape
    dtype, heads = q.dtype.name, k.shape[1]
    rows = k.shape[0] if t == 1 else b
    q = jnp.broadcast_to(q.reshape(b, t, heads, h // heads, e), (rows, t, heads, h // heads, e))
    if t == 1 and h == heads:
        q = jnp.repeat(q, 2, axis=1)  # a product of one row converts (CPU) or copies (TPU) the whole cache first
    scores = dot("btkge,bkse->bktgs", q, k[:rows], dtype, out="float32") / e**0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    y = dot("bktgs,bkse->bktge", weights, v[:rows], dtype)[:b, :, :t]
    return y.swapaxes(1, 2).reshape(b, t, h, e)


def unstack(stacked: dict) -> tuple[dict, ...]:
    """The parameters of all blocks, [L, ...] each -> one tree per block."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count))


class Block(nn.Module):
    """Pre-norm grouped-query attention and SwiGLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rotation, seen, past=None, slot=None):
        """x [B, T, D] -> (x, past). past: None, or this layer's cached (keys, values), where x's go to `slot`. seen:
        from `kernels.visible`, or the cache's bool[B, T, S]."""
        c, dtype = self.config.llm, self.config.dtype
        heads = (c.width, c.heads, c.head_size), ("embed", "heads", "head_size")
        kv_heads = (c.width, c.kv_heads, c.head_size), ("embed", "kv_heads", "head_size")
        bias = 2 if c.qkv_bias else 0

        y = RMSNorm(c.norm_eps, "embed", name="attention_norm")(x)
        q = Linear("btd,dhe->bthe", *heads, dtype, bias, name="q")(y)
        k = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="k")(y)
        v = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="v")(y)
        by_product = self.config.attention.startswith("splash")  # on a TPU
        q, k, v = name_qkv(rope(q, rotation, by_product), rope(k, rotation, by_product), v)
        q = constrain(q, "batch", None, "heads", None)
        if past is None:
            y = attention.attention(q, k, v, seen, self.config.attention)
        else:
            past = _write(past[0], k, slot), _write(past[1], v, slot)
            y = _attend(q, *past, seen)
        out = (c.heads, c.head_size, c.width), ("heads", "head_size", "embed")
        residual = (2 * c.layers) ** -0.5  # 2 * layers products add up in x (GPT-2's rule)
        # einsum sums over axes in alphabetical order; were e before h, the kernel would be turned around per token.
        x += checkpoint_name(Linear("bthi,hid->btd", *out, dtype, init_scale=residual, name="o")(y), "out")

        y = RMSNorm(c.norm_eps, "embed", name="mlp_norm")(x)
        wide = (c.width, c.mlp_width), ("embed", "mlp")
        gate = checkpoint_name(Linear("btd,df->btf", *wide, dtype, name="gate")(y), "gate")
        up = checkpoint_name(Linear("btd,df->btf", *wide, dtype, name="up")(y), "up")
        y = constrain(jax.nn.silu(gate) * up, "batch", None, "mlp")
        narrow = (c.mlp_width, c.width), ("mlp", "embed")
        x += Linear("btf,fd->btd", *narrow, dtype, init_scale=residual, name="down")(y)
        return constrain(x, "batch", None, None), past


class Llama(nn.Module):
    """Three steps, so that images can join between the first two: embed, hidden, logits."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.llm, self.config.dtype
        self.table = Embedding((c.vocab_size, c.width), ("vocab", "embed"), name="embed")
        self.layers = stacked(Block, self.config, c.layers, in_axes=(nn.broadcast, nn.broadcast))(self.config)
        self.norm = RMSNorm(c.norm_eps, "embed")
        if not c.tied_head:
            head = (c.width, c.vocab_size), ("embed", "vocab")
            self.head = Linear("btd,dv->btv", *head, dtype, out="float32")

    def embed(self, tokens):
        """int32[B, T], each a row of the table -> dtype[B, T, D]."""
        rows = jnp.take(self.table(), tokens, axis=0, mode="clip")  # the default fills with NaN beyond the table
        # Two steps: a look-up in a table split over fsdp gives rows split over data only; to ask for the final layout
        # at once makes the partitioner gather the whole batch.
        rows = constrain(rows.astype(dtype_of(self.config.dtype)), "rows", None, "embed")
        return constrain(rows, "batch", None, None)

    def hidden(self, embeddings, positions, segment_ids, cache=None):
        """Embeddings [B, T, D], positions, segment_ids int32[B, T] -> (states after the final norm [B, T, D], cache).

        With a cache the T tokens are written to its next T slots and see what is already there; the returned cache
        holds them too. Without one the second value is None. With a cache the blocks run one by one, and `layers` of
        the parameters may also be what `unstack` makes of it: taking a layer out of stacked weights copies it.
        """
        rotation = rope_rotation(self.config.llm, positions)
        if cache is None:
            seen = attention.visible(positions, segment_ids, self.config.attention)
            return self.norm(self.layers(embeddings, rotation, seen)[0]), None

        slot, cache = cache.index, cache.write_tokens(positions, segment_ids)
        mask = attention_mask(positions, cache.positions, segment_ids, cache.segment_ids)
        weights = self.variables["params"]["layers"]
        block, x, written = Block(self.config, parent=None), embeddings, []
        for one, past in zip(weights if isinstance(weights, tuple) else unstack(weights), cache.layers, strict=True):
            x, past = block.apply({"params": one}, x, rotation, mask, past, slot)
            written.append(past)
        return self.norm(x), cache.replace(layers=tuple(written))

    def logits(self, hidden):
        """[B, T, D] -> float32[B, T, V]."""
        if self.config.llm.tied_head:
            y = dot("btd,vd->btv", hidden, self.table(), self.config.dtype, out="float32")
        else:
            y = self.head(hidden)
        return constrain(y, "batch", None, "vocab")
