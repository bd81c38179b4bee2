"""Finds the straggler among several processes. Pure functions: no clock, file or thread.

All processes begin the same activities in the same order, so the others wait for the one that has begun the fewest.
Each process decides whether it waits by its own activity and its own monotonic clock (seconds), because host clocks
differ and a shared folder may be out of date. So the wrong process may be named, but no run that makes steps is ended.
"""

import dataclasses
from collections.abc import Callable

from llava_jax.runtime.heartbeat import ENDED, READING, STALLED, ProcessStatus

SLOW_FACTOR = 10  # how many times longer a slow activity may last: compiling, evaluating, saving, opening data
MAX_NAMES = 16  # sample ids and processes in a message

# (global step, process, finished rows) -> ids of the samples in the row being read; in all rows for None.
SampleNames = Callable[[int, int, int | None], list[str]]


@dataclasses.dataclass(frozen=True)
class WatchdogSettings:
    """For process `index` of `count`. lost_after, stalled_after: seconds, see `DistributedConfig`."""

    index: int
    count: int
    lost_after: float
    stalled_after: float

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats, and between two verdicts."""
        return min(10, self.stalled_after / 10, self.lost_after / 20)


@dataclasses.dataclass(frozen=True)
class PeerStatus:
    """Another process as observed by this one. alive_at: when its heartbeat last changed. progress_at: the earliest
    time at which it may have begun its current activity."""

    status: ProcessStatus
    alive_at: float
    progress_at: float


@dataclasses.dataclass(frozen=True)
class ClusterView:
    """What this process knows at time `now`. since: start of its own activity. awake_at: when it was last resumed after
    a suspension. read_at: when it last read the heartbeats of the others. read_step: the latest global step whose
    metrics it has, so that all processes took part in it."""

    now: float
    own: ProcessStatus
    since: float
    awake_at: float
    read_at: float
    read_step: int
    peers: dict[int, PeerStatus]

    def silent_for(self, seconds: float) -> tuple[int, ...]:
        """The processes whose heartbeat has not changed for `seconds`."""
        return tuple(sorted(p for p, peer in self.peers.items() if self.now - peer.alive_at >= seconds))


@dataclasses.dataclass(frozen=True)
class Stall:
    """No step for `seconds`, because of `stragglers` or of `silent` processes, which have no new heartbeat.
    is_readable: whether the workdir responds; if not, nothing is known of the others."""

    seconds: float
    stragglers: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    is_readable: bool = True


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What this process has to do now.

    warned: this stall has been logged, by this process or another; input of the next `decide`. lost, warn: stalls to
    log. end: the stall to end the run for. follow: end the run for this reason of another process.
    """

    warned: bool
    lost: Stall | None = None
    warn: Stall | None = None
    end: Stall | None = None
    follow: str = ""


def observe(previous: PeerStatus | None, status: ProcessStatus | None, now: float, earliest: float) -> PeerStatus:
    """The peer after its heartbeat was read again. status: None where it cannot be read. earliest: the earliest time at
    which it may have begun a new activity."""
    status = status or (previous.status if previous else ProcessStatus())
    if previous is None:
        return PeerStatus(status, now, earliest)
    return PeerStatus(
        status,
        alive_at=now if status.sign != previous.status.sign else previous.alive_at,
        progress_at=earliest if status.count != previous.status.count else previous.progress_at,
    )


def decide(view: ClusterView, settings: WatchdogSettings, warned: bool, lost_warned: bool) -> Verdict:
    """Decides whether to warn of a stall, once, or to end the run, after twice as long. warned: that of the previous
    verdict. lost_warned: whether a `lost` verdict was logged, which happens once."""
    patience = settings.stalled_after
    idle = view.now - max(view.since, view.awake_at)
    lost = None if lost_warned else _lost(view, settings, idle)
    reasons = [peer.status.what for peer in view.peers.values() if peer.status.what.startswith(STALLED)]
    if reasons and idle > patience / 2:
        return Verdict(warned, lost, follow=reasons[0])
    if idle < patience:
        return Verdict(False, lost)
    stall, bound = _stall(view, settings, idle)
    if stall.seconds < bound * (2 if warned else 1):
        return Verdict(warned, lost)
    if warned:
        return Verdict(True, lost, end=stall)
    reporter = min(set(range(settings.count)) - set(stall.silent))
    return Verdict(True, lost, warn=stall if settings.index == reporter else None)


def _lost(view: ClusterView, settings: WatchdogSettings, idle: float) -> Stall | None:
    """Process 0 reports a lost process earlier than a stall, because JAX may end the run before."""
    silent = view.silent_for(min(settings.stalled_after / 3, settings.lost_after / 8))
    is_due = settings.index == 0 and not view.own.slow and idle > settings.lost_after / 4
    return Stall(idle, silent=silent) if silent and is_due else None


def _stall(view: ClusterView, settings: WatchdogSettings, idle: float) -> tuple[Stall, float]:
    """(the stall, how many seconds it may last)."""
    patience = settings.stalled_after
    if view.now - view.read_at >= patience / 3:
        return Stall(idle, is_readable=False), patience * (SLOW_FACTOR if view.own.slow else 1)
    if silent := view.silent_for(patience / 3):
        return Stall(idle, silent=silent), patience
    statuses = {settings.index: view.own, **{process: peer.status for process, peer in view.peers.items()}}
    least = min(status.count for status in statuses.values())
    stragglers = tuple(process for process, status in sorted(statuses.items()) if status.count == least)
    idle = min([idle, *(view.now - view.peers[p].progress_at for p in stragglers if p != settings.index)])
    is_slow = any(statuses[process].slow for process in stragglers)
    return Stall(idle, stragglers), patience * (SLOW_FACTOR if is_slow else 1)


def explain(stall: Stall, view: ClusterView, settings: WatchdogSettings, names: SampleNames) -> str:
    """The processes that hold up the others, with their activities and samples."""
    parts = [_explain_straggler(p, view, settings, names) for p in stall.stragglers[:MAX_NAMES]]
    parts += [_explain_silent(p, view, settings, names) for p in stall.silent[:MAX_NAMES]]
    if more := len(stall.stragglers) + len(stall.silent) - len(parts):
        parts.append(f"and {more} more")
    if len(stall.stragglers) == settings.count:
        parts.insert(0, "all processes are equally far, so the cause is a device, the network or the workdir")
    return "; ".join(parts)


def _explain_straggler(process: int, view: ClusterView, settings: WatchdogSettings, names: SampleNames) -> str:
    status = view.own if process == settings.index else view.peers[process].status
    text = f"process {process} of {settings.count} is behind, {status.what} (step {status.step})"
    return text + _list_samples(status.step, process, status.ready if status.what == READING else None, names)


def _explain_silent(process: int, view: ClusterView, settings: WatchdogSettings, names: SampleNames) -> str:
    peer = view.peers[process]
    text = f"process {process} of {settings.count} has written no heartbeat for {view.now - peer.alive_at:.0f} s"
    if peer.status.what.startswith(ENDED):
        return f"{text}; {peer.status.what}"
    # Its file may be some steps old. It took part in all steps whose metrics are here.
    step = max(peer.status.step, view.read_step + 1)
    return f"{text}, last seen {peer.status.what} (step {peer.status.step})" + _list_samples(step, process, None, names)


def _list_samples(step: int, process: int, ready: int | None, names: SampleNames) -> str:
    ids = names(step, process, ready)
    more = f" and {len(ids) - MAX_NAMES} more" if len(ids) > MAX_NAMES else ""
    return f", in step {step} with {', '.join(map(repr, ids[:MAX_NAMES]))}{more}" if ids else ""
