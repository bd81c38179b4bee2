"""Attention that never holds the scores of all tokens with all others: kernels for TPUs (splash) and for NVIDIA GPUs
(cuDNN). `layers.attention` is the plain one, which they equal.

Splash attention is JAX's own, written in Pallas (jax.experimental.pallas.ops.tpu.splash_attention); it skips the blocks
that a causal mask leaves empty. Axis letters: see layers.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

LANES = 128  # a block is a multiple of a TPU's registers
BLOCK = 512  # tokens: smaller ones start the matrix units too often, larger ones add nothing for rows of 2048


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """Causal attention within segments, on a TPU: query head h reads key/value head h // (H / K).

    q [B, T, H, E]; k, v [B, T, K, E]; segment_ids int32[B, T] -> [B, T, H, E] in q's dtype. Causal is by place in the
    row, not by position: where a segment's tokens stand in the order of their positions, as in all rows that are
    trained on, it is the same. Padding, segment 0, sees padding only.

    On a mesh (that of `jax.set_mesh`) each device attends for its rows and heads; nothing is sent. interpret: as slow
    Python-like steps on any device, for tests.
    """
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_splash_local, interpret=interpret)
    if not mesh.empty:
        rows = ("data", "fsdp")
        by_head, by_row = PartitionSpec(rows, None, "tensor", None), PartitionSpec(rows, None)
        # The compiler cannot look into a kernel to see how it may be split.
        attend = jax.shard_map(
            attend, mesh=mesh, in_specs=(by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False
        )
    return attend(q, k, v, segment_ids)


def _splash_local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool) -> jax.Array:
    length, heads, size = q.shape[1:]
    filled = math.ceil(length / LANES) * LANES
    pad = lambda x: jnp.pad(x, [(0, 0), (0, filled - length)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    scaled = (q.astype(jnp.float32) / size**0.5).astype(q.dtype)  # the kernel does not scale
    heads_first = (pad(x).swapaxes(1, 2) for x in (scaled, k, v))
    segments = pad(segment_ids)  # with zeros: nobody sees what is added
    kernel = _splash_kernel(heads, filled, interpret)
    y = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(*heads_first, segments)
    return y.swapaxes(1, 2)[:, :length]


def _splash_kernel(heads: int, length: int, interpret: bool):
    # The largest divisor of the row that is a multiple of LANES and at most BLOCK.
    block = max(b for b in range(LANES, min(BLOCK, length) + 1, LANES) if length % b == 0)
    return splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,  # scores are made once in the backward pass, not once for q and once for k, v
        ),
        head_shards=1, q_seq_shards=1, residual_checkpoint_name="context", interpret=interpret,
    )  # fmt: skip


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, implementation: str | None = None
) -> jax.Array:
    """`layers.attention` on an NVIDIA GPU: q [B, T, H, E]; k, v [B, S, K, E]; mask bool[B, T, S] -> [B, T, H, E].

    cuDNN takes 16-bit numbers and heads of at most 128, a multiple of 8; what it does not take, XLA computes from the
    same call. implementation: `cudnn` or `xla`, in place of that choice.
    """
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    implementation = implementation or ("cudnn" if fits else "xla")
    y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=implementation)
    return checkpoint_name(y, "context")
