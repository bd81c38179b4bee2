"""From examples to batches: rows, packing, mixtures, worker processes, resumable order. No jax."""
