import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from llava_jax.data.inspection.parallel import CHUNK, map_rows
from llava_jax.errors import DataError, UserError


def squares(rows: range, fail_at: int = -1, die_at: int = -1) -> list:
    if fail_at in rows:
        raise DataError(f"row {fail_at}", "missing")
    if die_at in rows:
        os.kill(os.getpid(), signal.SIGKILL)
    return [(i * i, os.getpid()) for i in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_rows(workers):
    results = [result for chunk in map_rows(squares, 5 * CHUNK + 3, workers) for result in chunk]
    assert [value for value, _ in results] == [i * i for i in range(5 * CHUNK + 3)]
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 0)


def test_worker_exception_reaches_the_caller_unchanged():
    with pytest.raises(DataError, match="row 40") as caught:
        list(map_rows(partial(squares, fail_at=40), 3 * CHUNK, 2))
    assert caught.value.kind == "missing"


def test_killed_worker_is_reported():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(map_rows(partial(squares, die_at=40), 30 * CHUNK, 2))


PARENT = """
import sys, time
from functools import partial
sys.path.insert(0, "tests/data/inspection")
from llava_jax.data.inspection.parallel import map_rows
from test_parallel import squares
if __name__ == "__main__":
    results = map_rows(squares, 3200, 1)
    print(next(results)[0][1], flush=True)
    time.sleep(60)
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{worker}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":  # a zombie: some containers do not reap orphans
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
