"""Output shared by all verbs: atomic file writes, console log, HTML pages, confidence intervals. No jax."""
