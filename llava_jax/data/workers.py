"""Reads rows in worker processes, in order, and reports a worker that dies at once.

Each worker has its own pipe, and only the worker holds its write end. When the worker dies, the reader gets an
end-of-file, even in the middle of a row; when the run dies, the worker gets a write error. A multiprocessing.Queue, and
therefore grain's mp_prefetch, keeps both ends open in this process: if a worker is killed while writing, the reader
waits forever for the rest, and if the run is killed, its workers survive.
"""

import atexit
import multiprocessing
import multiprocessing.connection  # registers multiprocessing's exit function, which must precede ours
import signal
import traceback
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from llava_jax.errors import UserError
from llava_jax.output.interrupts import ignore_stop_signals, signals_blocked


class WorkerRows:
    """Iterator over `rows[start:]`. Worker w of `workers` reads rows start + w, start + w + workers, ...

    rows: picklable, with `__len__` and `__getitem__`. Each worker reads `ahead` rows ahead, on `threads` threads. An
    exception of `rows[i]` is raised here at row i, and UserError if a worker dies.
    """

    def __init__(self, rows, start: int, workers: int, threads: int, ahead: int):
        # Not fork: locks held by threads of this process, such as jax's, would stay locked in the child.
        context = multiprocessing.get_context("spawn")
        self._start, self._next, self._stop = start, start, len(rows)
        self._pipes, self._processes = [], []
        self._finalizer = weakref.finalize(self, _kill_all, self._processes)
        atexit.register(self._finalizer)  # runs before multiprocessing's, which would send SIGTERM and wait
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            arguments = (writer, rows, range(start + worker, len(rows), workers), threads, ahead)
            name = f"data worker {worker + 1} of {workers}"
            process = context.Process(target=_work, args=arguments, name=name, daemon=True)
            with signals_blocked():
                process.start()
            writer.close()  # so that only the worker holds the write end
            self._pipes.append(reader)
            self._processes.append(process)

    def __iter__(self) -> "WorkerRows":
        return self

    def __next__(self):
        if self._next >= self._stop:
            raise StopIteration
        for process in self._processes:  # all of them, because rows of the others may be ready for long
            if process.exitcode not in (None, 0):
                raise _worker_error(process)
        worker = (self._next - self._start) % len(self._pipes)
        try:
            row, error = self._pipes[worker].recv()
        except (EOFError, OSError):
            raise _worker_error(self._processes[worker]) from None
        if error is not None:
            self.close()  # cannot continue: the next row would be mistaken for the failed one
            raise error
        self._next += 1
        return row

    def close(self) -> None:
        """Stops the workers."""
        self._finalizer()
        atexit.unregister(self._finalizer)
        for pipe in self._pipes:
            pipe.close()


def _kill_all(processes: list) -> None:
    for process in processes:
        process.kill()  # they have nothing to clean up
    for process in processes:
        process.join()


def _worker_error(process) -> UserError:
    process.join(5)
    code = process.exitcode
    cause = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        cause += " (as the kernel does when memory runs out: lower data.workers or data.threads)"
    advice = "the same command resumes from the newest checkpoint" if code and code < 0 else "its output is above"
    return UserError(f"{process.name} (process {process.pid}) {cause}; {advice}")


def _work(writer, rows, indices: range, threads: int, ahead: int) -> None:
    """Runs in a worker process: sends (row, None) or (None, exception) for each row."""
    ignore_stop_signals()

    def make(index: int) -> tuple:
        try:
            return rows[index], None
        except UserError as error:
            return None, error
        except Exception:  # it may not be picklable; its traceback is
            return None, RuntimeError(f"in a data worker:\n{traceback.format_exc()}")

    with ThreadPoolExecutor(max(1, threads)) as pool:
        pending = deque()
        try:
            for index in indices:
                pending.append(pool.submit(make, index))
                if len(pending) > ahead:
                    writer.send(pending.popleft().result())
            while pending:
                writer.send(pending.popleft().result())
        except OSError:  # the run has ended
            pool.shutdown(cancel_futures=True)
