"""The watchdog of a run of several processes: names the process that holds up the others, and its samples, and ends.

Two threads: one writes this process's heartbeat and reads those of the others (heartbeat.py), one judges them
(verdict.py), logs a warning, and ends the process when nothing has changed after as long again.
"""

import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llava_jax.errors import DataError
from llava_jax.runtime.distributed import DistributedConfig
from llava_jax.runtime.heartbeat import ENDED, STALLED, Heartbeat, ProcessStatus
from llava_jax.runtime.verdict import (
    ClusterView,
    PeerStatus,
    SampleNames,
    Stall,
    WatchdogSettings,
    decide,
    explain,
    observe,
)


class Watchdog:
    """Does nothing at all in a run of one process, or with `stalled_after` 0."""

    def __init__(self, folder: Path, processes: DistributedConfig, index: int, count: int, log, clock=time.monotonic):
        """folder: the workdir. log: writes a line to standard error. clock: seconds.

        Raises DataError where the workdir cannot be written.
        """
        self._clock, self._log, now = clock, log, clock()
        self._settings = WatchdogSettings(index, count, processes.lost_after, processes.stalled_after)
        self._activity = ProcessStatus(), now  # of this process, and when it began
        self._rows_ready: Callable[[], int] = lambda: 0
        self._sample_names: SampleNames = lambda step, process, ready: []
        self._read_step, self._closed = 0, threading.Event()
        # Of the thread that reads and writes heartbeats.
        self._peers: dict[int, PeerStatus] = {}
        self._compared_at = self._read_at = now
        # Of the thread that judges.
        self._judged_at = self._awake_at = now
        self._warned = self._lost_warned = False
        self._reason, self._ends_at = "", 0.0  # why and when this process ends, once that is decided
        self._heartbeat: Heartbeat | None = None  # None: turned off
        if count > 1 and processes.stalled_after > 0:
            try:
                self._heartbeat = Heartbeat(folder, index, count)
            except OSError as e:
                raise DataError(
                    f"workdir {folder} cannot be written ({e.strerror or e}); choose another --workdir"
                ) from e

    def start(self) -> None:
        """Starts the two threads."""
        # Two threads: a folder that does not answer must not keep us from saying so.
        for action in (self.beat, self.check) if self._heartbeat else ():
            threading.Thread(target=self._repeat, args=(action,), daemon=True).start()

    def close(self) -> None:
        """Stops both threads."""
        self._closed.set()

    def begin(self, activity: str, step: int | None = None, slow: bool = False) -> None:
        """This process begins something. All processes must call it with the same activities, in the same order.

        step: the global step, None for the same as before. slow: it may last longer than a step.
        """
        status, _ = self._activity
        new = ProcessStatus(status.count + 1, status.step if step is None else step, activity, slow)
        self._activity = new, self._clock()

    def watch_data(self, rows_ready: Callable[[], int], sample_names: SampleNames) -> None:
        """The data of the steps that follow. rows_ready: rows that are made of the batch that this process reads. Both
        are called by other threads."""
        self._rows_ready, self._sample_names = rows_ready, sample_names

    def record_step(self, step: int) -> None:
        """The metrics of global step `step` are here: all processes took part in it."""
        self._read_step = step

    def record_end(self, reason: str) -> None:
        """Leaves the reason why this process ends for the others to read."""
        self.begin(ENDED + reason, slow=True)
        if self._heartbeat:
            self.beat()

    def explain_lost(self) -> str:
        """After a computation of all processes has failed: which of them have no heartbeat, "" where all have one.

        Takes a quarter of `lost_after`: JAX's service ends this process after half of it at the earliest.
        """
        if not self._heartbeat:
            return ""
        self.begin("a computation has failed", slow=True)
        seconds = self._settings.lost_after / 4
        self._read_peers()
        time.sleep(seconds)
        self._read_peers()
        return self._explain(Stall(0.0, silent=self._view().silent_for(0.9 * seconds)))

    # --- the thread of heartbeats

    def beat(self) -> None:
        """Writes a heartbeat, and reads those of the others where this process makes no step."""
        settings = self._settings
        try:
            self._heartbeat.write(self._current_status()[0])
            # Not always: n processes would read n files each. Process 0 reads sooner, to warn of a lost one.
            soon = settings.lost_after / 10 if settings.index == 0 else settings.stalled_after
            if self._clock() - self._activity[1] > min(settings.stalled_after / 2, soon):
                self._read_peers()
        except OSError:  # a full disk, for one: the run itself notices that
            pass
        self._read_at = self._clock()

    def _read_peers(self) -> None:
        now = self._clock()
        earliest = max(self._activity[1], self._compared_at)
        statuses = self._heartbeat.read_others()
        self._peers = {p: observe(self._peers.get(p), status, now, earliest) for p, status in statuses.items()}
        self._compared_at = now

    # --- the thread of verdicts

    def check(self) -> None:
        """Warns once of the processes that hold up the others, and ends this one when that has lasted twice as long."""
        now, settings = self._clock(), self._settings
        if now - self._judged_at > 5 * settings.interval:  # suspended meanwhile, it knows nothing of the others
            self._awake_at = now
        self._judged_at = now
        if self._reason:
            if now >= self._ends_at:
                _end(
                    f"process {settings.index} of {settings.count}: {self._reason.removeprefix(ENDED)}. The same "
                    "command goes on from the newest checkpoint; --stalled_after says how long to wait",
                    self._log,
                )
            return
        verdict = decide(self._view(), settings, self._warned, self._lost_warned)
        self._warned = verdict.warned
        if verdict.lost:
            self._lost_warned = True
            self._log(f"WARNING: no step for {verdict.lost.seconds:.0f} s: {self._explain(verdict.lost)}")
        if verdict.follow:
            self._end_soon(verdict.follow)
        elif verdict.end:
            self._end_soon(f"{STALLED}{verdict.end.seconds:.0f} s: {self._explain(verdict.end)}")
        elif verdict.warn:
            reason = self._explain(verdict.warn)
            self._log(f"WARNING: no step for {verdict.warn.seconds:.0f} s: {reason}. In as long again the run ends")

    def _end_soon(self, reason: str) -> None:
        """Not at once: the others are to read this and end of it, and not of JAX's service, which ends them where a
        process is gone, and ends itself with process 0."""
        settings = self._settings
        self._ends_at = self._clock() + settings.interval * (5 if settings.index == 0 else 1.5)
        self._reason = reason
        self.begin(reason, slow=True)

    # --- both

    def _current_status(self) -> tuple[ProcessStatus, float]:
        """(what this process does, since when)."""
        status, since = self._activity
        return dataclasses.replace(status, ready=self._rows_ready()), since

    def _view(self) -> ClusterView:
        own, since = self._current_status()
        return ClusterView(self._clock(), own, since, self._awake_at, self._read_at, self._read_step, self._peers)

    def _explain(self, stall: Stall) -> str:
        if not stall.is_readable:
            return f"{self._heartbeat.folder} has not answered for as long"
        return explain(stall, self._view(), self._settings, self._names_within_time)

    def _names_within_time(self, step: int, process: int, ready: int | None) -> list[str]:
        """The names are read from this process's copy of the data, which may hang too."""
        names: list[str] = []

        def read_names():
            names.extend(self._sample_names(step, process, ready))

        thread = threading.Thread(target=read_names, daemon=True)
        thread.start()
        thread.join(max(1, self._settings.stalled_after / 10))
        return names

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._closed.wait(self._settings.interval):
            action()


def _end(reason: str, log: Callable[[str], None]) -> None:
    log(f"error: {reason}")
    for child in multiprocessing.active_children():  # a data worker that hangs would live on
        child.kill()
    os._exit(1)
