"""From a source of examples to batches: rows on threads or worker processes, the same batches for any number of hosts.

Legend: B rows of the global batch, b = B / processes rows of this process, n examples of the source.
Position i of a run is example i % n of epoch i // n, in that epoch's order; batch k holds positions [k*B, (k+1)*B), and
process p its slice [k*B + p*b, k*B + (p+1)*b).
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from absl import flags

from llava_jax.data.example import Example
from llava_jax.data.images import load_image, preprocess
from llava_jax.data.mixture import Mixture
from llava_jax.data.tokenize import encode_row, fit, pad_row
from llava_jax.errors import ConfigError, DataError

Row = dict[str, np.ndarray]
MAX_EXAMPLES = 2**32  # what grain's index shuffle can count
FILLER = -1  # the `index` of a row that is no example


def build_row(
    example: Example,
    *,
    tokenizer,
    template: str,
    length: int,
    max_images: int,
    features: int,
    image_size: int,
    aspect: str,
    overlong: str,
) -> Row:
    """One example -> one row of static shape: `tokens` int32[T], `target_mask` bool[T], `positions` int32[T],
    `segment_ids` int32[T] and `images` uint8[N, H, W, 3], with T = length, N = max_images, H = W = image_size.

    Each image is a run of `features` placeholders; unused image slots are zero. Raises DataError that names the sample.
    """
    try:
        if len(example.images) > max_images:
            raise DataError(
                f"{len(example.images)} images, but a row holds {max_images}. Raise max_images or remove the sample.",
                "too many images",
            )
        ids, mask = encode_row(
            example.turns, len(example.images), tokenizer=tokenizer, template=template, features=features
        )
        ids, mask = fit(ids, mask, length, overlong)
        row = pad_row(ids, mask, length, tokenizer.pad_id)
        row["images"] = np.zeros((max_images, image_size, image_size, 3), np.uint8)
        for slot, image in enumerate(example.images):
            name = str(image) if isinstance(image, Path) else f"image {slot}"
            row["images"][slot] = preprocess(load_image(image, name), image_size, aspect)
    except DataError as fault:
        raise DataError(f"sample {example.id!r}: {fault}", fault.kind) from fault
    return row


def steps_per_run(examples: int, batch_size: int, epochs: int) -> int:
    """Batches that show every example `epochs` times: ceil(examples * epochs / batch_size).

    Epochs follow each other without a gap, so only the last batch of the whole run can be partly filler.

    >>> steps_per_run(10, 4, 2)
    5
    """
    return -(-examples * epochs // batch_size)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of this process in the order of the run, by index."""

    source: object
    row_fn: Callable[[Example], Row]
    order: grain.MapDataset | None  # position -> index; None: as the source has them
    positions: int  # how many of the run; what lies beyond is filler
    steps: int
    batch_size: int  # B
    rows: int  # b
    first: int  # p * b

    def __len__(self) -> int:
        return self.steps * self.rows

    def __getitem__(self, index: int) -> Row:
        step, slot = divmod(index, self.rows)
        position = step * self.batch_size + self.first + slot
        example = position % len(self.source) if self.order is None else int(self.order[position])
        row = self.row_fn(self.source[example])
        if position < self.positions:
            return row | {"index": np.int64(example)}
        return {name: np.zeros_like(array) for name, array in row.items()} | {"index": np.int64(FILLER)}


class Batches:
    """Iterator of batches (dicts of arrays with b rows) whose place in the run is a small dict fit for JSON.

    `get_state` counts batches handed out, not rows read ahead, so `set_state` continues with exactly the next one. The
    state is that of the global batch: every process has the same, and another number of processes, threads or workers
    may take it up.
    """

    def __init__(self, rows: _Rows, run: dict, threads: int, prefetch: int, workers: int):
        self._rows, self._run = rows, run
        self._threads, self._prefetch, self._workers = threads, prefetch, workers
        self._step, self._iterator = 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Row:
        if self._iterator is None:
            self._iterator = self._open()
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            self.close()  # grain would go on behind the row that failed, and lose it
            raise
        self._step += 1
        return batch

    @property
    def source(self):
        """What the `index` of a row counts in: a mixture that was changed is not the one that was given."""
        return self._rows.source

    def get_state(self) -> dict:
        """{"step": batches handed out, and what they depend on: "examples", "batch_size", "seed", "shuffle"}, and
        "mixture" where the source is one."""
        mixture = {"mixture": self._rows.source.state()} if isinstance(self._rows.source, Mixture) else {}
        return {"step": self._step, **self._run, **mixture}

    def set_state(self, state: dict) -> None:
        """Continues behind batch `state["step"]`. Raises ConfigError when the state is of another run."""
        changed = [f"{k} was {state.get(k)}, is {v}" for k, v in self._run.items() if state.get(k) != v]
        if changed:
            raise ConfigError(
                f"cannot continue in the data at step {state.get('step')}: {'; '.join(changed)}. "
                "Restore these settings, or start a new run from the weights."
            )
        self.close()
        self._step = state["step"]
        if isinstance(self._rows.source, Mixture):  # which may have been changed since
            source = self._rows.source.resumed(state["mixture"], self._step * self._rows.batch_size)
            self._rows = dataclasses.replace(self._rows, source=source)

    def close(self) -> None:
        """Ends threads and worker processes; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _open(self) -> grain.DatasetIterator:
        b, ahead = self._rows.rows, self._prefetch * self._rows.rows
        rows = grain.MapDataset.source(self._rows)[self._step * b :]
        read = grain.ReadOptions(num_threads=min(self._threads, ahead), prefetch_buffer_size=ahead)
        rows = rows.to_iter_dataset(read)
        if self._workers:
            # Through pipes: shared memory is 64 MB in a default container, and a full one kills the process.
            pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            rows = grain.experimental.WithOptionsIterDataset(rows, pipes)
            each = max(1, ahead // self._workers)
            rows = rows.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=each))
        return iter(rows.batch(b, batch_fn=_stack))


def make_batches(
    source,
    row_fn: Callable[[Example], Row],
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
) -> Batches:
    """Batches of `row_fn(source[i])` for `epochs` passes (None: without end), this process's rows of each, and their
    `index` int64[b]: which example of the source a row is, -1 for filler.

    - Every epoch shows each example once, in an order of its own drawn from `seed` over the whole source. No
      permutation is stored, so a source may claim billions of examples.
    - `batch_size` is the global one. Batch k holds the same examples for any `process_count`.
    - Epochs are joined before batching, nothing is dropped; `steps_per_run` counts the batches. The last one is filled
      up with all-zero rows (`target_mask` False, `segment_ids` 0), so shapes are static and every process takes the
      same number of steps. (The original ends each epoch with a smaller batch.)
    - `threads` read rows ahead, up to `prefetch` batches; both 0 read in the caller's thread. Decoding and tokenising
      release the interpreter lock; `workers` > 0 adds processes (`source` and `row_fn` are pickled to them), each with
      as many threads.

    Raises ConfigError for numbers that do not fit together, DataError for an empty source. What `row_fn` raises reaches
    the caller as it is, at the batch of that row, again and again.
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
    examples, b = len(source), batch_size // process_count
    if not 1 <= examples <= MAX_EXAMPLES:
        raise DataError(f"the source has {examples} examples; it must have 1 to {MAX_EXAMPLES}")
    order = None
    if shuffle:
        # Mixed, because grain adds the epoch: seed 0 in epoch 1 would be seed 1 in epoch 0.
        order = grain.MapDataset.range(examples).shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    endless = epochs is None
    rows = _Rows(
        source,
        row_fn,
        order,
        positions=sys.maxsize if endless else examples * epochs,
        steps=sys.maxsize // batch_size if endless else steps_per_run(examples, batch_size, epochs),
        batch_size=batch_size,
        rows=b,
        first=process_index * b,
    )
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands its flags to the workers
    run = {"examples": examples, "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    return Batches(rows, run, threads, prefetch, workers)


def evaluation_batches(
    source,
    row_fn: Callable[[Example], Row],
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    prefetch: int = 2,
) -> Batches:
    """Every example once, in the order of the source; the last batch is filled up with all-zero rows."""
    return make_batches(
        source, row_fn, batch_size=batch_size, seed=0, shuffle=False, epochs=1,
        process_index=process_index, process_count=process_count, threads=threads, prefetch=prefetch,
    )  # fmt: skip


def _stack(rows: list[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
