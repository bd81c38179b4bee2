"""From a source of examples to batches: rows on threads or worker processes, the same batches for any number of hosts.

Legend: B rows of the global batch, b = B / processes rows of this process, n examples of the source.
Position i of a run is example i % n of epoch i // n, in that epoch's order; batch k holds positions [k*B, (k+1)*B), and
process p its slice [k*B + p*b, k*B + (p+1)*b).
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

MAX_EXAMPLES = 2**32  # what grain's index shuffle can count
FILLER = -1  # the `index` of a row that is no example


def steps_per_run(examples: int, batch_size: int, epochs: int) -> int:
    """Batches that show every example `epochs` times: ceil(examples * epochs / batch_size).

    Epochs follow each other without a gap, so only the last batch of the whole run can be partly filler.

    >>> steps_per_run(10, 4, 2)
    5
    """
    return -(-examples * epochs // batch_size)


class BatchInfo(NamedTuple):
    """What the host knows of the rows of a batch, and the model does not read."""

    index: np.ndarray  # int64[b]: which example of the source each row is, FILLER for none
    replaced: list[dict]  # the records of what was replaced in these rows, see `data.rows.Row`


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of this process in the order of the run, by index."""

    source: object
    row_fn: Callable[..., SourceRow]
    order: grain.MapDataset | None  # position -> index; None: as the source has them
    bucketed: LengthBucketedOrder | None  # which examples a batch has, where that is not the order itself
    positions: int  # how many of the run; what lies beyond is filler
    steps: int
    batch_size: int  # B
    rows_per_process: int  # b
    first_row: int  # p * b

    def __len__(self) -> int:
        return self.steps * self.rows_per_process

    def __getitem__(self, index: int) -> tuple[int, SourceRow]:
        """(index of the example or FILLER, the row)."""
        step, slot = divmod(index, self.rows_per_process)
        example, is_example, length = self.locate(step, self.first_row + slot)
        row = self.row_fn(self.source[example], *length)
        return (example, row) if is_example else (FILLER, _filler(row))

    def locate(self, step: int, row_index: int) -> tuple[int, bool, tuple[int, ...]]:
        """(index, whether it is no filler, (the row's length,) where they differ) of row `at` of a global batch."""
        if self.bucketed is None:
            position = step * self.batch_size + row_index
            example = position % len(self.source) if self.order is None else int(self.order[position])
            return example, position < self.positions, ()
        examples, length = self.bucketed.batch(step)
        is_example = row_index < len(examples)
        return examples[row_index if is_example else 0], is_example, (length,)


class Batches:
    """Iterator of (Batch, BatchInfo) of b rows, whose place in the run is a small dict fit for JSON.

    `get_state` counts batches handed out, not rows read ahead, so `set_state` continues with exactly the next one. The
    state is that of the global batch: every process has the same, and another number of processes, threads or workers
    may take it up.

    Where rows list what was replaced in them (`data.rows.Row`), the batch counts it, `replaced` int32[b]. `ready`: rows
    that `__next__` has of the batch it makes, for another thread that wants to know which one it waits for.
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
            self.close()  # grain would go on behind the row that failed, and lose it
            raise
        self._step += 1
        index, rows = zip(*pairs, strict=True)
        batch = stack_rows([row.arrays for row in rows])
        if rows[0].replaced is not None:
            batch = batch._replace(replaced=np.array([len(row.replaced) for row in rows], np.int32))
        return batch, BatchInfo(np.array(index, np.int64), [record for row in rows for record in row.replaced or ()])

    def indices(self, step: int, process: int) -> list[int]:
        """The `index` of each row that a process, this one or another, has in batch `step` of the run, 0 for the first.
        Reads no data, may be called by any thread."""
        b = self._rows.rows_per_process
        located = [self._rows.locate(step, row_index) for row_index in range(process * b, (process + 1) * b)]
        return [example if is_example else FILLER for example, is_example, _ in located]

    def get_state(self) -> dict:
        """{"step": batches handed out, and what they depend on: "examples", "batch_size", "seed", "shuffle", and for
        packed rows or rows of several lengths a digest of what is where}."""
        return {"step": self._step, **self._run}

    def set_state(self, state: dict) -> None:
        """Continues behind batch `state["step"]`. Raises ConfigError when the state is of another run."""
        keys = [*self._run, *(key for key in state if key not in self._run and key != "step")]
        differing = [key for key in keys if state.get(key) != self._run.get(key)]
        changed = [f"{key} was {state.get(key)}, is {self._run.get(key)}" for key in differing]
        if changed:
            raise ConfigError(
                f"cannot continue in the data at step {state.get('step')}: {'; '.join(changed)}. "
                "Restore these settings, or start a new run from the weights."
            )
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Ends threads and worker processes; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def read_rows(rows, start: int, *, threads: int, ahead: int, workers: int) -> grain.DatasetIterator | WorkerRows:
    """Iterator over `rows[start:]`, in order, up to `ahead` rows ahead of the caller; `close` ends it.

    rows: has `__len__` and `__getitem__`; with `workers` > 0 processes it is pickled to them. Both `threads` and
    `ahead` 0 read in the caller's thread. Raises what `rows[i]` raises; UserError where a worker process has died.
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
    """Batches of the rows `row_fn(source[i])` for `epochs` passes (None: without end), this process's rows of each.

    - Every epoch shows each example once, in an order of its own drawn from `seed` over the whole source. No
      permutation is stored, so a source may claim billions of examples.
    - `batch_size` is the global one. Batch k holds the same examples for any `process_count`.
    - Epochs are joined before batching, nothing is dropped; `steps_per_run` counts the batches. The last one is filled
      up with all-zero rows (`target_mask` False, `segment_ids` 0), so shapes are static and every process takes the
      same number of steps. (The original ends each epoch with a smaller batch.)
    - `threads` read rows ahead, up to `prefetch` batches; both 0 read in the caller's thread. Decoding and tokenising
      release the interpreter lock; `workers` > 0 processes read instead (`source` and `row_fn` are pickled to them),
      each on as many threads.
    - `buckets` int32[examples]: the row length that each example needs. Then batches are made of examples that need
      about the same (see packing.Bucketed), and `row_fn(source[i], length)` makes a row of the batch's length.
    - `about`: what else the rows depend on, for the state; a run with other values does not continue.

    Raises ConfigError for numbers that do not fit together, DataError for an empty source. What `row_fn` raises reaches
    the caller as it is, at the batch of that row, again and again; UserError where a worker process has died.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} does not split over {process_count} processes; make it a multiple of them"
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
        raise DataError(f"the source has {examples} examples; it must have 1 to {MAX_EXAMPLES}")
    order = None
    if shuffle:
        # Mixed, because grain adds the epoch: seed 0 in epoch 1 would be seed 1 in epoch 0.
        order = grain.MapDataset.range(examples).shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    endless = epochs is None
    positions = sys.maxsize if endless else examples * epochs
    run = {"examples": examples, "batch_size": batch_size, "seed": seed, "shuffle": shuffle, **(metadata or {})}
    bucketed = None
    if buckets is not None:
        # More epochs would change which batches the last of these have.
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
    """Every example once, in the order of the source; the last batch is filled up with all-zero rows."""
    return make_batches(
        source, row_fn, batch_size=batch_size, seed=0, shuffle=False, epochs=1,
        process_index=process_index, process_count=process_count, threads=threads, prefetch=prefetch, workers=workers,
    )  # fmt: skip


def _filler(row: SourceRow) -> SourceRow:
    """A row of the same shape in which there is nothing."""
    return SourceRow(TokenRow(*map(np.zeros_like, row.arrays)), None if row.replaced is None else [])
