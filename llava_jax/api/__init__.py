"""The public API: load a model, generate, compare with transformers. Never imports `train`."""
