"""Rows, and the examples of each batch on each process."""

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.pipeline import BatchInfo, evaluation_batches, make_batches, steps_per_run
from llava_jax.data.rows import SourceRow, build_row
from llava_jax.data.sources.combine import Subset
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.preprocess import preprocess
from llava_jax.text.token_row import Batch, TokenRow

DEFAULTS = dict(batch_size=8, seed=3, shuffle=True, epochs=2, process_index=0, process_count=1, threads=4, prefetch=2)


class Numbers:
    """A source whose example i is the number i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        return index


def number_row(number: int) -> SourceRow:
    position, pixels = np.zeros(1, np.int32), np.ones((0, 2), np.uint8)
    return SourceRow(TokenRow(np.array([number + 1], np.int64), np.array([True]), position, position + 1, pixels))


def delayed_row(number: int) -> SourceRow:
    time.sleep(number % 3 / 500)  # threads finish out of order
    return number_row(number)


SLOW_NUMBER = 3


def slow_row(number: int) -> SourceRow:
    time.sleep(0.5 * (number == SLOW_NUMBER))
    return number_row(number)


def batches(length=30, row_fn=number_row, **changes):
    return make_batches(Numbers(length), row_fn, **(DEFAULTS | changes))


def numbers(pair: tuple[Batch, BatchInfo]) -> list[int]:
    """The example numbers of a batch; None for filler."""
    batch, _ = pair
    pairs = zip(batch.tokens[:, 0].tolist(), batch.target_mask[:, 0], strict=True)
    return [token - 1 if is_example else None for token, is_example in pairs]


def run(**changes) -> list[list[int]]:
    return [numbers(batch) for batch in batches(**changes)]


# --- order ------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 4])
def test_each_epoch_shows_every_example_once_in_a_new_order(threads):
    flat = sum(run(length=30, epochs=3, threads=threads, row_fn=delayed_row), [])
    first, second, third = flat[:30], flat[30:60], flat[60:90]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(30))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(30))}) == 4
    assert flat[90:] == [None] * 6


def test_order_depends_on_the_seed_alone():
    assert run(seed=5) == run(seed=5, threads=1, prefetch=7) == run(seed=5, threads=0, prefetch=0)
    assert run(seed=5) != run(seed=6)


def test_neighbouring_seeds_share_no_epoch():
    """grain adds the epoch to the seed: without hashing, epoch 1 of seed 5 would equal epoch 0 of seed 6."""
    by_seed = {seed: sum(run(length=32, seed=seed), []) for seed in (5, 6)}
    assert by_seed[5][32:] != by_seed[6][:32]


def test_without_shuffle_the_order_is_that_of_the_source():
    assert sum(run(length=12, batch_size=4, shuffle=False), []) == [*range(12), *range(12)]


@pytest.mark.parametrize("length", [29, 30, 32, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_processes(length, processes):
    by_process = [run(length=length, process_count=processes, process_index=i) for i in range(processes)]
    assert len(set(map(len, by_process))) == 1, "every process takes the same number of steps"
    assert [sum(step_batches, []) for step_batches in zip(*by_process, strict=True)] == run(length=length)


@pytest.mark.parametrize(("examples", "epochs", "steps"), [(10, 2, 5), (10, 1, 3), (8, 3, 6), (1, 1, 1), (9, 1, 3)])
def test_steps_per_run(examples, epochs, steps):
    assert steps_per_run(examples, 4, epochs) == steps == len(run(length=examples, epochs=epochs, batch_size=4))


def test_llavas_step_counts():
    assert steps_per_run(558_128, 256, 1) == 2181
    assert steps_per_run(12_726, 32, 12) == 4773  # joined epochs; separate ones would have 398 * 12 = 4776 steps


def test_last_batch_is_padded_with_zero_rows():
    *_, pair = batches(length=10, epochs=1)
    assert numbers(pair)[2:] == [None] * 6 and None not in numbers(pair)[:2]
    last, _ = pair
    assert last.tokens.shape == (8, 1) and last.images.shape == (8, 0, 2)
    assert not last.tokens[2:].any() and not last.target_mask[2:].any()


def test_index_names_the_example_of_each_row_or_filler():
    for batch, info in batches(epochs=1):
        assert info.index.dtype == np.int64
        assert [None if i < 0 else i for i in info.index.tolist()] == numbers((batch, info))


def test_endless_sources_and_epochs_need_no_permutation():
    stream = batches(length=2**31 - 1, epochs=None)
    first = [numbers(next(stream)) for _ in range(4)]
    indices = sum(first, [])
    assert len(set(indices)) == 32 and max(indices) > 2**29
    later = batches(length=2**31 - 1, epochs=None)
    later.set_state(stream.get_state() | {"step": 300_000_000})  # epoch 1
    assert len(numbers(next(later))) == 8
    short = batches(length=3, epochs=None)
    assert sorted(sum((numbers(next(short)) for _ in range(6)), [])) == sorted([0, 1, 2] * 16)


def test_a_subset_of_an_endless_source():
    source = Subset(Numbers(2**31 - 1), range(1000, 2**31 - 1))
    indices = numbers(next(make_batches(source, number_row, **DEFAULTS)))
    assert min(indices) >= 1000 and len(set(indices)) == 8


# --- resume -----------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 3, 7, 8])
def test_state_resumes_exactly_after_the_last_batch(done):
    stream = batches(row_fn=delayed_row)
    for _ in range(done):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    rest = [numbers(batch) for batch in stream]
    assert rest == run()[done:] and len(rest) == 8 - done
    resumed = batches(threads=1, prefetch=5)
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert [numbers(batch) for batch in resumed] == rest


def test_state_does_not_depend_on_the_number_of_processes():
    stream = batches(process_count=4, process_index=2)
    next(stream), next(stream)
    resumed = batches()
    resumed.set_state(stream.get_state())
    assert numbers(next(resumed)) == run()[2]


def test_epochs_may_be_raised_later():
    short, long = batches(length=16, epochs=1), batches(length=16, epochs=2)
    list(short)
    long.set_state(short.get_state())
    assert len(list(long)) == 2


@pytest.mark.parametrize("change", [{"length": 31}, {"batch_size": 16}, {"seed": 4}, {"shuffle": False}])
def test_the_state_of_another_run_is_refused(change):
    with pytest.raises(ConfigError, match="cannot resume the data at step 0: .* was .*, is "):
        batches(**change).set_state(batches().get_state())


def test_close_loses_no_batch():
    stream = batches()
    next(stream)
    stream.close()
    stream.close()
    assert numbers(next(stream)) == run()[1]


# --- errors -----------------------------------------------------------


def failing_row(number: int) -> SourceRow:
    if number == 9:
        raise DataError("sample '9': image.jpg: it is damaged. Replace the file.")
    return number_row(number)


@pytest.mark.parametrize("changes", [{"threads": 0, "prefetch": 0}, {}, {"workers": 1}])
def test_bad_sample_raises_unchanged_and_is_not_skipped(changes):
    stream = batches(row_fn=failing_row, shuffle=False, **changes)
    assert numbers(next(stream)) == list(range(8))
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            next(stream)
        assert str(caught.value) == "sample '9': image.jpg: it is damaged. Replace the file."
        assert stream.get_state()["step"] == 1
    stream.close()


def test_batches_do_not_depend_on_worker_processes():
    stream = batches(workers=2)
    assert [numbers(batch) for batch in stream] == run()
    stream.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "batch_size 9 is not a multiple of the 2 processes"),
        ({"batch_size": 0}, "batch_size 0 is not a multiple"),
        ({"process_index": 1}, "process_index 1 is not one of 1"),
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"seed": -1}, "seed -1"),
        ({"prefetch": -1}, "prefetch -1"),
    ],
)
def test_inconsistent_numbers_are_config_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        batches(**changes)


def test_an_empty_source_is_a_data_error():
    with pytest.raises(DataError, match="the source has 0 examples"):
        batches(length=0)


# --- evaluation -------------------------------------------------------


def test_evaluation_keeps_the_order_and_fills_the_last_batch():
    result = [numbers(batch) for batch in evaluation_batches(Numbers(5), delayed_row, 2)]
    assert result == [[0, 1], [2, 3], [4, None]]
    halves = [evaluation_batches(Numbers(5), number_row, 2, process_index=i, process_count=2) for i in range(2)]
    assert [[numbers(batch) for batch in half] for half in halves] == [[[0], [2], [4]], [[1], [3], [None]]]


# --- build_row --------------------------------------------------------


class Letters:
    """A tokenizer with one id per character."""

    pad_id, bos_id, eos_id, add_bos, legacy, special, strips = 0, 1, 2, True, True, {}, {}

    def encode(self, text: str, dummy_prefix: bool) -> list[int]:
        return [ord(c) for c in text]


ROW = dict(
    tokenizer=Letters(), template="plain", length=12, max_images=2, features=3, image_size=8, aspect="pad",
    overlong="truncate",
)  # fmt: skip


def shown(*images, text="<image>", answer="bus") -> Example:
    return Example("42", (("human", text), ("gpt", answer)), images)


def test_row_has_static_shapes_and_images_in_slots():
    image = Image.effect_noise((9, 5), 90).convert("RGB")
    row = build_row(shown(image), **ROW)
    assert row.tokens.tolist() == [1, -200, -200, -200, *b"bus\n", 0, 0, 0, 0]
    assert row.target_mask.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert row.positions.tolist() == [*range(8), 0, 0, 0, 0]
    assert row.segment_ids.tolist() == [1] * 8 + [0] * 4
    assert row.images.dtype == np.uint8 and row.images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(row.images[0], preprocess(image, 8, "pad"))
    assert not row.images[1].any()
    assert build_row(shown(text="", answer="bus"), **(ROW | {"max_images": 0})).images.shape == (0, 8, 8, 3)


def test_row_errors_name_the_sample_and_the_file(tmp_path):
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff")
    faults = {
        "sample '42': 3 images, but a row holds 2": shown(*[Image.new("RGB", (4, 4))] * 3, text="<image>" * 3),
        "sample '42': .*half.jpg: the image cannot be read": shown(tmp_path / "half.jpg"),
        "sample '42': .*none.jpg: no such file": shown(tmp_path / "none.jpg"),
        "sample '42': image 0: 900x4 pixels": shown(Image.new("RGB", (900, 4))),
        "sample '42': the human turns hold 1 <image>": shown(),
        "sample '42': no supervised token": shown(Image.new("RGB", (4, 4)), answer="x" * 99),
    }
    for message, example in faults.items():
        with pytest.raises(DataError, match=message):
            build_row(example, **(ROW | {"length": 3} if "supervised" in message else ROW))


# --- real data --------------------------------------------------------


@pytest.mark.parametrize("aspect", ["crop", "pad"])
def test_real_captioned_images_become_batches(tmp_path, aspect):
    root = Path(os.environ.get("LLAVA_JAX_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not (root / "captioned_images").is_dir():
        pytest.skip("needs captioned_images: set LLAVA_JAX_REAL_DATA to the folder with the real test data")
    lines = (root / "captioned_images" / "captions.jsonl").read_text().splitlines()[:10]
    rows = [
        {
            "id": line["image"],
            "image": line["image"],
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": line["caption"]}],
        }
        for line in map(json.loads, lines)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    source = LlavaJson(tmp_path / "chat.json", root / "captioned_images" / "images")
    row_fn = partial(build_row, **(ROW | dict(length=128, max_images=1, image_size=224, aspect=aspect)))
    shown_batches = [batch for batch, _ in evaluation_batches(source, lambda example: SourceRow(row_fn(example)), 4)]
    assert [batch.images.shape for batch in shown_batches] == [(4, 1, 224, 224, 3)] * 3
    assert all(image.std() > 5 for batch in shown_batches for image in batch.images[:, 0] if image.any())
    answers = ["".join(map(chr, t[m])) for b in shown_batches for t, m in zip(b.tokens, b.target_mask, strict=True)]
    assert answers == [row["conversations"][1]["value"] + "\n" for row in rows] + ["", ""]
