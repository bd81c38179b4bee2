"""The original LLaVA's format: config and export."""
