"""Rows from worker processes: their order, their exceptions, and how workers end."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llava_jax.data.workers import WorkerRows
from llava_jax.errors import DataError, UserError

ROW_BYTES = 2_000_000  # far more than a pipe holds, so that a worker is nearly always in the middle of a write


class Squares:
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"n": np.array(index**2), "notes": ["", str(index)]}


class Big:
    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        return np.full(ROW_BYTES, index % 251, np.uint8)


class UnpicklableError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


class Faulty:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise DataError("sample 'five': it is broken")
        if index == 6:
            raise UnpicklableError(1, 2)
        return index


@pytest.mark.parametrize("threads, ahead, start", [(0, 0, 0), (2, 3, 5)])
def test_rows_come_in_order_and_end(threads, ahead, start):
    rows = WorkerRows(Squares(), start, 2, threads, ahead)
    result = list(rows)
    assert [int(row["n"]) for row in result] == [i**2 for i in range(start, 23)]
    assert result[0]["notes"] == ["", str(start)]
    rows.close()
    rows.close()


def test_worker_exception_is_raised_at_its_row():
    rows = WorkerRows(Faulty(), 0, 2, 2, 2)
    assert [next(rows) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="^sample 'five': it is broken$"):
        next(rows)
    rows.close()
    rows = WorkerRows(Faulty(), 6, 1, 1, 1)
    with pytest.raises(RuntimeError, match="in a data worker:\n(.*\n)*.*UnpicklableError: 1 2"):
        next(rows)
    rows.close()


def test_starting_workers_ignore_signals_meant_for_the_run():
    rows = WorkerRows(Squares(), 0, 2, 1, 1)
    for process in rows._processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert [int(row["n"]) for row in rows] == [i**2 for i in range(23)]
    rows.close()


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_worker_is_reported_at_once_even_mid_row(victim):
    rows = WorkerRows(Big(), 0, 2, 1, 2)
    assert [next(rows)[0] for _ in range(4)] == [0, 1, 2, 3]
    time.sleep(0.5)
    process = rows._processes[victim]
    os.kill(process.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"data worker {victim + 1} of 2 \(process {process.pid}\) was killed by SIGKILL"
    ):
        while True:
            next(rows)
    rows.close()
    assert time.monotonic() - start < 10
    assert not any(p.is_alive() for p in rows._processes)


RUN = """
import sys, time
sys.path.insert(0, {folder!r})
from test_workers import Big
from llava_jax.data.workers import WorkerRows
if __name__ == "__main__":
    rows = WorkerRows(Big(), 0, 2, 1, 2)
    next(rows), next(rows)
    print(*(p.pid for p in rows._processes), flush=True)
    {then}
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("then, signum", [("time.sleep(60)", signal.SIGKILL), ("raise SystemExit(0)", None)])
def test_workers_do_not_outlive_the_run(tmp_path, then, signum):
    """Whether the run is killed or exits without closing its rows."""
    (tmp_path / "run.py").write_text(RUN.format(folder=os.path.dirname(__file__), then=then))
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2
    if signum:
        assert all(map(alive, pids))
        for pid in pids:
            os.kill(pid, signal.SIGTERM)  # as a scheduler does; only the run ends its workers
        time.sleep(0.5)
        assert all(map(alive, pids))
        run.send_signal(signum)
    try:
        run.wait(60)
    finally:
        run.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
