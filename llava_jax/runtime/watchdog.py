"""The watchdog of a run of several processes: names a straggler and its samples, and ends the run.

One thread writes this process's heartbeat and reads those of the others (heartbeat.py). Another one judges them
(verdict.py), logs a warning, and ends the process if the stall lasts twice as long. They are two because a folder that
does not respond must not delay the warning.
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
    """Does nothing in a run of one process, or with `stalled_after` 0."""

    def __init__(self, folder: Path, processes: DistributedConfig, index: int, count: int, log, clock=time.monotonic):
        """folder: the workdir; DataError where it cannot be written. log: writes to standard error. clock: seconds."""
        self._clock, self._log, now = clock, log, clock()
        self._settings = WatchdogSettings(index, count, processes.lost_after, processes.stalled_after)
        self._activity = ProcessStatus(), now  # of this process, and its start
        self._rows_ready: Callable[[], int] = lambda: 0
        self._sample_names: SampleNames = lambda step, process, ready: []
        self._read_step, self._closed = 0, threading.Event()
        # Used by the heartbeat thread.
        self._peers: dict[int, PeerStatus] = {}
        self._compared_at = self._read_at = now
        # Used by the verdict thread.
        self._judged_at = self._awake_at = now
        self._warned = self._lost_warned = False
        self._reason, self._ends_at = "", 0.0  # why and when this process ends, once decided
        self._heartbeat: Heartbeat | None = None  # None: disabled
        if count > 1 and processes.stalled_after > 0:
            try:
                self._heartbeat = Heartbeat(folder, index, count)
            except OSError as e:
                raise DataError(
                    f"workdir {folder} cannot be written ({e.strerror or e}); choose another --workdir"
                ) from e

    def start(self) -> None:
        """Starts the two threads."""
        for action in (self.beat, self.check) if self._heartbeat else ():
            threading.Thread(target=self._repeat, args=(action,), daemon=True).start()

    def close(self) -> None:
        """Stops both threads."""
        self._closed.set()

    def begin(self, activity: str, step: int | None = None, slow: bool = False) -> None:
        """Records a new activity. All processes must begin the same activities in the same order.

        step: the global step, None if unchanged. slow: the activity may last longer than a step.
        """
        status, _ = self._activity
        new = ProcessStatus(status.count + 1, status.step if step is None else step, activity, slow)
        self._activity = new, self._clock()

    def watch_data(self, rows_ready: Callable[[], int], sample_names: SampleNames) -> None:
        """Sets the data of the following steps. rows_ready: finished rows of the batch being read. Both are called by
        other threads."""
        self._rows_ready, self._sample_names = rows_ready, sample_names

    def record_step(self, step: int) -> None:
        """Records that the metrics of global step `step` are here, so that all processes took part in it."""
        self._read_step = step

    def record_end(self, reason: str) -> None:
        """Writes the reason why this process ends to its heartbeat file, for the others."""
        self.begin(ENDED + reason, slow=True)
        if self._heartbeat:
            self.beat()

    def explain_lost(self) -> str:
        """Names the processes without a heartbeat after a failed computation; "" if there are none. Waits for a quarter
        of `lost_after`, because JAX's service ends this process after half of it at the earliest."""
        if not self._heartbeat:
            return ""
        self.begin("a computation has failed", slow=True)
        seconds = self._settings.lost_after / 4
        self._read_peers()
        time.sleep(seconds)
        self._read_peers()
        return self._explain(Stall(0.0, silent=self._view().silent_for(0.9 * seconds)))

    # --- heartbeat thread

    def beat(self) -> None:
        """Writes a heartbeat. Reads those of the others if this process makes no step."""
        settings = self._settings
        try:
            self._heartbeat.write(self._current_status()[0])
            # Not every time: n processes would read n files each. Process 0 reads sooner, to report a lost process.
            soon = settings.lost_after / 10 if settings.index == 0 else settings.stalled_after
            if self._clock() - self._activity[1] > min(settings.stalled_after / 2, soon):
                self._read_peers()
        except OSError:  # e.g. a full disk, which the run reports itself
            pass
        self._read_at = self._clock()

    def _read_peers(self) -> None:
        now = self._clock()
        earliest = max(self._activity[1], self._compared_at)
        statuses = self._heartbeat.read_others()
        self._peers = {p: observe(self._peers.get(p), status, now, earliest) for p, status in statuses.items()}
        self._compared_at = now

    # --- verdict thread

    def check(self) -> None:
        """Acts on the verdict: logs a warning, or ends this process."""
        now, settings = self._clock(), self._settings
        if now - self._judged_at > 5 * settings.interval:  # suspended meanwhile: its view of the others is old
            self._awake_at = now
        self._judged_at = now
        if self._reason:
            if now >= self._ends_at:
                _end(
                    f"process {settings.index} of {settings.count}: {self._reason.removeprefix(ENDED)}. The same "
                    "command resumes from the newest checkpoint; --stalled_after sets how long to wait",
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
            self._log(
                f"WARNING: no step for {verdict.warn.seconds:.0f} s: {reason}. The run ends if this lasts as long again"
            )

    def _end_soon(self, reason: str) -> None:
        """Delays the end so that the others read the reason. Otherwise JAX's service would end them first: it ends all
        processes when one is gone, and process 0 hosts it."""
        settings = self._settings
        self._ends_at = self._clock() + settings.interval * (5 if settings.index == 0 else 1.5)
        self._reason = reason
        self.begin(reason, slow=True)

    # --- both threads

    def _current_status(self) -> tuple[ProcessStatus, float]:
        """(status of this process, start of its activity)."""
        status, since = self._activity
        return dataclasses.replace(status, ready=self._rows_ready()), since

    def _view(self) -> ClusterView:
        own, since = self._current_status()
        return ClusterView(self._clock(), own, since, self._awake_at, self._read_at, self._read_step, self._peers)

    def _explain(self, stall: Stall) -> str:
        if not stall.is_readable:
            return f"{self._heartbeat.folder} has not responded for as long"
        return explain(stall, self._view(), self._settings, self._names_within_time)

    def _names_within_time(self, step: int, process: int, ready: int | None) -> list[str]:
        """Reads the names in a thread, because they come from this process's copy of the data, which may hang too."""
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
    for child in multiprocessing.active_children():  # a hanging data worker would survive
        child.kill()
    os._exit(1)
