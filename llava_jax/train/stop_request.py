"""SIGTERM handling: all processes of a run stop at the same step."""

import contextlib
import signal

import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """signalled: whether this process got SIGTERM. is_agreed: whether the run has to stop. It changes at the same step
    on all processes, because otherwise they would wait for each other."""

    def __init__(self, is_single_process: bool):
        self.is_single_process = is_single_process
        self.signalled = self.is_agreed = False

    def agree(self, stop: bool) -> None:
        """Stops if `stop`, the metric that a step has reported to all processes."""
        self.is_agreed = self.is_agreed or stop

    def synchronize(self) -> bool:
        """Whether to stop, outside of steps. Every process must call it, and waits for the others."""
        if not self.is_single_process and not self.is_agreed:
            self.is_agreed = bool(np.any(multihost_utils.process_allgather(np.array(self.signalled))))
        return self.is_agreed

    @contextlib.contextmanager
    def on_sigterm(self):
        """Context in which SIGTERM sets this request."""
        previous = signal.signal(signal.SIGTERM, lambda signum, frame: self._receive())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _receive(self) -> None:
        self.signalled = True
        self.agree(self.is_single_process)  # with several processes, the next step reports it
