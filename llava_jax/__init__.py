"""LLaVA (visual instruction tuning, arXiv 2304.08485) for JAX/Flax, on TPU pods, GPUs and laptops."""

__version__ = "0.1.0"
