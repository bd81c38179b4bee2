"""The verbs of `python -m llava_jax`, one file each. No jax at import time: --help answers at once."""
