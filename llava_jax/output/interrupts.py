"""Stop signals: SIGINT (Ctrl-C), SIGHUP (the terminal closes) and SIGTERM (schedulers).

The first asks the program to stop, a second ends the process at once. An exit code is 128 plus the signal's number.
"""

import contextlib
import math
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
DUPLICATE_WITHIN = 0.25  # seconds: wrappers (srun, docker, a shell) forward a signal that the process also gets itself
NOTICE_AFTER = 1.0  # seconds
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it

_partial_paths: set[Path] = set()


class Interrupt(KeyboardInterrupt):
    """A stop signal, raised in the main thread. exit_code: of the process."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.exit_code = signum, 128 + signum


def raise_interrupt(signum: int) -> None:
    raise Interrupt(signum)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code after `interrupt`; 130 for Python's own KeyboardInterrupt."""
    return getattr(interrupt, "exit_code", 128 + signal.SIGINT)


@contextlib.contextmanager
def stop_signals(on_first: Callable[[int], None], patience: float = math.inf) -> Iterator[None]:
    """Context in which the first stop signal calls `on_first(number)` on the main thread, as soon as that runs Python
    code. A second one ends the process at once, even in the middle of a computation: files that are being written stay
    partial, and worker processes are killed.

    patience: seconds after the first signal until the process is ended at once and its partial paths are removed.

    Signals that the process ignores when it starts (nohup, the background of a script) stay ignored. Contexts can be
    nested: the inner one decides. Outside the main thread, which alone can handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    is_first = True

    def receive(signum: int, frame: object) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            on_first(signum)

    # Python calls `receive` only between two operations of the main thread, which may wait minutes for a compiler. The
    # number is written to the pipe at once.
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handled = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    previous = {signum: signal.getsignal(signum) for signum in handled}
    threading.Thread(target=_watch_signals, args=(reader, patience), daemon=True).start()
    try:
        for signum in handled:
            signal.signal(signum, receive)
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(writer)


def _watch_signals(reader: int, patience: float) -> None:
    """Reads the numbers of signals until the pipe is closed."""
    first, started, is_noticed = 0, math.inf, False
    while True:
        seconds = time.monotonic() - started if first else 0.0
        if first and seconds >= patience:
            remove_partial_paths()
            end_at_once(first)
        if first and seconds >= NOTICE_AFTER and not is_noticed:
            is_noticed = True
            with contextlib.suppress(OSError):  # not print: the main thread may be printing
                os.write(2, b"%s: stopping; a second signal ends at once\n" % signal.Signals(first).name.encode())
        if not select.select([reader], [], [], 0.2 if first else None)[0]:
            continue
        if not (received := os.read(reader, 1)):
            return os.close(reader)
        if received[0] not in SIGNALS:
            continue
        if not first:
            first, started = received[0], time.monotonic()
        elif time.monotonic() - started > DUPLICATE_WITHIN:
            end_at_once(received[0])


def end_at_once(signum: int) -> None:
    """Kills the worker processes and ends this one, without Python's clean-up: that waits for threads, and destroys
    devices that the interrupted computations still use."""
    if "multiprocessing.process" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    if os.isatty(2):
        with contextlib.suppress(OSError):
            os.write(2, SHOW_CURSOR)
    os._exit(128 + signum)


def remove_on_stop(path: Path) -> None:
    """Removes a temporary file or folder if a stop signal ends the process."""
    _partial_paths.add(path)


@contextlib.contextmanager
def removed_on_stop(path: Path) -> Iterator[None]:
    """Context in which a file or folder is removed if a stop signal ends the process without its clean-up."""
    remove_on_stop(path)
    try:
        yield
    finally:
        _partial_paths.discard(path)


def remove_partial_paths() -> None:
    """Removes the paths of `remove_on_stop` and `removed_on_stop`."""
    for path in list(_partial_paths):
        # Renamed first: the main thread may be about to rename it to its final name, which must never be incomplete.
        removed = path.with_name(f"{path.name}.removed")
        with contextlib.suppress(OSError):
            path.rename(removed)
            if removed.is_dir():
                shutil.rmtree(removed, ignore_errors=True)
            else:
                removed.unlink()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Context in which worker processes are started: stop signals wait until the worker calls `ignore_stop_signals`."""
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def ignore_stop_signals() -> None:
    """Called in a worker process. Signals to the process group (Ctrl-C, a scheduler's SIGTERM) are for the program,
    which finishes its work and then ends the workers."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
