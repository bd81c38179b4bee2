"""Records as tfds.data_source returns them, from a stand-in for TFDS."""

import json
import sys
import types

import numpy as np
import pytest

from llava_jax.data.example import id_hash
from llava_jax.data.sources.caption_pairs import INSTRUCTIONS
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.sources.tfds import TfdsSource
from llava_jax.errors import ConfigError, DataError

CAPTIONS = np.array([b"A red bus.", b"Another."], object)
TURNS = {"from": np.array([b"human", b"gpt"], object), "value": np.array([b"<image>\nWhat?", "é".encode()], object)}


@pytest.mark.parametrize(
    ("text", "answer"),
    [({"caption": b" A red bus. "}, "A red bus."), ({"captions": {"text": CAPTIONS, "id": np.arange(2)}}, "A red bus."),
     ({"captions": [{"text": b"A red bus."}]}, "A red bus."), ({"captions": CAPTIONS}, "A red bus."),
     ({"conversations": TURNS}, "é"),
     ({"conversations": [{"from": b"human", "value": b"<image>"}, {"from": b"gpt", "value": b"x"}]}, "x")],
)  # fmt: skip
def test_every_representation_of_a_text_is_read(text, answer):
    source = TfdsSource([{"image": b"png", "image/id": 3, **text}] * 2, "coco/1.1.0")
    assert len(source) == 2 and source[1].id == "1.1.0-1" == source[-1].id
    (_, question), last_turn = source[1].turns
    assert source[1].images == (b"png",) and last_turn == ("gpt", answer)
    assert "conversations" in text or question.removeprefix("<image>\n") in INSTRUCTIONS
    assert source.id_hashes().tolist() == [id_hash("1.1.0-0"), id_hash("1.1.0-1")]


def test_unsuitable_records_are_reported():
    class Broken:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise RuntimeError("Corrupted chunk")

    for records, message in (
        ([{"text": b"x"}], "coco: record 0: has no feature `image`; it has text"),
        ([{"image": b"x", "label": 3}], "coco: record 0: no text in .*; it has image, label"),
        ([{"image": b"x", "caption": b" "}], "coco: record 0: no text"),
        ([{"image": b"x", "captions": []}], "coco: record 0: no text"),
        ([{"image": b"x", "conversations": TURNS | {"from": [b"gpt"]}}], "coco: record 0 .*must alternate"),
        (Broken(), r"coco: record 0: cannot be read \(Corrupted chunk"),
    ):
        with pytest.raises(DataError, match=message):
            TfdsSource(records, "coco")[0]
    with pytest.raises(IndexError):
        TfdsSource([], "coco")[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    (tmp_path / "features.json").write_text(json.dumps(features | {"featuresDict": {"features": {"type": {}}}}))
    return tmp_path


def fake_tfds(builder_from_directory):
    skip = types.SimpleNamespace(SkipDecoding=lambda: "undecoded")
    return types.SimpleNamespace(builder_from_directory=builder_from_directory, decode=skip)


def test_a_prepared_folder_is_opened_with_its_images_undecoded(folder, monkeypatch):
    calls = []

    class Builder:
        def __init__(self, path):
            calls.append(path)

        def as_data_source(self, split, decoders):
            calls.append((split, decoders))
            return [{"image": b"png", "caption": b"A bus."}]

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(Builder))
    assert open_source(folder)[0].turns[1] == ("gpt", "A bus.")
    assert calls == [folder, ("train", {"image": "undecoded"})]


def test_a_folder_that_names_foreign_code_is_not_opened(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(lambda path: pytest.fail("was opened")))
    for key in ("pythonClassName", "python_class_name", "type"):
        (folder / "features.json").write_text(json.dumps({"featuresDict": [{key: "evil.module.Feature"}]}))
        with pytest.raises(DataError, match="features.json names 'evil.module.Feature'"):
            open_source(folder)


def test_tfds_errors_become_one_line(folder, monkeypatch):
    def refuse(path):
        raise NotImplementedError("Random access data source for file format tfrecord is not supported\nmore")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(refuse))
    with pytest.raises(DataError, match="TFDS cannot read it .Random access .* not supported.. Prepare it"):
        open_source(folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'llava_jax\[tfds\]'"):
        open_source(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(DataError, match="features.json: cannot be read"):
        open_source(folder)
