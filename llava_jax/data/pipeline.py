"""Makes batches of a source's examples, on threads or worker processes; any number of hosts gets the same batches.

Legend: B rows of the global batch, b = B / processes rows of this process, n examples of the source.
Position i of a run is example i % n of epoch i // n, in that epoch's order. Batch k has positions [k*B, (k+1)*B), and
process p the slice [k*B + p*b, k*B + (p+1)*b) of it.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import NamedTuple

import grain
import numpy as np

from llava_jax.data.packing import LengthBucketedOrder, digest
from llava_jax.data.rows import SourceRow
from llava_jax.data.workers import WorkerRows
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.token_row import Batch, TokenRow, stack_rows

MAX_EXAMPLES = 2**32  # the limit of grain's index shuffle
FILLER = -1  # the `index` of a row without an example


def steps_per_run(examples: int, batch_size: int, epochs: int) -> int:
    """Returns the number of batches of `epochs` epochs: ceil(examples * epochs / batch_size).

    Epochs are joined before batching, so only the last batch of the run can have filler rows.

    >>> steps_per_run(10, 4, 2)
    5
    """
    return -(-examples * epochs // batch_size)


class BatchInfo(NamedTuple):
    """Metadata of the rows of a batch, for the host only."""

    index: np.ndarray  # int64[b]: the index of each row's example in the source, or FILLER
    replaced: list[dict]  # the records of the replaced samples of these rows, see `data.rows.SourceRow`


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of this process, in the order of the run."""

    source: object
    row_fn: Callable[..., SourceRow]
    order: grain.MapDataset | None  # position -> index; None: the order of the source
    bucketed: LengthBucketedOrder | None  # assigns examples to batches, if not by `order`
    positions: int  # of the whole run; later positions are filler
    steps: int
    batch_size: int  # B
    rows_per_process: int  # b
    first_row: int  # p * b

    def __len__(self) -> int:
        return self.steps * self.rows_per_process

    def __getitem__(self, index: int) -> tuple[int, SourceRow]:
        """Returns (index of the example or FILLER, the row)."""
        step, slot = divmod(index, self.rows_per_process)
        example, is_example, length = self.locate(step, self.first_row + slot)
        row = self.row_fn(self.source[example], *length)
        return (example, row) if is_example else (FILLER, _filler(row))

    def locate(self, step: int, row_index: int) -> tuple[int, bool, tuple[int, ...]]:
        """Returns (index, whether it is an example, (row length,) if lengths differ) of a row of a global batch."""
        if self.bucketed is None:
            position = step * self.batch_size + row_index
            example = position % len(self.source) if self.order is None else int(self.order[position])
            return example, position < self.positions, ()
        examples, length = self.bucketed.batch(step)
        is_example = row_index < len(examples)
        return examples[row_index if is_example else 0], is_example, (length,)


class Batches:
    """Iterator of (Batch, BatchInfo) of b rows, with a small JSON-serialisable state.

    The state counts batches that were returned, not rows read ahead, so a resumed iterator returns exactly the next
    batch. It belongs to the global batch: all processes have the same state, and it may be restored with another number
    of processes, threads or workers.

    If rows list replaced samples (`data.rows.SourceRow`), the batch has their counts, `replaced` int32[b]. `ready` is
    the number of rows that `__next__` has so far; another thread reads it to name the row that is waited for.
    """

    def __init__(self, rows: _Rows, run: dict, threads: int, prefetch: int, workers: int):
        self._rows, self._run = rows, run
        self._threads, self._prefetch, self._workers = threads, prefetch, workers
        self._step, self._iterator = 0, None
        self.ready = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[Batch, BatchInfo]:
        if self._iterator is None:
            b = self._rows.rows_per_process
            self._iterator = read_rows(
                self._rows, self._step * b, threads=self._threads, ahead=self._prefetch * b, workers=self._workers
            )
        pairs: list[tuple[int, SourceRow]] = []
        self.ready = 0
        try:
            while self.ready < self._rows.rows_per_process:
                pairs.append(next(self._iterator))
                self.ready += 1
        except StopIteration:
            raise
        except Exception:
            self.close()  # grain would continue after the failed row, and lose it
            raise
        self._step += 1
        index, rows = zip(*pairs, strict=True)
        batch = stack_rows([row.arrays for row in rows])
        if rows[0].replaced is not None:
            batch = batch._replace(replaced=np.array([len(row.replaced) for row in rows], np.int32))
        return batch, BatchInfo(np.array(index, np.int64), [record for row in rows for record in row.replaced or ()])

    def indices(self, step: int, process: int) -> list[int]:
        """Returns the `index` of each row of any process in batch `step` (from 0). Reads no data; safe for threads."""
        b = self._rows.rows_per_process
        located = [self._rows.locate(step, row_index) for row_index in range(process * b, (process + 1) * b)]
        return [example if is_example else FILLER for example, is_example, _ in located]

    def get_state(self) -> dict:
        """Returns {"step": batches returned} and what the order depends on: "examples", "batch_size", "seed",
        "shuffle", and a digest of packed rows or rows of several lengths."""
        return {"step": self._step, **self._run}

    def set_state(self, state: dict) -> None:
        """Resumes after batch `state["step"]`. Raises ConfigError for the state of another run."""
        keys = [*self._run, *(key for key in state if key not in self._run and key != "step")]
        differing = [key for key in keys if state.get(key) != self._run.get(key)]
        digests = dict.fromkeys(("packing", "buckets"), " (a digest of the samples' lengths: their texts, or settings)")
        changed = [f"{key} was {state.get(key)}, is {self._run.get(key)}{digests.get(key, '')}" for key in differing]
        if changed:
            raise ConfigError(
                f"cannot resume the data at step {state.get('step')}: {'; '.join(changed)}. "
                "Restore them, or start a new run from the weights."
            )
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Stops threads and worker processes; reading another batch restarts them."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def read_rows(rows, start: int, *, threads: int, ahead: int, workers: int) -> grain.DatasetIterator | WorkerRows:
    """Returns an iterator over `rows[start:]`, in order, that reads up to `ahead` rows ahead; `close` stops it.

    rows: has `__len__` and `__getitem__`; it is pickled to the `workers` processes, if any. `threads` = `ahead` = 0
    reads in the caller's thread. The iterator raises what `rows[i]` raises, and UserError if a worker process dies.
    """
    if workers:
        return WorkerRows(rows, start, workers, threads, -(-ahead // workers))
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(rows)[start:].to_iter_dataset(options))


def make_batches(
    source,
    row_fn: Callable[..., SourceRow],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    epochs: int | None,
    process_index: int,
    process_count: int,
    threads: int,
    prefetch: int,
    workers: int = 0,
    buckets: np.ndarray | None = None,
    metadata: dict | None = None,
) -> Batches:
    """Returns this process's rows of the batches of `row_fn(source[i])`, for `epochs` epochs (None: endless).

    - Each epoch shows every example once, in a new order of the whole source drawn from `seed`. No permutation is
      stored, so a source may have billions of examples.
    - `batch_size` is that of the global batch. Batch k has the same examples for any `process_count`.
    - Epochs are joined before batching and nothing is dropped; `steps_per_run` counts the batches. The last one is
      padded with all-zero rows (`target_mask` False, `segment_ids` 0), so shapes are static and every process has the
      same number of steps. (The original ends each epoch with a smaller batch.)
    - `threads` read up to `prefetch` batches ahead; if both are 0, the caller's thread reads. Decoding and tokenising
      release the GIL. With `workers` > 0, that many processes read instead, each on `threads` threads (`source` and
      `row_fn` are pickled to them).
    - `buckets` int32[examples]: the row length of each example. Batches then have examples of about the same length
      (see `packing.LengthBucketedOrder`), and `row_fn(source[i], length)` makes a row of the batch's length.
    - `metadata`: further entries of the state; a state with other values is refused.

    Raises ConfigError for inconsistent numbers, DataError for an empty source. What `row_fn` raises reaches the caller
    unchanged at the batch of that row, and again at every retry; UserError if a worker process dies.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of the {process_count} processes; change batch_size"
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index {process_index} is not one of {process_count} processes")
    if seed < 0 or min(threads, prefetch, workers) < 0 or (epochs is not None and epochs < 1):
        raise ConfigError(
            f"seed {seed}, threads {threads}, prefetch {prefetch} and workers {workers} must not be negative, "
            f"epochs {epochs} must be at least 1"
        )
    examples, rows_per_process = len(source), batch_size // process_count
    if not 1 <= examples <= MAX_EXAMPLES:
        raise DataError(f"the source has {examples} examples; it needs 1 to {MAX_EXAMPLES}")
    order = None
    if shuffle:
        # Hashed, because grain adds the epoch: epoch 1 of seed 0 would equal epoch 0 of seed 1.
        order = grain.MapDataset.range(examples).shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    endless = epochs is None
    positions = sys.maxsize if endless else examples * epochs
    run = {"examples": examples, "batch_size": batch_size, "seed": seed, "shuffle": shuffle, **(metadata or {})}
    bucketed = None
    if buckets is not None:
        # Another number of epochs would change the batches of the last window.
        run |= {"buckets": digest(buckets), "epochs": epochs}
        in_order = grain.MapDataset.range(examples).repeat()
        bucketed = LengthBucketedOrder(in_order if order is None else order, buckets, batch_size, seed, positions)
    rows = _Rows(
        source,
        row_fn,
        order,
        bucketed,
        positions=positions,
        steps=sys.maxsize // batch_size if endless else steps_per_run(examples, batch_size, epochs),
        batch_size=batch_size,
        rows_per_process=rows_per_process,
        first_row=process_index * rows_per_process,
    )
    return Batches(rows, run, threads, prefetch, workers)


def evaluation_batches(
    source,
    row_fn: Callable[..., SourceRow],
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    prefetch: int = 2,
    workers: int = 0,
) -> Batches:
    """Returns batches of every example once, in the order of the source; all-zero rows pad the last batch."""
    return make_batches(
        source, row_fn, batch_size=batch_size, seed=0, shuffle=False, epochs=1,
        process_index=process_index, process_count=process_count, threads=threads, prefetch=prefetch, workers=workers,
    )  # fmt: skip


def _filler(row: SourceRow) -> SourceRow:
    """Returns an all-zero row of the same shape."""
    return SourceRow(TokenRow(*map(np.zeros_like, row.arrays)), None if row.replaced is None else [])
