"""What the train step asks of the compiler, by platform: one table, with the reason for each option.

They go to `jax.jit(..., compiler_options=...)`, so that they hold for the step and for nothing else, and are the same
for a real run and for `python -m llava_jax plan`.
"""

TPU = {
    # By default the partitioner turns each gathering of an fsdp weight into a loop of small products (a "windowed
    # einsum"), which adds up in bfloat16 and fills the matrix units badly. No weight is as large as this bound (MiB).
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}
TPU_ACCUMULATING = {
    # Moves the all-reduce of a gradient out of the loop over micro-batches, and miscompiles that of a look-up table:
    # https://github.com/openxla/xla/issues/49143
    "xla_disable_hlo_passes": "while-loop-all-reduce-code-motion",
}


def compiler_options(platform: str, accumulation: int) -> dict[str, str]:
    """Options for the train step on `platform` (`tpu`, `gpu`, `cpu`, as jax names it) with so many micro-batches."""
    if platform != "tpu":
        return {}
    return TPU | (TPU_ACCUMULATING if accumulation > 1 else {})
