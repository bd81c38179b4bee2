"""Rows of several examples, and substitutes for unreadable ones."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from llava_jax.data.example import Example
from llava_jax.data.packing import fill_unknown_sizes, pack
from llava_jax.data.rows import RowFormat, Rows
from llava_jax.errors import DataError
from llava_jax.images.preprocess import preprocess


class Letters:
    """A tokenizer with one id per character."""

    pad_id, bos_id, eos_id, add_bos, legacy, special, strips = 0, 1, 2, True, True, {}, {}

    def encode(self, text: str, dummy_prefix: bool) -> list[int]:
        return [ord(c) for c in text]


FORMAT = RowFormat(
    Letters(), "plain", length=20, max_images=3, features=2, image_size=4, aspect="pad", overlong="truncate"
)


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, value, value))


def example(name: str, answer: str, *images) -> Example:
    return Example(name, (("human", "<image>" * len(images)), ("gpt", answer)), images)


def test_packed_row_of_a_small_example():
    examples = [example("a", "x", picture(7)), example("b", "yz"), example("c", "w", picture(8), picture(9))]
    row = FORMAT.row([FORMAT.segment(e) for e in examples])
    assert row.tokens.tolist() == [
        1, -200, -200, *b"x\n",   1, *b"yz\n",   1, -200, -200, -200, -200, *b"w\n",   0, 0, 0, 0,
    ]  # fmt: skip
    assert row.target_mask.tolist() == [
        *[False] * 3, True, True,   False, *[True] * 3,   *[False] * 5, True, True,   *[False] * 4,
    ]  # fmt: skip
    assert row.positions.tolist() == [*range(5), *range(4), *range(7), 0, 0, 0, 0]
    assert row.segment_ids.tolist() == [1] * 5 + [2] * 4 + [3] * 7 + [0] * 4
    assert row.images[:, 0, 0, 0].tolist() == [7, 8, 9]
    np.testing.assert_array_equal(row.images[1], preprocess(picture(8), 4, "pad"))


SYSTEM = (("system", "Be brief."), ("human", "What?"), ("gpt", "xyz"))


def test_system_text_of_a_sample_is_rendered_and_untrained():
    chat = dataclasses.replace(FORMAT, template="vicuna_v1", length=400)
    ids, mask = chat.tokens(Example("a", SYSTEM, ()))
    assert bytes(ids[1:-1].tolist()).decode() == "Be brief. USER: What? ASSISTANT: xyz"
    assert mask.tolist() == [False] * (len(ids) - 5) + [True] * 5


def test_system_text_without_a_slot_names_sample_and_template():
    with pytest.raises(DataError, match="sample 'a': template 'plain' has no system text"):
        FORMAT.tokens(Example("a", SYSTEM, ()))


def test_first_question_and_answer_follow_the_system_text():
    for turns in (SYSTEM, SYSTEM[1:]):
        sample = Example("a", turns, ())
        assert (sample.opening, sample.first_answer) == (turns[:-1], "xyz")


def test_truncated_image_leaves_its_slot_to_the_next_sample():
    chat = dataclasses.replace(FORMAT, template="vicuna_v1", length=400)
    turns = (("human", "<image>"), ("gpt", "xyz"), ("human", "<image>"), ("gpt", "w"))
    two_images = Example("a", turns, (picture(7), picture(8)))
    ids, _ = chat.tokens(two_images)
    second_image = np.flatnonzero(ids == -200)[2]
    first = dataclasses.replace(chat, length=int(second_image) + 1).segment(two_images)
    assert len(first.ids) == second_image and len(first.images) == 1
    row = chat.row([first, FORMAT.segment(example("b", "v", picture(9)))])
    assert row.images[:, 0, 0, 0].tolist() == [7, 9, 0]


def test_row_of_another_length_and_empty_row():
    assert FORMAT.row([FORMAT.segment(example("a", "x"))], 6).tokens.tolist() == [1, *b"x\n", 0, 0, 0]
    empty = FORMAT.row([])
    assert not empty.segment_ids.any() and not empty.target_mask.any() and empty.images.shape == (3, 4, 4, 3)


def test_segments_that_do_not_fit_are_refused():
    long_segment = FORMAT.segment(example("a", "x" * 10))
    two_images = FORMAT.segment(example("a", "x", picture(1), picture(2)))
    with pytest.raises(DataError, match=r"2 sample\(s\) of 24 tokens and 0 images do not fit into a row of 20 and 3"):
        FORMAT.row([long_segment, long_segment])
    with pytest.raises(DataError, match=r"2 sample\(s\) of 14 tokens and 4 images"):
        FORMAT.row([two_images, two_images])


# --- substitutes ------------------------------------------------------


def source(tmp_path, bad=(3, 11)) -> list[Example]:
    """Examples of several lengths with one image each; the images of `bad` are missing, the text of 5 is invalid."""
    examples = [example(str(i), "x" * (1 + i % 7), picture(10 + i)) for i in range(30)]
    for i in bad:
        examples[i] = dataclasses.replace(examples[i], images=(tmp_path / f"{i}.jpg",))
    examples[5] = dataclasses.replace(examples[5], turns=(("human", ""), ("gpt", "y")))  # without <image>
    return examples


def test_unreadable_sample_gets_the_same_recorded_substitute_every_time(tmp_path):
    rows = Rows(source(tmp_path), FORMAT, replace=True, seed=1)
    (record,) = rows.row(3).replaced
    assert (record["index"], record["sample"]) == (3, "3")
    assert record["reason"].startswith(f"sample '3': {tmp_path}/3.jpg: no such file")
    substitute = int(record["substitute"])
    assert substitute not in (3, 5, 11)
    np.testing.assert_array_equal(rows.row(3).arrays.tokens, rows.row(substitute).arrays.tokens)
    np.testing.assert_array_equal(rows.row(3).arrays.images, rows.row(substitute).arrays.images)
    again = pickle.loads(pickle.dumps(rows)).row(3)
    assert again.replaced == [record]
    assert rows.row(4).replaced == []
    assert rows.names(3) == [record["substitute"]] and rows.names(4) == ["4"], "names are those of the row's contents"
    substitutes = {Rows(source(tmp_path), FORMAT, True, seed).row(3).replaced[0]["substitute"] for seed in range(8)}
    assert len(substitutes) > 1, "the substitute depends on the seed"


def test_requested_names_opens_no_image(tmp_path, monkeypatch):
    examples, sizes = source(tmp_path), np.array([[5, 1]] * 16)
    rows = Rows(examples, FORMAT, groups=pack(sizes, 20, 3, 0))
    monkeypatch.setattr("llava_jax.data.rows.load_image", None)
    for index, members in enumerate(rows.groups):
        assert rows.requested_names(index) == [examples[i].id for i in members]


def test_without_replace_the_error_reaches_the_caller(tmp_path):
    rows = Rows(source(tmp_path), FORMAT)
    assert rows.row(4).replaced is None
    for read in (lambda: rows.row(5), lambda: rows.size(5), lambda: rows.readable(9)):
        with pytest.raises(DataError, match="sample '[35]'"):
            read()


def test_substitute_is_no_larger_than_what_it_replaces(tmp_path):
    examples = source(tmp_path, bad=range(1, 29, 4))
    for i in range(0, 30, 2):
        examples[i] = example(str(i), "x", picture(1), picture(2))  # short, but with two images
    rows = Rows(examples, FORMAT, replace=True)
    sizes = np.stack([rows.size(i) for i in range(30)])
    assert sizes[5].tolist() == [0, 0] and sizes[3].tolist() == [3 + 5, 1]
    sizes = fill_unknown_sizes(sizes)
    packed = dataclasses.replace(rows, sizes=sizes, groups=pack(sizes, 20, 3, 0))
    replaced = []
    for i in range(len(packed)):
        row = packed.row(i)
        assert row.arrays.segment_ids.max() == len(packed.groups[i])
        substitutes = {record["index"]: record["substitute"] for record in row.replaced}
        assert packed.names(i) == [substitutes.get(k, str(k)) for k in packed.groups[i]]
        replaced += row.replaced
        for record in row.replaced:
            assert (sizes[int(record["substitute"])] <= sizes[record["index"]]).all()
    assert sorted(record["index"] for record in replaced) == list(range(1, 29, 4))


def test_row_stays_empty_when_nothing_can_be_read(tmp_path):
    rows = Rows([example(str(i), "x", tmp_path / "none.jpg") for i in range(4)], FORMAT, replace=True)
    row = rows.row(2)
    assert row.replaced[0]["substitute"] is None and not row.arrays.segment_ids.any()
    assert row.arrays.tokens.shape == (20,) and rows.names(2) == ["?"]


def test_sample_whose_source_raises_is_replaced(tmp_path):
    class Source(list):
        def __getitem__(self, index):
            if index == 2:
                raise DataError("chat.json: row 2 is outside of the folder")
            return super().__getitem__(index)

    rows = Rows(Source(source(tmp_path, bad=())), FORMAT, replace=True)
    (record,) = rows.row(2).replaced
    assert record["sample"] is None and "is outside" in record["reason"]
    assert rows.names(2) == [record["substitute"]] and rows.names(1) == ["1"]
    assert [e.id for e in rows.readable(6)] == ["0", "1", "3", "4", "6", "7"]
