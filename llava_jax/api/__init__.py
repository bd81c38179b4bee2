"""What `import llava_jax` gives: load a model, ask it, compare it with transformers. Never imports train/."""
