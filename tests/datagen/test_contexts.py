"""Contexts: the released ones are rendered to the byte, COCO's files and JSON Lines are read, bad ones are named."""

import hashlib
import json

import pytest

from llava_jax.datagen import context_files
from llava_jax.datagen.context_files import image_key, read_contexts, read_excluded
from llava_jax.datagen.contexts import Box, ImageContext, context_record, context_text
from llava_jax.errors import ConfigError, DataError

ROW = {"image": "a/7.jpg", "captions": ["A bus."], "boxes": [["bus", 0.1, 0.2, 0.63, 1]]}
IMAGE = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 200, "height": 100}
CAPTIONS = {
    "info": {"year": 2014},
    "images": [IMAGE, IMAGE | {"id": 3, "file_name": "3.jpg"}],
    "licenses": [],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "A cat"},
        {"image_id": 9, "id": 2, "caption": "Two dogs.\n"},
        {"image_id": 9, "id": 3, "caption": "Dogs\nplay."},
    ],
}
INSTANCES = {
    "images": [],
    "annotations": [
        {"image_id": 9, "category_id": 18, "bbox": [20.0, 10.0, 180.4, 50], "segmentation": [[1, 2]], "iscrowd": 0},
        {"image_id": 77, "category_id": 18, "bbox": [0, 0, 1, 1], "iscrowd": 0},
        {"image_id": 9, "category_id": 18, "bbox": [0, 0, 200, 100], "iscrowd": 1},
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 100, 33.3], "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "with_boxes, size, digest",
    [
        (True, 39_219, "850e0dade2a121f43c192edaf22bb2ba0b4754d310b3f4b2940dba0d59b7c556"),
        (False, 21_949, "b12f1d49ee922e56d93f5d637045fa89a99aa5180f3aad5cfe2ceb0abca2962c"),
    ],
)
def test_released_contexts_are_rendered_to_the_byte(real_data, with_boxes, size, digest):
    contexts = read_contexts(real_data / "llava_bench_coco" / "caps_boxes_coco2014_val_80.jsonl")
    text = "\n\0\n".join(context_text(context, with_boxes) for context in contexts).encode()
    assert len(contexts) == 80 and len(text) == size and hashlib.sha256(text).hexdigest() == digest


def test_numbers_are_printed_as_python_floats():
    box = Box("dog", 0.0, 0.1236, 0.63, 1.0)
    context = ImageContext("1", "1.jpg", ("A dog ",), (box, box))
    assert context_text(context, True) == "A dog \n\ndog: [0.0, 0.124, 0.63, 1.0]\ndog: [0.0, 0.124, 0.63, 1.0]"
    assert context_text(context, False) == "A dog "


def test_lines_are_read_and_written_back(tmp_path):
    rows = [
        ROW,
        {"image": "8.jpg", "caption": "Rain\n and sun.", "id": 5},
        {"image": "9.jpg", "captions": ["x", "y"], "instances": [{"category": "dog", "bbox": [0, 0, 1, 0.5]}]},
        {"image": "10.jpg", "captions": ["z"], "boxes": []},
    ]
    path = write(tmp_path / "c.jsonl", "\ufeff" + "\r\n\n".join(map(json.dumps, rows)))
    contexts = read_contexts(path)
    assert contexts == [
        ImageContext("7", "a/7.jpg", ("A bus.",), (Box("bus", 0.1, 0.2, 0.63, 1.0),)),
        ImageContext("5", "8.jpg", ("Rain and sun.",), None),
        ImageContext("9", "9.jpg", ("x", "y"), (Box("dog", 0.0, 0.0, 1.0, 0.5),)),
        ImageContext("10", "10.jpg", ("z",), ()),
    ]
    assert context_text(contexts[0], True).endswith("bus: [0.1, 0.2, 0.63, 1.0]")
    again = write(tmp_path / "again.jsonl", "\n".join(json.dumps(context_record(c)) for c in contexts))
    assert read_contexts(again) == contexts


@pytest.mark.parametrize("indent", [None, 2])
def test_coco_captions_and_boxes_are_joined(tmp_path, indent):
    path = write(tmp_path / "captions_train2014.json", json.dumps(CAPTIONS, indent=indent))
    without = read_contexts(path)
    assert [c.boxes for c in without] == [None, None]
    boxes = write(tmp_path / "instances_train2014.json", json.dumps(INSTANCES, indent=indent))
    dogs, cat = read_contexts(path)
    assert dogs == ImageContext(
        "000000000009",
        "COCO_train2014_000000000009.jpg",
        ("Two dogs. ", "Dogs play."),
        (Box("dog", 0.1, 0.1, 1.0, 0.6), Box("person", 0.0, 0.0, 0.5, pytest.approx(0.333))),
    )
    assert cat == ImageContext("000000000003", "3.jpg", ("A cat",), ())
    boxes.rename(tmp_path / "boxes.json")
    assert read_contexts(path, tmp_path / "boxes.json") == [dogs, cat]


def row(**changes) -> str:
    return json.dumps(ROW) + "\n\n" + json.dumps({"image": "8.jpg", "captions": ["x"]} | changes)


BAD_LINES = {
    "no captions": (row(captions=None), r"line 3 \(id '8'\): no captions"),
    "empty captions": (row(captions=[]), "no captions"),
    "a blank caption": (row(captions=["x", " "]), "a caption must be a string that is not empty"),
    "a text for captions": (row(captions="x"), "no captions"),
    "outside": (row(boxes=[["dog", 0, 0, 1.2, 1]]), r"the box of 'dog', \[0, 0, 1.2, 1\], is not inside the image"),
    "negative": (row(boxes=[["dog", -0.1, 0, 1, 1]]), "not inside the image"),
    "pixels": (row(boxes=[["dog", 10, 20, 30, 40]]), "not inside the image"),
    "left and right swapped": (row(boxes=[["dog", 0.8, 0, 0.2, 1]]), "not inside the image"),
    "NaN": (row(boxes=[["dog", float("nan"), 0, 1, 1]]), "line 3: not JSON .NaN is not JSON"),
    "infinite": (row(boxes=[["dog", 0, 0, 0, 1]]).replace(" 1]", " 1e999]"), "not JSON .the number 1e999 is too large"),
    "a text as number": (row(boxes=[["dog", "0", 0, 1, 1]]), "a box must be"),
    "true as number": (row(boxes=[["dog", True, 0, 1, 1]]), "a box must be"),
    "four numbers only": (row(boxes=[[0, 0, 1, 1]]), "a box must be"),
    "no category": (row(boxes=[["", 0, 0, 1, 1]]), "the category of a box must be a string that is not empty"),
    "a number as category": (row(boxes=[[18, 0, 0, 1, 1]]), "the category of a box must be"),
    "boxes by name": (row(boxes={"dog": [0, 0, 1, 1]}), 'key "boxes" must be a list'),
    "the same id": (row(id="7"), "the id '7' occurs twice"),
    "an id of another type": (row(id=[1]), 'key "id" must be a string'),
    "no image": (row(image=None), 'line 3: key "image" must be a string'),
    "a lone surrogate": (row(captions=["\ud83d"]), "lone surrogate"),
    "broken": (row()[:-1], "line 3: not JSON"),
    "an array": (json.dumps([ROW]), "expected .*found list"),
    "nothing": ("\n", "no images"),
    "no text": ("", "is empty"),
    "a web page": ("<!DOCTYPE html>", "is a web page"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_is_named(tmp_path, name):
    with pytest.raises(DataError, match=BAD_LINES[name][1]) as caught:
        read_contexts(write(tmp_path / "bad.jsonl", BAD_LINES[name][0]))
    assert str(caught.value).startswith(str(tmp_path / "bad.jsonl")) and "\n" not in str(caught.value)


def changed(table: dict, key: str, index: int, **values) -> dict:
    items = [item | (values if i == index else {}) for i, item in enumerate(table[key])]
    return table | {key: items}


BAD_COCO = {  # name: (captions, instances, message)
    "no captions": (CAPTIONS | {"annotations": CAPTIONS["annotations"][1:]}, INSTANCES, "image 3: no captions"),
    "instances as captions": (INSTANCES | {"images": [IMAGE]}, None, 'no "caption". Pass captions_'),
    "captions as instances": (CAPTIONS, CAPTIONS, 'key "bbox" must be'),
    "the same image": (CAPTIONS | {"images": [IMAGE, IMAGE]}, None, r"images\[1\]: the id 9 occurs twice"),
    "a caption without image": (CAPTIONS | {"images": [IMAGE]}, None, "a caption belongs to image 3"),
    "unknown category": (CAPTIONS, changed(INSTANCES, "annotations", 3, category_id=5), r"\[3\].*category 5 is not"),
    "outside": (CAPTIONS, changed(INSTANCES, "annotations", 3, bbox=[150, 0, 60, 9]), "not inside the image of 200"),
    "negative width": (CAPTIONS, changed(INSTANCES, "annotations", 3, bbox=[9, 0, -3, 9]), "not inside"),
    "no size": (changed(CAPTIONS, "images", 0, width=0), INSTANCES, "image 9: width and height"),
    "no box": (CAPTIONS, changed(INSTANCES, "annotations", 0, bbox=None), r"annotations\[0\]: key .bbox. must be"),
    "NaN": (CAPTIONS, changed(INSTANCES, "annotations", 0, bbox=[float("nan"), 0, 1, 1]), "NaN is not JSON"),
    "truncated": (json.dumps(CAPTIONS)[:-20], None, "not JSON"),
    "truncated after an item": (json.dumps(CAPTIONS)[:-2], None, "not JSON .* Is the file complete"),
    "no lists": ({"images": [{"id": 1}]}, None, "no list of annotations"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_coco_file_is_named(tmp_path, name):
    captions, instances, message = BAD_COCO[name]
    path = write(tmp_path / "captions_x.json", captions)
    if instances is not None:
        write(tmp_path / "instances_x.json", instances)
    with pytest.raises(DataError, match=message) as caught:
        read_contexts(path)
    assert "\n" not in str(caught.value)


def test_boxes_may_exceed_the_image_by_a_pixel(tmp_path):
    path = write(tmp_path / "captions_x.json", CAPTIONS)
    write(tmp_path / "instances_x.json", changed(INSTANCES, "annotations", 3, bbox=[-0.9, 0, 201.5, 0]))
    assert read_contexts(path)[0].boxes[1] == Box("person", 0.0, 0.0, 1.0, 0.0)


def test_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "huge.jsonl").open("wb") as file:
        file.truncate(context_files.MAX_BYTES + 1)  # a sparse file
    with pytest.raises(DataError, match="has 1,000,000,001 bytes; at most 1,000,000,000 are read"):
        read_contexts(tmp_path / "huge.jsonl")


def test_missing_file_and_misplaced_boxes_are_named(tmp_path):
    path = write(tmp_path / "c.jsonl", ROW)
    with pytest.raises(DataError, match="d.jsonl: is no file; there is c.jsonl"):
        read_contexts(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match="is no file"):
        read_contexts(tmp_path)
    with pytest.raises(ConfigError, match="--instances belongs to a file of COCO's captions"):
        read_contexts(path, path)


def test_excluded_images_match_in_all_their_names(tmp_path):
    path = write(tmp_path / "x", '{"image": "COCO_val2014_000000000042.jpg", "text": "Why?"}\n\nval/7.jpg\nplain\n')
    assert read_excluded(path) == {"000000000042", "7", "plain"}
    assert image_key("train2017/000000000042.jpg") == "000000000042" == image_key("000000000042")
    for text, message in (("\n", "names no images"), ('{"id": 1}', 'line 1: key "image"'), ("{", "line 1: not JSON")):
        with pytest.raises(DataError, match=message):
            read_excluded(write(path, text))
