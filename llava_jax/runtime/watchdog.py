"""Which of several processes holds up the others, and with which samples: then they say so, and end.

Each writes down that it lives and what it does, in `alive/<process>.json` of the workdir. All do the same things in the
same order, so the one that has come least far is the one that the others wait for. Whether they wait, each judges by
what it does itself and by its own clock: clocks of hosts differ, and a shared folder may show what is out of date. That
can make a wrong name, but not end a run that goes on.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llava_jax.data.pipeline import FILLER, Batches
from llava_jax.data.rows import Rows
from llava_jax.errors import DataError, harmless
from llava_jax.runtime.distributed import Processes

SLOW = 10  # times as long may last what is no step: compiling, evaluating, saving, opening data
TOLD = 16  # sample ids, and processes, that a message names
READING = "reading rows"
ENDED, STALLED = "ended: ", "ended: no step for "


@dataclasses.dataclass(frozen=True)
class Doing:
    """`count`: how many things a process has begun, `what` being the newest; `ready`: rows that are made of the batch
    it reads; `sign`: another one as long as it lives."""

    count: int = 0
    step: int = 0
    what: str = "starting"
    slow: bool = True
    ready: int = 0
    sign: int = 0


class Alive:
    """Of a process alone, or with `stalled_after` 0, it does nothing at all."""

    def __init__(self, folder: Path, processes: Processes, index: int, count: int, clock=time.monotonic):
        """folder: the workdir. Raises DataError where it cannot be written."""
        self._folder, self._index, self._count, self._clock = folder / "alive", index, count, clock
        self._patience, self._lost_after = processes.stalled_after, processes.lost_after
        self._every = min(10, self._patience / 10, self._lost_after / 20)
        self._own, self._since, self._data, self._read = Doing(), clock(), None, 0
        self._seen: dict[int, tuple[Doing, float, float]] = {}  # with when, here, it was seen to live and to go on
        self._looked = self._compared = self._checked = self._awake = clock()
        self._told, self._told_lost, self._closed = False, False, threading.Event()
        self._verdict, self._ends_at = "", 0.0
        self._old: dict[int, int] = {}  # the signs in the files of an earlier run
        self._on = count > 1 and self._patience > 0
        if not self._on:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write()
            self._look()
        except OSError as e:
            raise DataError(f"workdir {folder} cannot be written ({e.strerror or e}); choose another --workdir") from e
        self._old, self._seen = {p: doing.sign for p, (doing, _, _) in self._seen.items()}, {}

    def start(self) -> None:
        # Two threads: a folder that does not answer must not keep us from saying so.
        for rounds in (self.beat, self.check) if self._on else ():
            threading.Thread(target=self._repeat, args=(rounds,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def at(self, what: str, step: int | None = None, slow: bool = False) -> None:
        """This process begins something. All processes must say the same, in the same order."""
        own = self._own
        self._own = Doing(own.count + 1, own.step if step is None else step, what, slow)
        self._since = self._clock()

    def trains_on(self, batches: Batches, rows: Rows, before: int) -> None:
        """The data of the steps behind global step `before`, for the names of samples."""
        self._data = batches, rows, before

    def has_read(self, step: int) -> None:
        """The metrics of global step `step`: all processes took part in it."""
        self._read = step

    def ends(self, reason: str) -> None:
        """Leaves the reason for the others to see."""
        self.at(ENDED + reason, slow=True)
        if self._on:
            self.beat()

    def lost(self) -> str:
        """Where a computation of all failed: which processes give no sign of life, in words, "" where all do. Takes a
        quarter of `lost_after`: at the earliest behind half of it, JAX's service ends this process."""
        if not self._on:
            return ""
        self.at("a computation has failed", slow=True)
        self._look()
        time.sleep(self._lost_after / 4)
        self._look()
        return self._describe([], self._silent(0.9 * self._lost_after / 4))

    # --- one thread

    def beat(self) -> None:
        """Gives a sign of life, and looks at those of the others where this process does not go on."""
        try:
            self._write()
            # Not always: n processes would read n files each. Process 0 looks sooner, to tell of a lost one.
            soon = min(self._patience / 2, self._lost_after / 10 if self._index == 0 else self._patience)
            if self._clock() - self._since > soon:
                self._look()
        except OSError:  # a full disk, for one: the run itself notices that
            pass
        self._looked = self._clock()

    def _write(self) -> None:
        # Not under another name, to be renamed: an open file is what a shared folder keeps least out of date.
        own = dataclasses.replace(self._own, sign=time.time_ns(), ready=self._data[0].ready if self._data else 0)
        (self._folder / f"{self._index}.json").write_text(json.dumps(dataclasses.asdict(own)), encoding="utf-8")

    def _look(self) -> None:
        now = self._clock()
        for process in set(range(self._count)) - {self._index}:
            before, lived, went = self._seen.get(process, (None, now, now))
            try:
                doing = Doing(**json.loads((self._folder / f"{process}.json").read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):  # not there yet, or half written
                doing = before or Doing()
            if doing.sign == self._old.get(process):
                doing = Doing()
            if before and doing.sign != before.sign:
                lived = now
            if not before or doing.count != before.count:
                went = max(self._since, self._compared)  # when it may have gone on first
            self._seen[process] = doing, lived, went
        self._compared = now

    # --- the other one

    def check(self) -> None:
        """Says who holds up the others, once, and ends this process when that has lasted twice as long."""
        now, own = self._clock(), self._own
        if now - self._checked > 5 * self._every:  # this process was stopped itself, and knows nothing of the others
            self._awake = now
        self._checked = now
        if self._verdict:
            if now >= self._ends_at:
                _end(
                    f"process {self._index} of {self._count}: {self._verdict.removeprefix(ENDED)}. The same command "
                    "goes on from the newest checkpoint; --stalled_after says how long to wait"
                )
            return
        quiet = now - max(self._since, self._awake)
        silent = self._silent(min(self._patience / 3, self._lost_after / 8))
        if silent and self._index == 0 and not own.slow and quiet > self._lost_after / 4 and not self._told_lost:
            self._told_lost = True
            _say(f"WARNING: no step for {quiet:.0f} s: {self._describe([], silent)}")
        agreed = [seen.what for seen, _, _ in self._seen.values() if seen.what.startswith(STALLED)]
        if agreed and quiet > self._patience / 2:
            return self._end_of(agreed[0])
        if quiet < self._patience:
            self._told = False
            return
        answers = now - self._looked < self._patience / 3
        silent = self._silent(self._patience / 3) if answers else []
        doing = {self._index: own, **({p: seen for p, (seen, _, _) in self._seen.items()} if answers else {})}
        least = min(seen.count for seen in doing.values())
        behind = [] if silent else [p for p, seen in sorted(doing.items()) if seen.count == least]
        quiet = min([quiet, *(now - self._seen[p][2] for p in behind if p != self._index)])
        bound = self._patience * (SLOW if any(doing[p].slow for p in behind) else 1)
        if quiet < bound * (2 if self._told else 1):
            return
        why = self._describe(behind, silent) if answers else f"{self._folder} has not answered for as long"
        if self._told:
            self._end_of(f"{STALLED}{quiet:.0f} s: {why}")
        elif self._index == min(set(range(self._count)) - set(silent)):
            _say(f"WARNING: no step for {quiet:.0f} s: {why}. In as long again the run ends")
        self._told = True

    def _end_of(self, verdict: str) -> None:
        """Soon, not at once: the others are to read this and end of it, and not of JAX's service, which ends them where
        a process is gone, and ends itself with process 0."""
        self._verdict = verdict
        self._ends_at = self._clock() + self._every * (5 if self._index == 0 else 1.5)
        self.at(verdict, slow=True)

    def _silent(self, seconds: float) -> list[int]:
        return sorted(p for p, (_, lived, _) in self._seen.items() if self._clock() - lived >= seconds)

    def _describe(self, behind: list[int], silent: list[int]) -> str:
        found = [self._held_up_by(p) for p in behind[:TOLD]] + [self._silence_of(p) for p in silent[:TOLD]]
        if len(behind) == self._count:
            found.insert(0, "all do the same, so it is no process but a device, the network or the workdir")
        more = len(behind) + len(silent) - len(found)
        return "; ".join(found) + (f"; and {more} more" if more > 0 else "")

    def _held_up_by(self, process: int) -> str:
        if process == self._index:
            doing, ready = self._own, self._data[0].ready if self._data else 0
        else:
            doing, ready = self._seen[process][0], self._seen[process][0].ready
        samples = self._samples(process, doing.step, ready if doing.what == READING else None)
        return f"process {process} of {self._count} is behind, {doing.what} (step {doing.step})" + samples

    def _silence_of(self, process: int) -> str:
        doing, lived, _ = self._seen[process]
        # Its file may be some steps old. It took part in all those whose metrics are here.
        step, since = max(doing.step, self._read + 1), self._clock() - lived
        said = f"process {process} of {self._count} has given no sign of life for {since:.0f} s"
        if doing.what.startswith(ENDED):
            return f"{said}; {doing.what}"
        return f"{said}, last seen {doing.what} (step {doing.step})" + self._samples(process, step, None)

    def _samples(self, process: int, step: int, ready: int | None) -> str:
        """ready: of a process that reads, how many rows it has. All is asked of the data here, which may hang too."""
        names: list[str] = []

        def find():
            batches, rows, before = self._data
            index = batches.indices(step - before - 1, process)
            index = index if ready is None else index[ready : ready + 1]
            names.extend(name for i in index if i != FILLER for name in rows.asked_for(i))

        if self._data is None or step <= self._data[2]:
            return ""
        thread = threading.Thread(target=find, daemon=True)
        thread.start()
        thread.join(max(1, self._patience / 10))
        told = ", ".join(map(repr, names[:TOLD])) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")
        return f", in step {step} with {told}" if names else ""

    def _repeat(self, rounds: Callable[[], None]) -> None:
        while not self._closed.wait(self._every):
            rounds()


def _say(text: str) -> None:
    print(harmless(text), file=sys.stderr, flush=True)


def _end(reason: str) -> None:
    _say(f"error: {reason}")
    for child in multiprocessing.active_children():  # a data worker that hangs would live on
        child.kill()
    os._exit(1)
