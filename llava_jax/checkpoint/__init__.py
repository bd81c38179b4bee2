"""Models on disk: our own checkpoints, Hugging Face's, the original LLaVA's, GGUF; read and written."""
