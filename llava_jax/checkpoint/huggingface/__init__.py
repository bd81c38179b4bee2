"""Hugging Face format: config, processor files and export."""
