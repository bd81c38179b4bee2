"""Compares tensors that no parameter needs with what makes them redundant. None is dropped because of its name alone.

| tensor                    | must be                        | else                              |
|---------------------------|--------------------------------|-----------------------------------|
| head of a tied checkpoint | the embedding (`same_tensor`)  | it is a parameter of its own      |
| `rotary_emb.inv_freq`     | the frequencies of config.json | `check_buffers` raises            |
| `position_ids`            | 0, 1, 2, ...                   | `check_buffers` raises            |
"""

import re

import numpy as np

from llava_jax.checkpoint.torch_tensors.dialects import FREQUENCIES, POSITIONS
from llava_jax.checkpoint.torch_tensors.overlays import TensorReader
from llava_jax.config.architectures import LlamaConfig
from llava_jax.errors import DataError
from llava_jax.models.rope import rope_frequencies

CHUNK = 1 << 22  # values per read


def same_tensor(files: TensorReader, a: str, b: str) -> bool:
    """Returns whether two matrices have the same shape and values. Reads both, a few rows at a time, up to the first
    difference."""
    shape = files.shape(a)
    if shape != files.shape(b) or len(shape) != 2:
        return False
    step = max(1, CHUNK // shape[1])
    parts = [(slice(start, min(start + step, shape[0])), slice(None)) for start in range(0, shape[0], step)]
    return all(np.array_equal(files.read(a, part), files.read(b, part)) for part in parts)


def check_buffers(files: TensorReader, llm: LlamaConfig | None) -> None:
    """Raises DataError if a buffer that old checkpoints contain differs from what transformers 5 computes instead.

    Buffers in half precision are rounded: 1 % is allowed, and another base or head size differs by more.
    """
    for name in files.names():
        whole = (slice(None),) * len(files.shape(name))
        if re.fullmatch(POSITIONS, name):
            values = files.read(name, whole).ravel()
            if not np.array_equal(values, np.arange(values.size)):
                raise DataError(f"{files.path}: tensor {name} does not count 0, 1, 2, ...; not supported")
        elif re.fullmatch(FREQUENCIES, name) and llm:
            values, expected = files.read(name, whole).astype(np.float32).ravel(), _frequencies(llm)
            if not any(values.shape == e.shape and np.allclose(values, e, rtol=0.01, atol=1e-6) for e in expected):
                raise DataError(
                    f"{files.path}: tensor {name} holds other rotary frequencies than config.json gives; correct its "
                    "rope_theta, rope_scaling or head_dim, or remove the tensor"
                )


def _frequencies(llm: LlamaConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns scaled and unscaled frequencies; transformers 4 stored either (then with scaled positions)."""
    plain = 1.0 / llm.rope_base ** (np.arange(0, llm.head_size, 2, dtype=np.float32) / llm.head_size)
    return rope_frequencies(llm), plain
