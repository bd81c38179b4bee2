"""Batches of packed rows and of rows of several lengths, with unreadable samples: order, resume, states."""

import dataclasses
import json
import threading
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from llava_jax.data.packing import buckets, digest, fill_unknown_sizes, pack
from llava_jax.data.pipeline import make_batches
from llava_jax.data.rows import RowFormat, Rows
from llava_jax.errors import ConfigError
from llava_jax.text.token_row import Batch
from tests.data.test_pipeline import DEFAULTS, ROW, SLOW_NUMBER, batches, number_row, shown, slow_row

BAD = {4, 17, 33, 50}


def sentences(tmp_path) -> Rows:
    """Rows of 64 examples of several lengths: one in five without an image, and those of BAD with a missing one."""
    examples = []
    for i in range(64):
        picture = Image.new("RGB", (8, 8), (i, i, i)) if i not in BAD else tmp_path / f"{i}.jpg"
        images = () if i % 5 == 1 else (picture,)
        examples.append(shown(*images, text="<image>" * len(images), answer=chr(65 + i) * (1 + i * 7 % 23)))
    named = [dataclasses.replace(example, id=str(i)) for i, example in enumerate(examples)]
    row_format = RowFormat(**(ROW | dict(length=48, max_images=3, image_size=8)))
    rows = Rows(named, row_format, replace=True, seed=2)
    return dataclasses.replace(rows, sizes=fill_unknown_sizes(np.stack([rows.size(i) for i in range(64)])))


def packed(tmp_path, **changes):
    rows = sentences(tmp_path)
    rows = dataclasses.replace(rows, groups=pack(rows.sizes, 48, 3, seed=2))
    metadata = {"packing": digest(rows.groups.members, rows.groups.starts)}
    return make_batches(range(len(rows)), rows.row, metadata=metadata, **(DEFAULTS | dict(batch_size=4) | changes))


def bucketed(tmp_path, **changes):
    rows = sentences(tmp_path)
    needs = buckets(rows.sizes, (16, 48))
    return make_batches(range(len(rows)), rows.row, buckets=needs, **(DEFAULTS | dict(batch_size=4) | changes))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    """Compares all fields but `stop`, which is None in every batch."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x[:-1], y[:-1], strict=True)]
    return all(np.array_equal(x, y) for x, y in pairs) and {x.stop for x in (*a, *b)} == {None}


@pytest.mark.parametrize("make", [packed, bucketed])
def test_examples_are_shown_once_per_epoch_and_replacements_counted(tmp_path, make):
    stream, replaced = make(tmp_path), []
    shown_batches = []
    for batch, info in stream:
        assert batch.replaced.dtype == np.int32 and batch.replaced.sum() == len(info.replaced)
        shown_batches.append(batch)
        replaced += [record["index"] for record in info.replaced]
    assert sorted(replaced) == sorted([*BAD, *BAD])
    letters = np.concatenate([batch.tokens[batch.target_mask] for batch in shown_batches])
    for i in set(range(64)) - BAD:
        assert (letters == 65 + i).sum() >= 2 * (1 + i * 7 % 23)  # more often if it is a substitute
    assert sum(batch.segment_ids.max(axis=1).sum() for batch in shown_batches) == 128


@pytest.mark.parametrize("make", [packed, bucketed])
def test_run_resumes_with_other_numbers_of_processes_and_workers(tmp_path, make):
    """2 -> 4 -> 1 processes, without and with worker processes, each from the previous state."""
    whole = [batch for batch, _ in make(tmp_path)]
    resumed, state = [], None
    for processes, workers, steps in ((2, 0, 3), (4, 0, 2), (1, 2, None)):
        streams = [make(tmp_path, process_count=processes, process_index=p, workers=workers) for p in range(processes)]
        for stream in streams if state else ():
            stream.set_state(json.loads(json.dumps(state)))
        for _ in range(steps or len(whole) - len(resumed)):
            parts = [next(stream)[0] for stream in streams]
            assert len({part.tokens.shape for part in parts}) == 1, "all hosts compile the same step"
            fields = zip(*(part[:-1] for part in parts), strict=True)
            resumed.append(Batch(*map(np.concatenate, fields)))
        (state,) = {json.dumps(stream.get_state()) for stream in streams}
        state = json.loads(state)
        for stream in streams:
            stream.close()
    assert equal(resumed, whole)


@pytest.mark.parametrize("several_lengths", [False, True])
def test_indices_gives_the_rows_of_every_process(several_lengths, tmp_path):
    make = partial(bucketed, tmp_path, epochs=1) if several_lengths else batches
    streams = [make(process_index=process, process_count=2) for process in range(2)]
    for step, parts in enumerate(zip(*streams, strict=True)):
        expected = [info.index.tolist() for _, info in parts]
        assert [[stream.indices(step, process) for process in range(2)] for stream in streams] == [expected] * 2
    assert several_lengths or -1 in expected[1], "the last batch is not full"


@pytest.mark.parametrize("workers", [0, 1])
def test_ready_points_at_the_row_being_waited_for(workers):
    rows = batches(row_fn=slow_row, shuffle=False, threads=2, workers=workers)
    reader = threading.Thread(target=next, args=(rows,))
    reader.start()
    while rows.ready != SLOW_NUMBER:
        time.sleep(0.001)
    assert rows.indices(0, 0)[rows.ready] == SLOW_NUMBER
    reader.join()
    rows.close()


def test_state_of_another_packing_is_refused(tmp_path):
    state = packed(tmp_path).get_state()
    with pytest.raises(ConfigError, match="packing was .*, is other .a digest of the samples' lengths"):
        make_batches(
            range(state["examples"]), number_row, metadata={"packing": "other"}, **DEFAULTS | dict(batch_size=4)
        ).set_state(state)


def test_state_with_buckets_is_refused_without_them(tmp_path):
    state = bucketed(tmp_path).get_state()
    with pytest.raises(ConfigError, match="buckets was .*, is None .a digest .*; epochs was 2, is None"):
        make_batches(range(64), number_row, **DEFAULTS | dict(batch_size=4)).set_state(state)


def test_bucketed_batches_have_few_lengths_and_one_image_shape(tmp_path):
    shown_batches = [batch for batch, _ in bucketed(tmp_path)]
    assert {batch.tokens.shape for batch in shown_batches} == {(4, 16), (4, 48)}
    assert {batch.images.shape for batch in shown_batches} == {(4, 3, 8, 8, 3)}
    assert all((batch.segment_ids.sum(axis=1) > 16).any() for batch in shown_batches if batch.tokens.shape[1] == 48)


def test_bucketed_state_of_other_epochs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="epochs was 2, is 3"):
        bucketed(tmp_path, epochs=3).set_state(bucketed(tmp_path).get_state())
