"""Maps a function over rows in worker processes, in order."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from llava_jax.errors import UserError
from llava_jax.output.interrupts import ignore_stop_signals, signals_blocked

CHUNK = 32  # rows per task: few enough to show progress, enough to amortise the communication


def map_rows(work: Callable[[range], list], rows: int, workers: int, chunk: int = CHUNK) -> Iterator[list]:
    """Yields `work(range)` for ranges of up to `chunk` of `rows` rows, in order; 0 workers: in this process.

    `work` is pickled once per worker. Its exceptions reach the caller. Raises UserError if a worker is killed.
    """
    chunks = [range(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    if workers < 1:
        yield from map(work, chunks)
        return
    # Not fork: jax and tokenizers start threads, and locks they hold would stay locked in the child.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _start, (work,)) as pool:
        try:
            with signals_blocked():  # starts the workers
                results = pool.map(_run, chunks)
            yield from results
        except BrokenProcessPool:
            raise UserError("a worker process was killed, probably for lack of memory. Pass fewer --workers.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_work: Callable[[range], list]


def _start(work: Callable[[range], list]) -> None:
    global _work
    _work = work
    ignore_stop_signals()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # of PIL, about files that are reported anyway


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # otherwise a worker whose parent was killed would wait forever


def _run(chunk: range) -> list:
    return _work(chunk)
