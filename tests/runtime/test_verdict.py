"""The verdict on given statuses and times. test_watchdog.py tests it with files and a clock."""

import dataclasses

import pytest

from llava_jax.runtime.heartbeat import READING, ProcessStatus
from llava_jax.runtime.verdict import (
    SLOW_FACTOR,
    ClusterView,
    PeerStatus,
    Stall,
    Verdict,
    WatchdogSettings,
    decide,
    explain,
    observe,
)

NOW = 100_000.0
PATIENCE = 100
COMPUTING = ProcessStatus(count=9, step=4, what="computing", slow=False)
BEHIND = ProcessStatus(count=8, step=4, what=READING, slow=False, ready=2)


def slow(status: ProcessStatus) -> ProcessStatus:
    return dataclasses.replace(status, what="compiling", slow=True)


def peer(status=COMPUTING, silent=0.0, idle=500.0) -> PeerStatus:
    return PeerStatus(status, NOW - silent, NOW - idle)


def view(idle=0.0, own=COMPUTING, peers=None, awake=1e4, read=0.0, read_step=0) -> ClusterView:
    """idle, awake, read: seconds since the times `since`, `awake_at` and `read_at` of the ClusterView."""
    peers = peers or {1: peer(), 2: peer()}
    return ClusterView(NOW, own, NOW - idle, NOW - awake, NOW - read, read_step, peers)


def verdict(index=0, warned=False, lost_warned=True, **given) -> Verdict:
    settings = WatchdogSettings(index, 3, lost_after=60, stalled_after=PATIENCE)
    return decide(view(**given), settings, warned, lost_warned)


def straggler(idle=500.0):
    return {1: peer(BEHIND, idle=idle), 2: peer()}


def silent(seconds: float, other=COMPUTING):
    return {1: peer(silent=seconds), 2: peer(other)}


def warn(seconds: float, *stragglers: int, **stall) -> Verdict:
    return Verdict(True, warn=Stall(seconds, stragglers, **stall))


NOTHING = Verdict(False)
SLOW_STRAGGLER = {1: peer(slow(BEHIND), idle=2000), 2: peer(idle=2000)}
ENDED = {1: peer(ProcessStatus(20, 4, "ended: no step for 200 s: why")), 2: peer()}
FAILED = {1: peer(ProcessStatus(20, 4, "ended: no such file")), 2: peer()}
FROM_1 = dict(index=1, peers={0: peer(silent=40), 2: peer()})

CASES = {
    "a recent step": (dict(idle=99, peers=straggler()), NOTHING),
    "a straggler is reported": (dict(idle=101, peers=straggler()), warn(101, 1)),
    "the own status counts too": (dict(idle=101, own=BEHIND), warn(101, 0)),
    "the idle time is that of the straggler": (dict(idle=101, peers=straggler(idle=99)), NOTHING),
    "others leave the warning to process 0": (
        dict(index=2, idle=101, peers={0: peer(), 1: peer(BEHIND)}),
        Verdict(True),
    ),
    "warned once": (dict(warned=True, idle=199, peers=straggler()), Verdict(True)),
    "ends after twice as long": (dict(warned=True, idle=200, peers=straggler()), Verdict(True, end=Stall(200, (1,)))),
    "a run never ends without a warning": (dict(idle=900, peers=straggler(idle=900)), warn(900, 1)),
    "a new step resets the warning": (dict(warned=True, idle=5, peers=straggler()), NOTHING),
    "a slow activity may last longer": (dict(idle=SLOW_FACTOR * PATIENCE - 1, peers=SLOW_STRAGGLER), NOTHING),
    "a slow activity may not last forever": (
        dict(idle=SLOW_FACTOR * PATIENCE, peers=SLOW_STRAGGLER),
        warn(SLOW_FACTOR * PATIENCE, 1),
    ),
    "all processes are equally far": (dict(idle=101), warn(101, 0, 1, 2)),
    "a silent process is blamed, not a straggler": (dict(idle=101, peers=silent(40, BEHIND)), warn(101, silent=(1,))),
    "silent for less than a third": (dict(idle=101, peers=silent(33, BEHIND)), warn(101, 2)),
    "a silent process gets no more time when slow": (
        dict(idle=101, own=slow(COMPUTING), peers={1: peer(slow(BEHIND), silent=40), 2: peer()}),
        warn(101, silent=(1,)),
    ),
    "the next process warns if process 0 is silent": (dict(idle=101, **FROM_1), warn(101, silent=(0,))),
    "the workdir does not respond": (dict(idle=101, read=34, peers=silent(40)), warn(101, is_readable=False)),
    "an unresponsive workdir during a slow activity": (dict(idle=101, read=34, own=slow(COMPUTING)), NOTHING),
    "this process was suspended": (dict(idle=3000, awake=99, peers=straggler()), NOTHING),
    "another process has ended because of the stall": (
        dict(idle=51, peers=ENDED),
        Verdict(False, follow="ended: no step for 200 s: why"),
    ),
    "this process still makes steps": (dict(idle=50, peers=ENDED), NOTHING),
    "another process has failed, which is no stall": (dict(idle=51, peers=FAILED), NOTHING),
    "a lost process is reported early": (
        dict(lost_warned=False, idle=16, peers=silent(8)),
        Verdict(False, lost=Stall(16, silent=(1,))),
    ),
    "a lost process is silent for an eighth": (dict(lost_warned=False, idle=16, peers=silent(7)), NOTHING),
    "a lost process is reported after a quarter without steps": (
        dict(lost_warned=False, idle=15, peers=silent(40)),
        NOTHING,
    ),
    "a lost process is reported once": (dict(lost_warned=True, idle=16, peers=silent(40)), NOTHING),
    "a lost process is reported by process 0 only": (dict(lost_warned=False, idle=16, **FROM_1), NOTHING),
    "process 0 reports none during its slow activities": (
        dict(lost_warned=False, idle=16, own=slow(COMPUTING), peers=silent(40)),
        NOTHING,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    given, expected = CASES[case]
    assert verdict(**given) == expected


OBSERVED = {
    "first reading": (None, COMPUTING, (COMPUTING, NOW, 70)),
    "first reading, no file": (None, None, (ProcessStatus(), NOW, 70)),
    "unchanged": (ProcessStatus(3, sign=5), ProcessStatus(3, sign=5), (ProcessStatus(3, sign=5), 10, 20)),
    "new heartbeat": (ProcessStatus(3, sign=5), ProcessStatus(3, sign=6), (ProcessStatus(3, sign=6), NOW, 20)),
    "new activity": (ProcessStatus(3, sign=5), ProcessStatus(4, sign=6), (ProcessStatus(4, sign=6), NOW, 70)),
    "incomplete file": (ProcessStatus(3, sign=5), None, (ProcessStatus(3, sign=5), 10, 20)),
}


@pytest.mark.parametrize("case", OBSERVED)
def test_heartbeat_is_compared_with_the_previous_one(case):
    previous, status, expected = OBSERVED[case]
    before = previous and PeerStatus(previous, alive_at=10, progress_at=20)
    assert observe(before, status, now=NOW, earliest=70) == PeerStatus(*expected)


def names(step, process, ready) -> list[str]:
    return [f"{step} {process} {ready}"]


TEXTS = {
    "reading straggler, with the row being read": (
        Stall(101, (1,)), dict(peers=straggler()),
        "process 1 of 3 is behind, reading rows (step 4), in step 4 with '4 1 2'",
    ),
    "other straggler, with all its rows": (
        Stall(101, (0,)), dict(), "process 0 of 3 is behind, computing (step 4), in step 4 with '4 0 None'"
    ),
    "silent process, with the first step without it": (
        Stall(101, silent=(1,)), dict(peers=silent(40), read_step=7),
        "process 1 of 3 has written no heartbeat for 40 s, last seen computing (step 4), in step 8 with '8 1 None'",
    ),
    "failed process, with its reason": (
        Stall(101, silent=(1,)), dict(peers={1: peer(ProcessStatus(20, 4, "ended: no such file"), silent=9)}),
        "process 1 of 3 has written no heartbeat for 9 s; ended: no such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_explanation(case):
    stall, given, expected = TEXTS[case]
    assert explain(stall, view(**given), WatchdogSettings(0, 3, 60, PATIENCE), names) == expected


def test_explanation_names_up_to_16_processes():
    peers = {p: peer() for p in range(1, 20)}
    settings = WatchdogSettings(0, 20, 60, PATIENCE)
    text = explain(Stall(101, tuple(range(20))), view(peers=peers), settings, lambda *_: [])
    assert text.startswith(
        "all processes are equally far, so the cause is a device, the network or the workdir; process 0 of"
    )
    assert "process 15 of 20" in text and "process 16 of 20" not in text and text.endswith("; and 4 more")
    text = explain(Stall(101, silent=tuple(range(1, 19))), view(peers=peers), settings, lambda *_: [])
    assert text.endswith("; and 2 more") and "equally far" not in text
