"""Image files, and pixels as the vision tower gets them. No jax."""
