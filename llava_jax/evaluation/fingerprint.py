"""Fingerprints of weights and prompts, which decide whether an answers file may be resumed."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llava_jax.evaluation.questions import TaskQuestion


def weights_fingerprint(params: dict[str, jax.Array]) -> str:
    """A fingerprint of weights, 16 hex digits, independent of the mesh: the SHA-256 of a sum for each parameter, namely
    of its bits as integers modulo 2**32, in any order."""
    sums = {path: int(value) for path, value in _sums(params).items()}
    return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:16]


def prompts_fingerprint(rows: Sequence[tuple[TaskQuestion, np.ndarray]]) -> str:
    """A fingerprint of questions and their ids int32[L], in order: 16 hex digits."""
    state = hashlib.sha256()
    for question, ids in rows:
        state.update(repr((question.pid, question.image)).encode() + ids.astype("<i4").tobytes())
    return state.hexdigest()[:16]


@jax.jit
def _sums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    bits = {path: jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]) for path, x in params.items()}
    return {path: x.astype(jnp.uint32).sum(dtype=jnp.uint32) for path, x in bits.items()}
