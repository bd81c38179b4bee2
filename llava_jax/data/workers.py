"""Rows made by worker processes, in order; a worker that dies is reported by name, at once.

Each worker writes to a pipe of its own whose writing end exists nowhere else. So the end of the process is the end of
the file, even in the middle of a row, and the end of the reader is an error for the writer. A multiprocessing.Queue,
and with it grain's mp_prefetch, keeps both ends open on this side: there, when a worker is killed while it writes, the
reader waits for the rest for ever, and when the run is killed, its workers live on.
"""

import atexit
import multiprocessing
import multiprocessing.connection  # registers multiprocessing's exit function, which has to come before ours
import signal
import traceback
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from llava_jax.errors import UserError

RUN_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerRows:
    """Iterator over `rows[start:]`. Worker w of `workers` makes rows start + w, start + w + workers, ...

    rows: anything with `__len__` and `__getitem__` that can be pickled. Each worker works `ahead` rows ahead, on
    `threads` threads. What `rows[i]` raises is raised here, at row i. Raises UserError where a worker has died.
    """

    def __init__(self, rows, start: int, workers: int, threads: int, ahead: int):
        # Not fork: the threads of this process, jax's among them, would leave their locks behind in the child.
        context = multiprocessing.get_context("spawn")
        self._start, self._next, self._stop = start, start, len(rows)
        self._pipes, self._processes = [], []
        self._finalizer = weakref.finalize(self, _kill_all, self._processes)
        atexit.register(
            self._finalizer
        )  # the last registered runs first: multiprocessing's would ask by SIGTERM and wait
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            arguments = (writer, rows, range(start + worker, len(rows), workers), threads, ahead)
            name = f"data worker {worker + 1} of {workers}"
            process = context.Process(target=_work, args=arguments, name=name, daemon=True)
            # Held back until the worker ignores them: while it starts, they would end it.
            old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            writer.close()  # now the only writing end is the worker's
            self._pipes.append(reader)
            self._processes.append(process)

    def __iter__(self) -> "WorkerRows":
        return self

    def __next__(self):
        if self._next >= self._stop:
            raise StopIteration
        for process in self._processes:  # not only the one whose turn it is: what the others have ready may last long
            if process.exitcode not in (None, 0):
                raise _worker_error(process)
        worker = (self._next - self._start) % len(self._pipes)
        try:
            row, error = self._pipes[worker].recv()
        except (EOFError, OSError):
            raise _worker_error(self._processes[worker]) from None
        if error is not None:
            self.close()  # there is no way on: the row behind the fault would be taken for it
            raise error
        self._next += 1
        return row

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()
        atexit.unregister(self._finalizer)
        for pipe in self._pipes:
            pipe.close()


def _kill_all(processes: list) -> None:
    for process in processes:
        process.kill()  # they hold nothing that needs tidying
    for process in processes:
        process.join()


def _worker_error(process) -> UserError:
    process.join(5)
    code = process.exitcode
    cause = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
    hint = " (which is also how the kernel ends a process when memory runs out: lower data.workers or data.threads)"
    advice = "the same command continues behind the newest checkpoint" if code and code < 0 else "what it said is above"
    return UserError(
        f"{process.name} (process {process.pid}) {cause}{hint if code == -signal.SIGKILL else ''}; {advice}"
    )


def _work(writer, rows, indices: range, threads: int, ahead: int) -> None:
    """What a worker process does: sends (row, None), or (None, what was raised)."""
    # A signal to the whole group (Ctrl-C, a job scheduler's SIGTERM) is for the run, which saves and then ends us.
    for signum in RUN_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RUN_SIGNALS)

    def make(index: int) -> tuple:
        try:
            return rows[index], None
        except UserError as error:
            return None, error
        except Exception:  # of which nobody knows whether it can be sent; its text can
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
        except OSError:  # the run is gone
            pool.shutdown(cancel_futures=True)
