"""The LLaMA decoder (arXiv 2302.13971): embedding, blocks under one scan, head, and the key/value cache.

Also Llama 2 and 3, Vicuna, SmolLM2, and Qwen2 (biases on q, k, v). Axis letters: see layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from llava_jax.architectures import LlamaConfig, ModelConfig
from llava_jax.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    attention,
    attention_mask,
    dot,
    dtype_of,
    name_qkv,
    rope,
    rope_rotation,
    stacked,
)
from llava_jax.sharding import constrain


class Cache(struct.PyTreeNode):
    """Keys and values of the tokens so far. All rows write to the same slot; a row's padding stays in segment 0, and
    nobody sees segment 0. So rows of unequal length decode together: what counts is `positions`, not the slot."""

    k: jax.Array  # [L, B, S, K, E]
    v: jax.Array  # [L, B, S, K, E]
    positions: jax.Array  # int32[B, S]
    segment_ids: jax.Array  # int32[B, S], 0 where nothing or padding is written
    index: jax.Array  # int32[], the next slot

    @classmethod
    def empty(cls, config: LlamaConfig, batch: int, length: int, dtype: str) -> "Cache":
        """`length` slots for `batch` rows: prompt and answer together, for writing beyond the end is not detected."""
        kv = (config.layers, batch, length, config.kv_heads, config.head_size)
        slots = jnp.zeros((batch, length), jnp.int32)
        dtype = dtype_of(dtype)
        return cls(jnp.zeros(kv, dtype), jnp.zeros(kv, dtype), slots, slots, jnp.zeros((), jnp.int32))

    def write_tokens(self, positions: jax.Array, segment_ids: jax.Array) -> "Cache":
        """Notes T tokens (int32[B, T] each) in the next T slots and moves on; blocks write their keys and values."""
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, self.index))  # noqa: E731
        return self.replace(
            positions=write(self.positions, positions),
            segment_ids=write(self.segment_ids, segment_ids),
            index=self.index + positions.shape[1],
        )


def _write_and_read(cache: jax.Array, new: jax.Array, layer: jax.Array, slot: jax.Array):
    """Puts new [B, T, K, E] at `slot` of `layer` in the cache [L, B, S, K, E]; -> cache, that layer [B, S, K, E]."""
    cache = jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), (layer, 0, slot, 0, 0))
    cache = constrain(cache, None, "batch", None, "kv_heads", None)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)


class Block(nn.Module):
    """Pre-norm grouped-query attention and SwiGLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, rotation, mask, slot):
        """carry: x [B, T, D] and the cache's k, v (None, None without one); layer int32[]; slot int32[] or None."""
        c, dtype = self.config.llm, self.config.dtype
        x, k_cache, v_cache = carry
        heads = (c.width, c.heads, c.head_size), ("embed", "heads", "head_size")
        kv_heads = (c.width, c.kv_heads, c.head_size), ("embed", "kv_heads", "head_size")
        bias = 2 if c.qkv_bias else 0

        y = RMSNorm(c.norm_eps, "embed", name="attention_norm")(x)
        q = Linear("btd,dhe->bthe", *heads, dtype, bias, name="q")(y)
        k = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="k")(y)
        v = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="v")(y)
        q, k, v = name_qkv(rope(q, rotation), rope(k, rotation), v)
        q = constrain(q, "batch", None, "heads", None)
        if slot is not None:
            # The whole cache is carried and updated in place: as scan inputs and outputs it would be copied per token.
            k_cache, k = _write_and_read(k_cache, k, layer, slot)
            v_cache, v = _write_and_read(v_cache, v, layer, slot)
        y = attention(q, k, v, mask, self.config.attention)
        out = (c.heads, c.head_size, c.width), ("heads", "head_size", "embed")
        residual = (2 * c.layers) ** -0.5  # 2 * layers products add up in x (GPT-2's rule)
        x += Linear("bthe,hed->btd", *out, dtype, init_scale=residual, name="o")(y)

        y = RMSNorm(c.norm_eps, "embed", name="mlp_norm")(x)
        wide = (c.width, c.mlp_width), ("embed", "mlp")
        gate = Linear("btd,df->btf", *wide, dtype, name="gate")(y)
        up = Linear("btd,df->btf", *wide, dtype, name="up")(y)
        y = constrain(jax.nn.silu(gate) * up, "batch", None, "mlp")
        narrow = (c.mlp_width, c.width), ("mlp", "embed")
        x += Linear("btf,fd->btd", *narrow, dtype, init_scale=residual, name="down")(y)
        return (constrain(x, "batch", None, None), k_cache, v_cache), None


class Llama(nn.Module):
    """Three steps, so that images can join between the first two: embed, hidden, logits."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.llm, self.config.dtype
        self.table = Embedding((c.vocab_size, c.width), ("vocab", "embed"), name="embed")
        in_axes = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        self.layers = stacked(Block, self.config, c.layers, in_axes)(self.config)
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
        holds them too. Without one the second value is None.
        """
        rotation = rope_rotation(self.config.llm, positions)
        if cache is None:
            slot, k, v = None, None, None
            mask = attention_mask(positions, positions, segment_ids, segment_ids)
        else:
            slot, k, v = cache.index, cache.k, cache.v
            cache = cache.write_tokens(positions, segment_ids)
            mask = attention_mask(positions, cache.positions, segment_ids, cache.segment_ids)
        number = jnp.arange(self.config.llm.layers, dtype=jnp.int32)
        (x, k, v), _ = self.layers((embeddings, k, v), number, rotation, mask, slot)
        return self.norm(x), None if cache is None else cache.replace(k=k, v=v)

    def logits(self, hidden):
        """[B, T, D] -> float32[B, T, V]."""
        if self.config.llm.tied_head:
            y = dot("btd,vd->btv", hidden, self.table(), self.config.dtype, out="float32")
        else:
            y = self.head(hidden)
        return constrain(y, "batch", None, "vocab")
