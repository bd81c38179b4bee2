"""Tensors of PyTorch checkpoints: file formats, names, layouts, LoRA adapters and delta weights."""
