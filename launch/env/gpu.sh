# shellcheck shell=bash
# Environment of a run on NVIDIA GPUs: source it before the program starts. An XLA that does not know one of its flags says so
# and stops; then leave that one out.

# As on TPU; see tpu.sh.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/llava_jax/compiled}"
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# Collectives beside computation instead of after it. JAX's GPU tips recommend it, NVIDIA's images set it:
# https://docs.jax.dev/en/latest/gpu_performance_tips.html https://docs.nvidia.com/jax-toolbox/environment-variables
export XLA_FLAGS="${XLA_FLAGS-} --xla_gpu_enable_latency_hiding_scheduler=true"

# JAX takes 75% of a GPU's memory by default. 90% is what NVIDIA uses; the rest is for NCCL, cuDNN and the context:
# https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
