"""Tensors of PyTorch checkpoints: file formats, names, transposition, adapters and deltas over them."""
