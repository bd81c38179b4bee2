"""Benchmarks: questions to a model, files of its answers, scores with intervals."""
