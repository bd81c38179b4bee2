"""The verbs of `python -m llava_jax`, one file each. They import jax only when they run, so that --help is fast."""
