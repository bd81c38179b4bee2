"""Several processes that train as one run: how they find each other, and how they end where one of them fails.

JAX's own service does the finding and the watching: https://docs.jax.dev/en/latest/multi_process.html
"""

import contextlib
import dataclasses
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable

from llava_jax.errors import ConfigError, UserError

START_TIMEOUT = 300  # seconds from the first process to the last
GRACE_SECONDS = 2  # seconds that the others get to say what they end of


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Who takes part, as the command line says it: `index` of `count` processes, of which number 0 listens at
    `coordinator`, HOST:PORT. All None: those of the cluster that JAX recognises (TPU VM, GKE, Slurm, Open MPI), else
    this process alone. `count` 1: this one alone, wherever it runs.

    lost_after: seconds without a sign of life after which a process counts as lost. stalled_after: seconds without a
    step after which they say who holds them up, and end in as many again; 0: never. Raises ConfigError.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    lost_after: int = 60
    stalled_after: int = 300

    def __post_init__(self):
        given = {"--coordinator": self.coordinator, "--processes": self.count, "--process": self.index}
        missing = [flag for flag, value in given.items() if value is None]
        if self.lost_after < 1:
            raise ConfigError(f"--lost_after={self.lost_after} must be at least 1 (second)")
        if self.stalled_after < 0:
            raise ConfigError(f"--stalled_after={self.stalled_after} must be at least 1 (second), or 0 for never")
        if len(missing) == 3 or given == {"--coordinator": None, "--processes": 1, "--process": None}:
            return
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} missing: several processes each need --coordinator=HOST:PORT --processes=N "
                "--process=I; none of the three where JAX recognises the cluster; --processes=1 for one alone"
            )
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                f"--process={self.index} is not one of --processes={self.count}; they are numbered from 0"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ConfigError(
                f"--coordinator={self.coordinator} is not HOST:PORT; it is where process 0 listens, e.g. 10.0.0.1:12345"
            )


@contextlib.contextmanager
def join_processes(processes: DistributedConfig, log_error: Callable[[str], None]):
    """Inside, `jax.devices()` are those of all processes; gives which one this is. To be entered before JAX computes.

    log_error: writes a line to standard error.

    What is raised inside ends a process of several here, after its message, with its exit code: at Python's usual end
    it would wait for the others, which wait for it. The others are then ended by JAX's service, `lost_after` seconds
    later at most. Raises ConfigError where the others cannot be found.
    """
    import jax  # only now: a typo in a flag is reported at once

    if processes.count != 1:
        _join(processes, log_error)
    try:
        yield jax.process_index() if jax.distributed.is_initialized() else 0  # without starting a device that is alone
    except (Exception, KeyboardInterrupt) as e:
        if jax.process_count() == 1:
            raise
        this_process = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(e, UserError):
            log_error(f"error: {this_process}: {e}")
        else:
            if isinstance(e, jax.errors.JaxRuntimeError):  # what a computation with a lost process ends with, or not
                log_error(f"error: {this_process}: {str(e).strip().splitlines()[0]}")
                log_error(f"whether it is that another process is gone, is known in {processes.lost_after} s")
                time.sleep(2 * processes.lost_after)  # JAX's service names the lost one and ends this one
            traceback.print_exc()
            log_error(f"error: {this_process} ends of this")
        sys.stdout.flush()
        if jax.process_index() == 0:  # it has the service; without it the others end of that, not of their own reason
            time.sleep(GRACE_SECONDS)
        os._exit(getattr(e, "exit_code", 1))


def _join(processes: DistributedConfig, log_error: Callable[[str], None]) -> None:
    import jax

    explicit = {}
    if processes.count is not None:
        explicit = dict(
            coordinator_address=processes.coordinator, num_processes=processes.count, process_id=processes.index,
            cluster_detection_method="deactivate",
        )  # fmt: skip
        if processes.index == 0:
            _check_port(processes.coordinator)
        # JAX ends a process that waits in vain by itself, in words that say nothing of this.
        log_error(
            f"process {processes.index} of {processes.count} waits for the others at {processes.coordinator}, "
            f"{START_TIMEOUT} s at most"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away, which train/loop.py waits for
    try:
        jax.distributed.initialize(
            **explicit, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=processes.lost_after
        )
    except Exception as e:  # whatever a cluster's own libraries raise
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if not explicit and isinstance(e, ValueError) and "coordinator_address" in reason:
            return  # no cluster
        if not explicit and isinstance(e, RuntimeError) and "must be called before" in reason:
            return  # JAX has computed already: a program calls us, and joining was its matter
        raise ConfigError(
            f"the other processes cannot be joined: {reason}. Say who they are with --coordinator, --processes and "
            "--process, or --processes=1 to train alone"
        ) from e


def _check_port(coordinator: str) -> None:
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as e:
        raise ConfigError(
            f"--coordinator={coordinator}: process 0 cannot listen there: {e.strerror or e}; choose another port, the "
            "same for all processes"
        ) from None
