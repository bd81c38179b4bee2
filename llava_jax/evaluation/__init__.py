"""Benchmarks: questions to a model, its answers on file, scores with intervals."""
