"""SIGTERM, on which all processes of a run act at the same step."""

import contextlib
import signal

import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """Whether the run has to stop.

    signalled: this process has received SIGTERM. is_agreed: all processes know of it, since the same step; otherwise
    they would wait for each other.
    """

    def __init__(self, is_single_process: bool):
        self.is_single_process = is_single_process
        self.signalled = self.is_agreed = False

    def agree(self, stop: bool) -> None:
        """stop: what a step has reported to all processes (`stop` in its metrics)."""
        self.is_agreed = self.is_agreed or stop

    def synchronize(self) -> bool:
        """Whether to stop, outside of steps. Every process must call it; they wait for each other."""
        if not self.is_single_process and not self.is_agreed:
            self.is_agreed = bool(np.any(multihost_utils.process_allgather(np.array(self.signalled))))
        return self.is_agreed

    @contextlib.contextmanager
    def on_sigterm(self):
        """Inside, SIGTERM is this request."""
        previous = signal.signal(signal.SIGTERM, lambda signum, frame: self._receive())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _receive(self) -> None:
        self.signalled = True
        self.agree(self.is_single_process)  # of several, the next step reports it to the others
