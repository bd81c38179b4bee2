"""Attention: a reference, and kernels for the train step that keep no scores in memory (Pallas on TPUs, cuDNN on GPUs).

`attention` runs either; the tests compare the kernels with `reference_attention`. Only the decoder has kernels. The KV
cache has its own attention. The vision tower attends from all to all over a few hundred patches (257 of them fill 67%
of the kernel's 384, squared), which is a percent of a step. Axis letters: see layers.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from llava_jax.errors import ConfigError
from llava_jax.models.matmul import dot
from llava_jax.runtime.sharding import RULES

LANES = 128  # the kernel's blocks are multiples of a vector register's lanes
BLOCK = 512  # the scores of two blocks, 1 MiB, fit into the fast memory of every TPU; 1024 was estimated no faster


def attention_mask(
    q_positions: jax.Array, k_positions: jax.Array, q_segments: jax.Array, k_segments: jax.Array
) -> jax.Array:
    """bool[B, T, S]: a query attends to the keys of its own segment at its own or an earlier position.

    All arguments int32[B, T] or int32[B, S]. Padding is segment 0, so real tokens never attend to it, wherever it is.

    positions 0 1 0, segments 1 1 2 (two packed samples):   1 0 0
                                                            1 1 0
                                                            0 0 1
    """
    same_segment = q_segments[:, :, None] == k_segments[:, None, :]
    return same_segment & (k_positions[:, None, :] <= q_positions[:, :, None])


def reference_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Grouped-query attention with softmax in float32: query head h reads key/value head h // (H / K).

    q [B, T, H, E]; k, v [B, S, K, E]; mask bool[B, T, S], or None for all to all -> [B, T, H, E] in q's dtype. It
    computes all scores; `attention` has kernels that do not keep them.
    """
    b, t, h, e = q.shape
    dtype = q.dtype.name
    grouped = q.reshape(b, t, k.shape[2], -1, e)
    scores = dot("btkge,bske->bkgts", grouped, k, dtype, out="float32") / np.sqrt(e)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return checkpoint_name(dot("bkgts,bske->btkge", weights, v, dtype).reshape(b, t, h, e), "context")


def name_qkv(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives q, k and v the names that remat policies refer to, see architectures.REMAT."""
    return checkpoint_name(q, "q"), checkpoint_name(k, "k"), checkpoint_name(v, "v")


def attention_mask_for(positions: jax.Array, segment_ids: jax.Array, kernel: str) -> jax.Array:
    """The mask that `attention` expects: bool[B, T, T] for `xla`, for the other kernels the segments, int32[B, T].

    positions, segment_ids int32[B, T]. Raises ConfigError for an unknown kernel.

    The segments suffice because the data has later positions at later indices within every segment: a key of the same
    segment is visible if its index is not larger. (Padding is segment 0 and attends only to padding, as in
    `attention_mask`; to which of it differs, but nothing reads the result.)
    """
    if kernel == "xla":
        return attention_mask(positions, positions, segment_ids, segment_ids)
    _fused_attention(kernel)
    return segment_ids


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, kernel: str) -> jax.Array:
    """`reference_attention` by `kernel`. q [B, T, H, E]; k, v [B, T, K, E]; mask of `attention_mask_for` -> [B, T, H,
    E].

    Under `jax.set_mesh` each device runs the kernel on its rows and heads, because the compiler cannot partition a
    kernel. Raises ConfigError for an unknown kernel.
    """
    if kernel == "xla":
        return reference_attention(q, k, v, mask)
    function = _fused_attention(kernel)
    if not jax.sharding.get_abstract_mesh().empty:
        rows, heads = (nn.logical_to_mesh_axes(axes, RULES) for axes in (("batch",), ("batch", None, "heads", None)))
        # A kernel does not declare which mesh axes its result varies over, so this cannot be checked.
        function = jax.shard_map(function, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return function(q, k, v, mask)


def _fused_attention(kernel: str):
    functions = {
        "splash": splash_attention,
        "splash_interpreted": functools.partial(splash_attention, interpret=True),  # the same, slowly, on any device
        "cudnn": cudnn_attention,
    }
    if kernel not in functions:
        raise ConfigError(f"attention kernel {kernel!r} is unknown; use xla, {', '.join(functions)}")
    return functions[kernel]


def splash_block(length: int) -> int:
    """Rows and columns of a block, for rows of `length` tokens: the fewest equal blocks of up to BLOCK that hold a row,
    so that less than LANES tokens of each block are padding.

    384 -> 384, 2048 -> 512 (4 blocks), 577 -> 384 (2 blocks, 768 tokens)
    """
    count = math.ceil(length / BLOCK)
    return math.ceil(length / count / LANES) * LANES


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """JAX's splash attention for TPUs, causal by index and within segments. interpret: as plain JAX, on any device.

    q [B, T, H, E]; k, v [B, T, K, E]; segment_ids int32[B, T] -> [B, T, H, E]. Any T. The result and the log-sum-exp,
    all that the backward kernel needs beside q, k, v, are named `context` for the remat policies.
    """
    t, h, e = q.shape[1:]
    block = splash_block(t)
    padding = -t % block  # in segment 0, as other padding: real tokens do not attend to it, and every query has a key

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    # Two backward kernels, one for dq, one for dk and dv. JAX also has one for all three. It computes the scores once,
    # not twice, but writes a partial dq for each block of keys: summing these cost more than the scores (7B, v5e).
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    # Made in every call: it holds arrays, which would belong to the trace in which they were made.
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((t + padding, t + padding))] * h),
        block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name="context", interpret=interpret,
    )  # fmt: skip
    q = (q.astype(jnp.float32) / math.sqrt(e)).astype(q.dtype)  # the kernel does not scale
    segments = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    one_row = lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s))  # noqa: E731
    return jax.vmap(one_row)(heads_first(q), heads_first(k), heads_first(v), segments).swapaxes(1, 2)[:, :t]


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, implementation: str = "cudnn"
) -> jax.Array:
    """cuDNN's flash attention, causal by index and within segments. Shapes as in `splash_attention`.

    implementation: `cudnn`, or `xla`, which computes the same on any device. cuDNN supports bfloat16 and float16, and
    head sizes up to 128 that are multiples of 8. It raises NotImplementedError for others; `config.model_config` does
    not choose it for them.
    """
    t = q.shape[1]
    padding = t % 2  # the mask is passed as a bias, with which the backward kernel supports only even lengths
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    segments = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    same_segment = segments[:, None, :, None] == segments[:, None, None, :]
    y = jax.nn.dot_product_attention(q, k, v, mask=same_segment, is_causal=True, implementation=implementation)
    # Its log-sum-exp has no name: where a remat policy keeps `context`, the forward kernel runs again anyway.
    return checkpoint_name(y[:, :t], "context")
