"""LLaVA (visual instruction tuning, arXiv 2304.08485) for JAX/Flax, on TPU pods, GPUs and laptops.

lv = llava_jax.load("llava-1.5-7b-hf")      # see llava_jax.api.load and llava_jax.api.model
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load":  # lazy: importing jax takes seconds, and a mistyped flag is reported at once
        return importlib.import_module("llava_jax.api.load").load
    raise AttributeError(f"module 'llava_jax' has no attribute {name!r}")
