"""Work on rows in worker processes, results in the order of the rows."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from llava_jax.errors import UserError

CHUNK = 32  # rows of one task: few enough that progress shows, enough that passing them around costs nothing


def map_rows(work: Callable[[range], list], rows: int, workers: int) -> Iterator[list]:
    """`work` on ranges of at most `CHUNK` of `rows` rows, in order; with 0 workers in this process.

    `work` is pickled once to each worker. What it raises reaches the caller. Raises UserError when a worker is killed.
    """
    chunks = [range(start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK)]
    if workers < 1:
        yield from map(work, chunks)
        return
    # Spawned: a process that has loaded jax or a tokenizer has threads, and fork would copy their locks, held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _start, (work,)) as pool:
        try:
            yield from pool.map(_run, chunks)
        except BrokenProcessPool:
            raise UserError("a worker process was killed; is memory short? Try fewer --workers.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_work: Callable[[range], list]


def _start(work: Callable[[range], list]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # PIL's, on files that are going to be reported anyway


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a worker whose parent was killed would wait for work for ever


def _run(chunk: range) -> list:
    return _work(chunk)
