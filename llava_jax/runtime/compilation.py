"""What the train step asks of the compiler, and compiled programs that outlive the process.

Compiler options: one table by platform, with the reason for each. They go to `jax.jit(..., compiler_options=...)`, so
that they hold for the step and for nothing else, and are the same for a real run and for `python -m llava_jax plan`.
Compiled programs: JAX's cache on disk, https://docs.jax.dev/en/latest/persistent_compilation_cache.html
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from llava_jax.errors import ConfigError

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

REQUESTS = "/jax/compilation_cache/compile_requests_use_cache"
HITS = "/jax/compilation_cache/cache_hits"


def compiler_options(platform: str, accumulation: int) -> dict[str, str]:
    """Options for the train step on `platform` (`tpu`, `gpu`, `cpu`, as jax names it) with so many micro-batches."""
    if platform != "tpu":
        return {}
    return TPU | (TPU_ACCUMULATING if accumulation > 1 else {})


@contextlib.contextmanager
def compile_cache(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Inside, JAX keeps every program that it compiles in `folder` and takes from there what it has compiled before;
    at the end `say` gets how many were which. To be entered before the first compilation of the process.

    A program is found again for the same code, shapes, mesh, kind of device, JAX and XLA flags; what those were not
    is compiled anew, and nothing is ever removed. Of several processes the first writes and all read. Raises
    ConfigError where the folder cannot be written.
    """
    import jax  # only now: a typo in a flag is reported at once

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--compile_cache={folder} cannot be made: {e.strerror}") from e
    if not os.access(folder, os.W_OK | os.X_OK):  # JAX would only warn, once a program
        raise ConfigError(f"--compile_cache={folder} cannot be written; choose a folder of your own")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # JAX's defaults leave out what compiles within a second: most of a start's programs, and half of its time.
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
        log(f"programs: {events[REQUESTS] - hits} compiled, {hits} taken from {folder}")
