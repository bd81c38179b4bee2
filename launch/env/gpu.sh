# shellcheck shell=bash
# Environment for NVIDIA GPUs. Source it before the program starts. XLA fails on a flag that it does not know; remove that
# flag then.

# As on TPU, see tpu.sh.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/llava_jax/compiled}"
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# Overlaps collectives with computation. JAX's GPU tips recommend it, NVIDIA's images set it:
# https://docs.jax.dev/en/latest/gpu_performance_tips.html https://docs.nvidia.com/jax-toolbox/environment-variables
export XLA_FLAGS="${XLA_FLAGS-} --xla_gpu_enable_latency_hiding_scheduler=true"

# JAX preallocates 75% of GPU memory by default. NVIDIA uses 90%; the rest is for NCCL, cuDNN and the CUDA context:
# https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
