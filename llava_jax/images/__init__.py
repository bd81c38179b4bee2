"""Image files and preprocessing for the vision tower. Imports no jax."""
