"""LLaVA's training JSON, its faults, and the held-out split."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llava_jax.data.example import Example
from llava_jax.data.sources.combine import Subset, train_eval_split
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import ConfigError, DataError


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def row(**changes) -> dict:
    base = {"id": "1", "image": "a.jpg", "conversations": turns("<image>\nWhat is it?", "A red bus.")}
    return {k: v for k, v in (base | changes).items() if v is not ...}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def write(folder: Path, content) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "train.json").write_bytes(text)
    return folder / "train.json"


def opened(folder: Path, content):
    return LlavaJson(write(folder, content), folder / "images")


def test_a_row_becomes_an_example(folder):
    source = opened(folder, [row(), row(id="2", image=..., conversations=turns("Hi", "Hello"), model="ignored")])
    image = (folder / "images" / "a.jpg").resolve()
    assert len(source) == 2
    assert source[0] == Example("1", (("human", "<image>\nWhat is it?"), ("gpt", "A red bus.")), (image,))
    assert source[1] == Example("2", (("human", "Hi"), ("gpt", "Hello")), ())
    assert source[-1] == source[1] and source[np.int64(1)] == source[1]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_rows_are_read_in_any_json_layout(folder, indent, bom, ascii_only):
    rows = [row(id=f"№{i} ]", conversations=turns(f'<image>\né{"漢" * i} 🚌 "}},{{', "]")) for i in range(9)]
    source = opened(folder, bom + json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode() + b"\n ")
    for i in (8, 0, 3, 7):
        assert source[i].id == source.example_id(i) == rows[i]["id"]
        assert source[i].turns[0][1] == rows[i]["conversations"][0]["value"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("What is it?\n<image>", "<image>\nWhat is it?"),
        ("What <image> is it?", "<image>\nWhat  is it?"),
        ("<image>\n<image> twice", "<image>\ntwice"),
        ("<image>", "<image>"),
    ],
)
def test_with_one_image_the_marker_moves_to_the_front(folder, before, after):
    assert opened(folder, [row(conversations=turns(before, "Yes"))])[0].turns[0][1] == after


def test_several_image_markers_keep_their_positions(folder):
    text = "left <image> right <image>"
    for key in ("image", "images"):
        two = row(image=..., conversations=turns(text, "Yes")) | {key: ["a.jpg", "b/c.jpg"]}
        example = opened(folder, [two])[0]
        assert example.turns[0][1] == text
        assert [path.name for path in example.images] == ["a.jpg", "c.jpg"]


def test_rows_that_the_original_tolerates_are_accepted(folder):
    leading_gpt = [{"from": "gpt", "value": "Welcome"}, *turns("<image>", "A bus")]
    assert opened(folder, [row(conversations=leading_gpt)])[0].turns == (("human", "<image>"), ("gpt", "A bus"))
    assert opened(folder, [row(id=17)])[0].id == "17"
    assert opened(folder, [row(image=None, conversations=turns("Hi", "x"))])[0].images == ()
    svg = turns("How do I show a picture in XML?", "Write <image>.")
    assert opened(folder, [row(image=..., conversations=svg)])[0].turns[1][1] == "Write <image>."


FILE_FAULTS = {
    "empty": (b"", "train.json is empty"),
    "blank": (b" \n", "train.json: is empty"),
    "no rows": (b"[]", "train.json: the array has no samples"),
    "an object": (b'{"id": 1}', "train.json: not a JSON array"),
    "truncated in a row": (json.dumps([row(), row()]).encode()[:-60], "row 1: broken JSON at line 1 column .*download"),
    "truncated after a row": (json.dumps([row(), row()]).encode()[:-1], "row 1: no comma or ] after it"),
    "truncated after a comma": (json.dumps([row()]).encode()[:-1] + b",", "row 1: broken JSON"),
    "trailing comma": (json.dumps([row()]).encode()[:-1] + b",]", "row 1: broken JSON"),
    "two arrays": (json.dumps([row()]).encode() * 2, "text after the end of the array"),
    "latin-1": ('["é"]'.encode("latin-1"), "not UTF-8 text .byte 2"),
    "deep": (b"[" * 100_000, "row 0: broken JSON, .*: it is nested too deeply"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_file_faults_name_the_file(folder, fault):
    content, message = FILE_FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        opened(folder, content)
    assert str(folder / "train.json") in str(caught.value)


def test_system_turn_is_kept_with_its_markers(folder):
    system = {"from": "system", "value": "Write <image>."}
    source = opened(folder, [row(conversations=[system, *turns("What? <image>", "b")])])
    assert source[0].turns == (("system", "Write <image>."), ("human", "<image>\nWhat?"), ("gpt", "b"))
    source = opened(folder, [row(conversations=[system, {"from": "gpt", "value": "Hi."}, *turns("<image>", "b")])])
    assert [role for role, _ in source[0].turns] == ["system", "human", "gpt"]


ROW_FAULTS = {
    "two system turns": (row(conversations=[{"from": "system", "value": "x"}] * 2), 'not "human" or "gpt"'),
    "only a system turn": (row(conversations=[{"from": "system", "value": "x"}]), "must alternate .* not be empty"),
    "not an object": (3, "expected an object, found int"),
    "no id": (row(id=...), '"id" must be a string'),
    "id true": (row(id=True), '"id" must be a string'),
    "no conversations": (row(conversations=...), "\\(id '1'\\): key \"conversations\" must be a list"),
    "no turns": (row(conversations=[]), "must alternate .* not be empty"),
    "turn is text": (row(conversations=["hi"]), r"conversations\[0\] needs the keys"),
    "no value": (row(conversations=[{"from": "human"}]), r"conversations\[0\] needs the keys"),
    "value null": (row(conversations=[{"from": "human", "value": None}]), r"conversations\[0\] needs the keys"),
    "unknown role": (row(conversations=[{"from": "tool", "value": "x"}]), '"from" is \'tool\', not .* or "system"'),
    "human twice": (row(conversations=[*turns("<image>"), *turns("b", "c")]), "must alternate"),
    "no answer": (row(conversations=turns("<image>")), "end with gpt"),
    "lone surrogate": (row(conversations=turns("<image>", "\ud83d")), r"conversations\[1\] has a lone surrogate"),
    "image is a number": (row(image=3), '"image" must be a path or a list of paths'),
    "image is empty": (row(image=""), '"image" must be a path'),
    "images holds null": (row(image=..., images=[None]), '"images" must be a path'),
    "both keys": (row(images=["b.jpg"]), 'both "image" and "images"'),
    "image without marker": (row(conversations=turns("What?", "x")), r"1 image\(s\), but 0 <image>"),
    "marker without image": (row(image=...), r"0 image\(s\), but 1 <image>"),
    "two turns show one image": (row(conversations=turns("<image>a", "b", "<image>c", "d")), r"1 image\(s\), but 2"),
    "marker only in the answer": (row(conversations=turns("What?", "<image>")), r"1 image\(s\), but 0 <image>"),
    "two images, one marker": (row(image=["a", "b"]), r"2 image\(s\), but 1 <image>"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_row_faults_are_reported_with_row_and_key_at_opening(folder, fault):
    bad, message = ROW_FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        opened(folder, [row(), row(), bad])
    assert f"{folder / 'train.json'}: row 2" in str(caught.value)


def test_missing_file_and_missing_folder_are_named(folder):
    with pytest.raises(DataError, match="nowhere.json: cannot be read .No such file"):
        LlavaJson(folder / "nowhere.json", folder / "images")
    with pytest.raises(DataError, match="nowhere: the image folder of .*train.json does not exist"):
        LlavaJson(write(folder, [row()]), folder / "nowhere")


def test_image_paths_outside_the_folder_are_refused(folder):
    images, outside = folder / "images", folder / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"x")
    (folder / "images-too").mkdir()
    os.symlink(outside, images / "link")
    os.symlink(outside / "secret.jpg", images / "file.jpg")
    os.symlink("loop", images / "loop")
    bad = [
        "../outside/secret.jpg", "a/../../outside/secret.jpg", "/etc/passwd", "link/secret.jpg", "file.jpg", "loop/x",
        "../images-too/a.jpg", "a\0b.jpg",
    ]  # fmt: skip
    source = opened(folder, [row(id=f"bad {i}", image=name) for i, name in enumerate(bad)])
    for i, name in enumerate(bad):
        with pytest.raises(DataError, match=f"train.json: sample 'bad {i}': .*is outside of") as caught:
            source[i]
        assert repr(name) in str(caught.value)


def test_links_and_dots_within_the_folder_are_accepted(folder):
    images = folder / "images"
    (images / "coco").mkdir()
    os.symlink(images / "coco", images / "train2017")
    os.symlink(images, folder / "alias")
    names = ["coco/a.jpg", "train2017/a.jpg", "coco/../coco/a.jpg", str(images / "coco" / "a.jpg")]
    source = LlavaJson(write(folder, [row(image=name) for name in names]), folder / "alias")
    assert {source[i].images for i in range(4)} == {((images / "coco" / "a.jpg").resolve(),)}


def test_file_changed_during_the_run_is_refused(folder):
    source = opened(folder, [row(), row(id="2")])
    os.utime(write(folder, [row(id="2"), row()]), ns=(0, 0))  # the same size and row positions
    with pytest.raises(DataError, match="train.json: changed or removed since it was opened"):
        source[1]
    (folder / "train.json").unlink()
    with pytest.raises(DataError, match="train.json: changed or removed since it was opened"):
        source[1]


# --- subsets and the held-out split ------------------------------------------------------------


class Ids:
    """A source of examples with ids only."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return Example(self.ids[index], (), ())


def ids_of(source) -> list[str]:
    return [source[i].id for i in range(len(source))]


def test_subset_of_a_subset():
    outer = Subset("abcdefgh", range(1, 8, 2))
    assert [outer[i] for i in range(len(outer))] == ["b", "d", "f", "h"]
    assert Subset(outer, np.array([3, 0]))[0] == "h"


def test_split_is_complete_disjoint_in_order_and_near_the_fraction():
    source = Ids([f"id-{i}" for i in range(4000)])
    train, held_out = train_eval_split(source, 0.05, 0)
    assert sorted(ids_of(train) + ids_of(held_out)) == sorted(source.ids)
    assert 150 < len(held_out) < 250
    assert ids_of(held_out) == [i for i in source.ids if i in set(ids_of(held_out))]


def test_split_does_not_depend_on_other_rows_or_order():
    ids = [f"id-{i}" for i in range(1000)]
    _, before = train_eval_split(Ids(ids), 0.1, 0)
    _, after = train_eval_split(Ids([f"new-{i}" for i in range(500)] + ids[::-1]), 0.1, 0)
    assert set(ids_of(before)) == {i for i in ids_of(after) if i.startswith("id-")}


def test_split_is_the_same_in_every_version():
    _, held_out = train_eval_split(Ids([str(i) for i in range(40)]), 0.1, 0)
    assert ids_of(held_out) == ["9", "39"]


def test_rows_of_one_id_stay_together():
    train, held_out = train_eval_split(Ids([f"{i % 50}" for i in range(150)]), 0.2, 0)
    assert not set(ids_of(train)) & set(ids_of(held_out))
    assert set(Counter(ids_of(held_out)).values()) == {3}


def test_at_least_the_minimum_is_held_out():
    source = Ids([f"id-{i}" for i in range(100)])
    assert len(train_eval_split(source, 0.0, 0)[1]) == 0
    assert len(train_eval_split(source, 0.0, 7)[1]) == 7
    few, more = (set(ids_of(train_eval_split(source, 0.0, n)[1])) for n in (3, 7))
    assert few < more


def test_impossible_splits_are_refused():
    with pytest.raises(DataError, match="leaves nothing to train on"):
        train_eval_split(Ids(["a", "b"]), 0.0, 2)
    with pytest.raises(DataError, match="leaves nothing to train on"):
        train_eval_split(Ids(["a", "b"]), 0.0, 3)
    with pytest.raises(ConfigError, match="fraction must be in"):
        train_eval_split(Ids(["a"]), 1.0, 0)
    with pytest.raises(ConfigError, match="too many to split by id"):
        train_eval_split(Subset("a", range(2**31 - 1)), 0.1, 0)


def test_the_split_of_a_json_file_opens_no_image(folder):
    source = opened(folder, [row(id=str(i), image="../outside.jpg") for i in range(40)])
    assert [source.example_id(int(i)) for i in train_eval_split(source, 0.1, 0)[1].indices] == ["9", "39"]
