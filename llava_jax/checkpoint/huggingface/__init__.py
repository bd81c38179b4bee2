"""Hugging Face folders: config, processor and export."""
