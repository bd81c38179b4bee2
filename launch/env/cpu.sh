# shellcheck shell=bash
# Environment for CPU runs. Source it before the program starts.

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

# Huge pages for malloc. glibc reads this when a process starts, so Python cannot set it. The bfloat16 train step of a
# 168M LLaMA took 1.33 s instead of 1.52 s with it (two CPU cores). No XLA flag helped.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1"
