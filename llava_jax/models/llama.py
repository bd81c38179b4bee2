"""The LLaMA decoder (arXiv 2302.13971): embedding, blocks under one scan, head, with an optional KV cache.

Also Llama 2 and 3, Vicuna, Mistral, SmolLM2, and Qwen2 (biases on q, k, v). Axis letters: see layers.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from llava_jax.config.architectures import ModelConfig
from llava_jax.models.attention import attention, attention_mask, attention_mask_for, name_qkv
from llava_jax.models.cache import unstack, write_and_attend
from llava_jax.models.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, scan_layers
from llava_jax.models.matmul import dot, dtype_of
from llava_jax.models.rope import rope, rope_rotation
from llava_jax.runtime.sharding import constrain


class LlamaBlock(nn.Module):
    """Pre-norm grouped-query attention and SwiGLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rotation, mask, past=None, cache=None):
        """x [B, T, D] -> (x, past). past: None, or this layer's cached (keys, values), to which those of x are written
        where `cache` says. mask: from `attention_mask_for`, or for a cache bool[B, T, S]."""
        c, dtype = self.config.llm, self.config.dtype
        heads = (c.width, c.heads, c.head_size), ("embed", "heads", "head_size")
        kv_heads = (c.width, c.kv_heads, c.head_size), ("embed", "kv_heads", "head_size")
        bias, mlp_bias = 2 * c.qkv_bias, int(c.mlp_bias)

        y = RMSNorm(c.norm_eps, "embed", name="attention_norm")(x)
        q = Linear("btd,dhe->bthe", *heads, dtype, bias, name="q")(y)
        k = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="k")(y)
        v = Linear("btd,dke->btke", *kv_heads, dtype, bias, name="v")(y)
        via_matmul = self.config.attention.startswith("splash")  # on a TPU
        q, k, v = name_qkv(rope(q, rotation, via_matmul), rope(k, rotation, via_matmul), v)
        q = constrain(q, "batch", None, "heads", None)
        if past is None:
            y = attention(q, k, v, mask, self.config.attention)
        else:
            y, past = write_and_attend(q, k, v, past, mask, cache)
        out = (c.heads, c.head_size, c.width), ("heads", "head_size", "embed")
        residual = (2 * c.layers) ** -0.5  # 2 * layers matmuls add up in x (GPT-2's rule)
        # einsum sums over axes in alphabetical order; with e before h, the kernel would be transposed for every token.
        x += checkpoint_name(Linear("bthi,hid->btd", *out, dtype, c.o_bias, init_scale=residual, name="o")(y), "out")

        y = RMSNorm(c.norm_eps, "embed", name="mlp_norm")(x)
        wide = (c.width, c.mlp_width), ("embed", "mlp")
        gate = checkpoint_name(Linear("btd,df->btf", *wide, dtype, mlp_bias, name="gate")(y), "gate")
        up = checkpoint_name(Linear("btd,df->btf", *wide, dtype, mlp_bias, name="up")(y), "up")
        y = constrain(ACTIVATIONS[c.activation](gate) * up, "batch", None, "mlp")
        narrow = (c.mlp_width, c.width), ("mlp", "embed")
        x += Linear("btf,fd->btd", *narrow, dtype, mlp_bias, init_scale=residual, name="down")(y)
        return constrain(x, "batch", None, None), past


class Llama(nn.Module):
    """Three steps, so that images can be merged between the first two: embed, hidden, logits."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.llm, self.config.dtype
        self.table = Embedding((c.vocab_size, c.width), ("vocab", "embed"), name="embed")
        self.layers = scan_layers(LlamaBlock, self.config, c.layers, in_axes=(nn.broadcast, nn.broadcast))(self.config)
        self.norm = RMSNorm(c.norm_eps, "embed")
        if not c.tied_head:
            head = (c.width, c.vocab_size), ("embed", "vocab")
            self.head = Linear("btd,dv->btv", *head, dtype, out="float32")

    def embed(self, tokens):
        """int32[B, T] -> the rows of the table, dtype[B, T, D]."""
        rows = jnp.take(self.table(), tokens, axis=0, mode="clip")  # the default fills with NaN beyond the table
        # Two steps: a look-up in a table split over fsdp gives rows split over data only. Asking for the final layout
        # at once makes the partitioner gather the whole batch.
        rows = constrain(rows.astype(dtype_of(self.config.dtype)), "rows", None, "embed")
        return constrain(rows, "batch", None, None)

    def hidden(self, embeddings, positions, segment_ids, cache=None):
        """Embeddings [B, T, D], positions, segment_ids int32[B, T] -> (states after the final norm [B, T, D], cache).

        Without a cache the second value is None. With one, the T tokens are written to its next T slots and attend to
        the tokens already there; the returned cache holds them too. The blocks then run one by one, and `layers` of the
        parameters may also be the result of `unstack`: taking a layer out of stacked weights copies it.
        """
        rotation = rope_rotation(self.config.llm, positions)
        if cache is None:
            mask = attention_mask_for(positions, segment_ids, self.config.attention)
            return self.norm(self.layers(embeddings, rotation, mask)[0]), None

        before, cache = cache, cache.write_tokens(positions, segment_ids)
        mask = attention_mask(positions, cache.positions, segment_ids, cache.segment_ids)
        stacked = self.variables["params"]["layers"]
        block, x, layers = LlamaBlock(self.config, parent=None), embeddings, []
        for params, past in zip(stacked if isinstance(stacked, tuple) else unstack(stacked), cache.layers, strict=True):
            x, past = block.apply({"params": params}, x, rotation, mask, past, before)
            layers.append(past)
        return self.norm(x), cache.replace(layers=tuple(layers))

    def logits(self, hidden):
        """[B, T, D] -> float32[B, T, V]."""
        if self.config.llm.tied_head:
            y = dot("btd,vd->btv", hidden, self.table(), self.config.dtype, out="float32")
        else:
            y = self.head(hidden)
        return constrain(y, "batch", None, "vocab")
