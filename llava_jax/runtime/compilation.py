"""Compiler options of the train step, and JAX's persistent compilation cache.

The options are passed to `jax.jit(..., compiler_options=...)`. So they apply to the train step only, and are the same
in a real run and in `python -m llava_jax plan`.
Cache: https://docs.jax.dev/en/latest/persistent_compilation_cache.html
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from llava_jax.errors import ConfigError

TPU = {
    # By default the partitioner turns each all-gather of an fsdp weight into a loop of small products (a "windowed
    # einsum"), which accumulates in bfloat16 and uses the matrix units badly. No weight reaches this threshold (MiB).
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}
TPU_ACCUMULATING = {
    # Moves the gradient all-reduce out of the loop over micro-batches, but miscompiles that of a look-up table:
    # https://github.com/openxla/xla/issues/49143
    "xla_disable_hlo_passes": "while-loop-all-reduce-code-motion",
}

REQUESTS = "/jax/compilation_cache/compile_requests_use_cache"
HITS = "/jax/compilation_cache/cache_hits"


def compiler_options(platform: str, accumulation: int) -> dict[str, str]:
    """Options of the train step on `platform` (JAX's `tpu`, `gpu` or `cpu`) with `accumulation` micro-batches."""
    if platform != "tpu":
        return {}
    return TPU | (TPU_ACCUMULATING if accumulation > 1 else {})


@contextlib.contextmanager
def compile_cache(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Context in which JAX caches every compiled program in `folder`. Enter it before the process compiles anything.

    At the end, `log` gets the numbers of compiled and of cached programs. The key of a program is its code, shapes,
    mesh, device kind, JAX version and XLA flags. Nothing is ever removed. Process 0 writes, all processes read. Raises
    ConfigError where the folder cannot be written.
    """
    import jax  # not at the top: a typo in a flag is reported at once

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--compile_cache={folder} cannot be created: {e.strerror}") from e
    if not os.access(folder, os.W_OK | os.X_OK):  # JAX would only log a warning per program
        raise ConfigError(f"--compile_cache={folder} cannot be written; choose a folder of your own")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # By default JAX skips programs that compile within a second: most programs of a start, and half of its time.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    events = Counter()

    def count(event: str, **metadata) -> None:
        del metadata
        events[event] += 1

    jax.monitoring.register_event_listener(count)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(count)
        hits = events[HITS]
        log(f"programs: {events[REQUESTS] - hits} compiled, {hits} loaded from {folder}")
