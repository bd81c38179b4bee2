# shellcheck shell=bash
# Environment for TPUs. Source it before the program starts.

# Caches compiled programs: runs on spot machines restart, and the step of a 7B model compiles for about a minute. Whoever
# can write to this folder can run code in the program, so only you have access to it:
# https://docs.jax.dev/en/latest/persistent_compilation_cache.html
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/llava_jax/compiled}"
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# Do not set LIBTPU_INIT_ARGS or XLA_FLAGS. Compiler options differ by chip, and llava_jax passes them with each program that
# it compiles. An option for v5e is a compile error on v5p and v6e, so do not copy lists from elsewhere.
