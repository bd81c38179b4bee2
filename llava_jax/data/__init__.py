"""From examples to batches: rows, packing, mixtures, worker processes, resumable order. Imports no jax."""
