"""Rotary position embedding (RoFormer, arXiv 2104.09864). Axis letters: see layers."""

import jax
import jax.numpy as jnp
import numpy as np

from llava_jax.config.architectures import LlamaConfig
from llava_jax.errors import ConfigError
from llava_jax.models.matmul import dot


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each pair of channels: float32[E / 2], decreasing from 1 (arXiv 2104.09864).

    `linear` scaling divides all of them by `factor`. `llama3` keeps waves shorter than original / high_freq_factor,
    divides those longer than original / low_freq_factor by `factor`, and interpolates between (Llama 3.1). `yarn` does
    the same along the channels, between those that turn beta_fast and beta_slow times in the original context (arXiv
    2309.00071). `dynamic` equals none up to the original context, see `rope_rotation`. Raises ConfigError for others.
    """
    e, scaling = config.head_size, config.rope_scaling
    frequencies = 1.0 / config.rope_base ** (np.arange(0, e, 2, dtype=np.float32) / e)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies.astype(np.float32)
    if scaling.kind == "linear":
        return (frequencies / scaling.factor).astype(np.float32)
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        waves_in_context = scaling.original_max_positions * frequencies / (2 * np.pi)
        keep = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
        return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)
    if scaling.kind == "yarn":
        waves = scaling.original_max_positions / (2 * np.pi * np.array([scaling.beta_fast, scaling.beta_slow]))
        low, high = np.log(waves) * e / (2 * np.log(config.rope_base))
        low, high = (np.floor(low), np.ceil(high)) if scaling.truncate else (low, high)
        low, high = max(low, 0), min(high, e - 1)
        divided = np.clip((np.arange(e // 2) - low) / (high - low or 0.001), 0.0, 1.0)
        return (frequencies * (1 - divided + divided / scaling.factor)).astype(np.float32)
    raise ConfigError(f"rope_scaling kind {scaling.kind!r} is unknown; use linear, dynamic, yarn, llama3 or None")


def rope_rotation(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """positions int32[B, T] -> sine and cosine of each pair's angle, float32[B, T, 1, E / 2] each.

    With `dynamic` scaling the base grows with the length of a row, its largest position + 1, beyond the original
    context. A decoded token counts as the end of its row; keys in the cache keep the rotation of their time.
    (transformers does both, but for the longest row of a batch.) `yarn` scales sine and cosine by attention_factor.
    """
    frequencies, scaling = rope_frequencies(config), config.rope_scaling
    if scaling and scaling.kind == "dynamic":
        length = jnp.maximum(positions.max(axis=1) + 1, scaling.original_max_positions)[:, None, None, None]
        growth = scaling.factor * length / scaling.original_max_positions - (scaling.factor - 1)
        e = config.head_size
        frequencies = frequencies * growth ** (-np.arange(0, e, 2, dtype=np.float32) / (e - 2))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    factor = scaling.attention_factor if scaling else 1.0
    return factor * jnp.sin(angles), factor * jnp.cos(angles)


def rope(x: jax.Array, rotation: tuple[jax.Array, jax.Array], via_matmul: bool = False) -> jax.Array:
    """Rotates channel i together with channel i + E/2 (Hugging Face's order of LLaMA's channels), in float32.

    x [B, T, heads, E], rotation from rope_rotation -> as x. via_matmul: the same values, faster on a TPU. There, half a
    head of 64 channels costs as much as 128. A matmul moves the other half into place instead, and a step of 2 s became
    0.1 s shorter (7B, compiled for v5e:4x4).
    """
    sin, cos = rotation
    if via_matmul:
        half = x.shape[-1] // 2
        i, j = np.indices((2 * half, 2 * half))
        swap = (i + half == j).astype(np.float32) - (i == j + half)  # one nonzero per column: nothing is rounded
        other = dot("bthe,ef->bthf", x, jnp.asarray(swap), x.dtype.name).astype(jnp.float32)
        doubled = lambda a: jnp.concatenate([a, a], axis=-1)  # noqa: E731
        return (x.astype(jnp.float32) * doubled(cos) + other * doubled(sin)).astype(x.dtype)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
