"""Training: stages, state, step, optimizer, the loop, held-out evaluation, workdir."""
