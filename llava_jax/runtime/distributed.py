"""Several processes that train as one run: how they connect, and how they end when one of them fails.

JAX's coordination service connects and monitors them: https://docs.jax.dev/en/latest/multi_process.html
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

START_TIMEOUT = 300  # seconds between the start of the first process and that of the last
GRACE_SECONDS = 2  # seconds in which the other processes can report their own errors


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The flags of a multi-process run. This is process `index` of `count`; process 0 listens at `coordinator`.

    coordinator: HOST:PORT. If it, count and index are None, JAX detects the cluster (TPU VM, GKE, Slurm, Open MPI) or
    the process is alone; with `count` 1 it is always alone. lost_after: seconds without a heartbeat after which a
    process counts as lost. stalled_after: seconds without a step after which the straggler is logged; after as many
    again the run ends; 0: never. Raises ConfigError.
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
                "--process=I; none of the three where JAX recognizes the cluster; --processes=1 for one alone"
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
    """Context that joins the processes; yields the index of this one. Enter it before JAX computes.

    log_error: writes a line to standard error. In a run of several processes, an exception inside is logged and ends
    this one at once with its exit code: at its usual exit Python would wait for the others, which wait for it. JAX's
    service ends the others within `lost_after` seconds. Raises ConfigError where the others cannot be joined.
    """
    import jax  # not at the top: a typo in a flag is reported at once

    if processes.count != 1:
        _join(processes, log_error)
    try:
        yield jax.process_index() if jax.distributed.is_initialized() else 0  # starts no device if alone
    except (Exception, KeyboardInterrupt) as e:
        if jax.process_count() == 1:
            raise
        this_process = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(e, UserError | KeyboardInterrupt):
            log_error(f"error: {this_process}: {e}")
        else:
            if isinstance(e, jax.errors.JaxRuntimeError):  # perhaps because a process was lost
                log_error(f"error: {this_process}: {str(e).strip().splitlines()[0]}")
                log_error(f"whether another process was lost is known in {processes.lost_after} s")
                time.sleep(2 * processes.lost_after)  # JAX's service names the lost process and ends this one
            traceback.print_exc()
            log_error(f"error: {this_process} ends because of the exception above")
        sys.stdout.flush()
        if jax.process_index() == 0:  # it hosts the service, without which the others end before they report theirs
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
        # If the wait times out, JAX aborts the process with a message that does not say what it waited for.
        log_error(
            f"process {processes.index} of {processes.count} waits for the others at {processes.coordinator}, "
            f"up to {START_TIMEOUT} s"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, which train/loop.py handles
    try:
        jax.distributed.initialize(
            **explicit, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=processes.lost_after
        )
    except Exception as e:  # cluster libraries raise errors of their own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if not explicit and isinstance(e, ValueError) and "coordinator_address" in reason:
            return  # no cluster
        if not explicit and isinstance(e, RuntimeError) and "must be called before" in reason:
            return  # JAX has computed already: joining is up to the program that calls us
        raise ConfigError(
            f"the other processes cannot be joined: {reason}. Pass --coordinator, --processes and --process, or "
            "--processes=1 to train alone"
        ) from e


def _check_port(coordinator: str) -> None:
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as e:
        raise ConfigError(
            f"--coordinator={coordinator}: process 0 cannot listen there: {e.strerror or e}; choose another port, the "
            "same for all processes"
        ) from None
