"""Reads GGUF files (llama.cpp): tensors, config and tokenizer."""
