"""Folders in the original LLaVA's format: config and export."""
