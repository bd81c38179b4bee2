"""GGUF files of llama.cpp: their tensors, config and tokenizer."""
