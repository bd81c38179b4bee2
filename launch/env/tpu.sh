# shellcheck shell=bash
# Environment of a run on TPU: source it before the program starts.

# Restarts are part of a run on spot machines, and the step of a 7B model takes a minute or so to compile. Whoever can write
# to this folder can have the program run code, so it belongs to you alone:
# https://docs.jax.dev/en/latest/persistent_compilation_cache.html
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/llava_jax/compiled}"
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# LIBTPU_INIT_ARGS and XLA_FLAGS stay as they are. What the compiler is to be told differs by chip, and the program tells it
# with each program it compiles; an option of v5e's is a compile error on v5p and v6e, so lists found elsewhere do harm.
