"""Compiled programs that outlive the process: JAX's cache on disk, and how much of it a run used.

https://docs.jax.dev/en/latest/persistent_compilation_cache.html
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from llava_jax.errors import ConfigError

ASKED = "/jax/compilation_cache/compile_requests_use_cache"
FOUND = "/jax/compilation_cache/cache_hits"


@contextlib.contextmanager
def compile_cache(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
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

    def count(event: str, **about) -> None:
        del about
        events[event] += 1

    jax.monitoring.register_event_listener(count)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(count)
        found = events[FOUND]
        say(f"programs: {events[ASKED] - found} compiled, {found} taken from {folder}")
