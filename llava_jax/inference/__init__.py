"""Prompts in, tokens out: prefill, decoding with a KV cache, sampling, streaming."""
