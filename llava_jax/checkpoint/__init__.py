"""Reads and writes checkpoints: native (Orbax), Hugging Face, original LLaVA; reads GGUF."""
