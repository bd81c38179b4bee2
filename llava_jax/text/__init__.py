"""Encodes conversations as token ids and back: templates, tokenizers, target masks. Imports no jax."""
