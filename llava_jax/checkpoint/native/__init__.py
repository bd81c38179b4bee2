"""Our own checkpoints: Orbax, with a SHA-256 of every file; a workdir as a model."""
