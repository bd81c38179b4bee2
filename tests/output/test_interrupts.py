"""Stop signals, in child processes that they may end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llava_jax.output.interrupts import SIGNALS, Interrupt, raise_interrupt, stop_signals
from tests.fixtures.child_process import ROOT

# Prints "ready", then runs the statement {work} in the context.
PROGRAM = """
import multiprocessing, os, pathlib, signal, sys, time
from llava_jax.output import interrupts
from llava_jax.output.files import atomic_path
notes = []
def wait():
    print("ready", flush=True)
    time.sleep(60)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests may run in the background of a script, which ignores it
    signal.signal(signal.SIGHUP, signal.{handler})
    try:
        with interrupts.stop_signals({on_first}, {patience}):
            {work}
    except KeyboardInterrupt as e:
        print(repr(e), flush=True)
        sys.exit(7)
"""


def start(work: str, on_first="interrupts.raise_interrupt", patience="60", handler="SIG_DFL") -> subprocess.Popen:
    """handler: of SIGHUP, when the context begins."""
    code = PROGRAM.format(work=work, on_first=on_first, patience=patience, handler=handler)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=50)
    return process.returncode, out, err


@pytest.mark.parametrize("signum", SIGNALS)
def test_first_signal_is_raised_and_restored_afterwards(signum):
    initial = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(Interrupt) as interrupt, stop_signals(raise_interrupt):
        os.kill(os.getpid(), signum)
        time.sleep(1)
    assert interrupt.value.exit_code == 128 + signum and interrupt.value.signum == signum
    assert [signal.getsignal(s) for s in SIGNALS] == before and signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, initial)


def test_second_signal_ends_at_once_whatever_the_main_thread_does():
    process = start("wait()", on_first="notes.append")
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGHUP)
    started_at = time.monotonic()
    code, _, err = end(process)
    assert code == 129 and err == "SIGINT: stopping; a second signal ends at once\n"
    assert time.monotonic() - started_at < 5


def test_signal_forwarded_by_a_wrapper_counts_once():
    process = start("print('ready', flush=True); time.sleep(0.8)", on_first="notes.append")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "", "")


def test_process_that_does_not_react_ends_and_removes_partial_files(tmp_path):
    """SIGTERM is recorded only, as in a compiler, which runs no Python."""
    work = f"""
            with atomic_path(pathlib.Path({str(tmp_path / "out")!r})) as partial:
                partial.mkdir()
                (partial / "weights").write_bytes(b"1")
                wait()"""
    process = start(work.strip(), on_first="notes.append", patience="0.3")
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143 and list(tmp_path.iterdir()) == []


def test_second_signal_kills_worker_processes():
    work = """
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
            with interrupts.signals_blocked():
                child.start()
            print("ready", child.pid, sep="\\n", flush=True); time.sleep(60)"""
    process = start(work.strip(), on_first="notes.append")
    pid = int(process.stdout.readline())
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert end(process)[0] == 130
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")


def test_signal_ignored_under_nohup_stays_ignored():
    process = start("print('ready', flush=True); time.sleep(1)", handler="SIG_IGN")
    process.send_signal(signal.SIGHUP)
    assert end(process)[0] == 0
