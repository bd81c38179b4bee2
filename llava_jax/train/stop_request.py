"""Stop signals during training: all processes of a run stop at the same step, and save."""

import contextlib
import signal

import numpy as np
from jax.experimental import multihost_utils

from llava_jax.output.interrupts import stop_signals


class Stopped(Exception):
    """A stop signal arrived; `exit_code` is 128 + its number. The same command resumes from the saved checkpoint."""

    exit_code = 128 + signal.SIGTERM


class StopRequest:
    """signalled: the number of the signal that this process got, or 0. is_agreed: whether the run has to stop. It
    changes at the same step on all processes, because otherwise they would wait for each other."""

    def __init__(self, is_single_process: bool):
        self.is_single_process = is_single_process
        self.signalled, self.is_agreed = 0, False

    def agree(self, stop: bool) -> None:
        """Stops if `stop`, the metric that a step has reported to all processes."""
        self.is_agreed = self.is_agreed or stop

    def synchronize(self) -> bool:
        """Whether to stop, outside of steps. Every process must call it, and waits for the others."""
        if not self.is_single_process and not self.is_agreed:
            self.is_agreed = bool(np.any(multihost_utils.process_allgather(np.array(self.signalled))))
        return self.is_agreed

    def on_signals(self) -> contextlib.AbstractContextManager:
        """Context in which the first stop signal sets this request; see `stop_signals` for the second."""
        return stop_signals(self.receive)

    def receive(self, signum: int = signal.SIGPIPE) -> None:
        """`signum` arrived. SIGPIPE: standard output is lost, e.g. with its terminal."""
        self.signalled = self.signalled or signum
        self.agree(self.is_single_process)  # with several processes, the next step reports it

    def stopped(self, step: int, stage: str, folder: object) -> Stopped:
        """The exception that ends this process after `step`."""
        cause = signal.Signals(self.signalled).name if self.signalled else "a signal to another process"
        stopped = Stopped(f"stopped by {cause} after step {step} of {stage}; the same command resumes {folder}")
        stopped.exit_code = 128 + self.signalled if self.signalled else Stopped.exit_code
        return stopped
