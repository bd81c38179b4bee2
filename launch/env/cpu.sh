# shellcheck shell=bash
# Environment of a run on CPU: source it before the program starts.

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

# Huge pages for what malloc gives; read when a process starts, so it cannot be set from Python. The bfloat16 train step of a
# 168M LLaMA took 1.33 s instead of 1.52 s with it (two CPU cores). No XLA flag helped.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1"
