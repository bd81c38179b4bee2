"""Conversations as token ids and back: templates, tokenizers, loss masks. No jax."""
