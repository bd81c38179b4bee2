"""Records and shards round trip; damaged ones are refused."""

import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.array_record import ArrayRecordSource, decode_record, encode_record
from llava_jax.data.write_shards import write_shards
from llava_jax.errors import DataError
from llava_jax.images.preprocess import load_image

TURNS = (("human", "<image>\nWhat is it? 漢🚌"), ("gpt", "A bus.\n<image>"))
TWO = (("human", "<image> and <image>"), ("gpt", "x"), ("human", "?"), ("gpt", "!"))
TEXT = (("human", "Hi"), ("gpt", "Hello"))


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def examples(folder: Path) -> list[Example]:
    (folder / "bus.png").write_bytes(png(100))
    several = [Example(f"№{i}", TURNS, (png(i),)) for i in range(7)]
    return [*several, Example("two", TWO, (folder / "bus.png", png(8)), "detail"), Example("text", TEXT, ())]


@pytest.fixture
def built(tmp_path) -> Path:
    write_shards(
        examples(tmp_path), tmp_path / "out", made_from={}, shard_rows=4, skip_bad=False, threads=2, log=lambda _: None
    )
    return tmp_path / "out"


def test_records_round_trip_with_images_byte_for_byte(tmp_path):
    for example in examples(tmp_path):
        decoded = decode_record(encode_record(example), "here")
        assert (decoded.id, decoded.turns, decoded.kind) == (example.id, example.turns, example.kind)
        data = tuple(image.read_bytes() if isinstance(image, Path) else image for image in example.images)
        assert decoded.images == data


def test_pil_images_are_stored_as_png():
    image = Image.open(io.BytesIO(png(3)), formats=("PNG",))
    decoded = decode_record(encode_record(Example("1", TURNS, (image,))), "here")
    assert load_image(decoded.images[0], "x").tobytes() == image.tobytes()


def test_every_flipped_bit_of_a_record_is_detected():
    record = encode_record(Example("1", TURNS, (png(1),)))
    for offset in range(0, len(record), 7):
        broken = record[:offset] + bytes([record[offset] ^ 4]) + record[offset + 1 :]
        with pytest.raises(DataError, match="^here: its hash does not match its content"):
            decode_record(broken, "here")
    with pytest.raises(DataError, match="its hash"):
        decode_record(record[:-1], "here")


def signed(body: bytes) -> bytes:
    return hashlib.sha256(body).digest() + body


HEAD = {
    "id": "1",
    "images": ["a"],
    "sizes": [3],
    "kind": "",
    "conversations": [{"from": r, "value": t} for r, t in TURNS],
}


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [4]},
        {"sizes": [2]},
        {"sizes": [3, 0]},
        {"sizes": [-1, 4]},
        {"sizes": ["3"]},
        {"sizes": 3},
        {"sizes": None},
    ],
)
def test_record_with_foreign_content_is_refused(change):
    head = json.dumps(HEAD).encode()
    assert decode_record(signed(len(head).to_bytes(4, "little") + head + b"abc"), "here").images == (b"abc",)
    head = json.dumps(HEAD | change).encode()
    with pytest.raises(DataError, match="^here: not a record of this format"):
        decode_record(signed(len(head).to_bytes(4, "little") + head + b"abc"), "here")
    for body in (b"", b"\xff\xff\xff\xff{}", b"\x02\0\0\0[]", b"\x02\0\0\0{}"):
        with pytest.raises(DataError, match="^here: not a record"):
            decode_record(signed(body), "here")


def test_shards_equal_the_source_they_were_built_from(built, tmp_path):
    source, originals = ArrayRecordSource(built), examples(tmp_path)
    assert len(source) == 9
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert [copy[i].id for i in (8, 3, 4, 0, -1)] == [originals[i].id for i in (8, 3, 4, 0, -1)]
    assert source[7].images[1] == png(8) and source[7].kind == "detail"
    assert source.id_hashes().tolist() == [id_hash(example.id) for example in originals]
    with pytest.raises(IndexError):
        source[9]


def test_folder_without_a_manifest_is_refused(built):
    (built / "manifest.json").rename(built / "gone")
    with pytest.raises(DataError, match="out: no manifest.json: the build is incomplete"):
        ArrayRecordSource(built)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": 2}, "has format 2, but this version reads 1"),
        (lambda m: m | {"shards": []}, "lists no shards"),
        (lambda m: {key: m[key] for key in m if key != "ids_sha256"}, "is incomplete"),
        (lambda m: m | {"shards": [m["shards"][0] | {"records": -1}]}, "is incomplete"),
        (lambda m: m | {"shards": [m["shards"][0] | {"records": 10**30}]}, "is incomplete"),
        (lambda m: m | {"shards": [m["shards"][0] | {"records": True}]}, "is incomplete"),
        (lambda m: list(m), "cannot be read"),
        (lambda m: m | {"shards": [m["shards"][0] | {"name": "../x"}]}, "files outside of the folder"),
        (lambda m: m | {"shards": [m["shards"][0] | {"records": "4"}]}, "lists no shards"),
        (lambda m: {"format": 1}, "cannot be read"),
        (lambda m: [], "cannot be read"),
    ],
)
def test_invalid_manifest_is_refused(built, change, message):
    file = built / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DataError, match="manifest.json: .*" + message):
        ArrayRecordSource(built)


def test_missing_and_truncated_shards_are_reported_at_opening(built):
    shard = built / "shard-00001-of-00003.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{shard.name}: {len(data) - 1:,} bytes long instead of {len(data):,}"):
        ArrayRecordSource(built)
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: missing"):
        ArrayRecordSource(built)


def test_damaged_record_raises_only_when_it_is_read(built):
    shard = built / "shard-00001-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    data[data.index(png(5)) + 10] ^= 1
    shard.write_bytes(data)
    source = ArrayRecordSource(built)
    for _ in range(2):
        with pytest.raises(DataError, match=f"{shard.name}: record 1 cannot be read"):
            source[5]
    assert source[4].id == "№4" and source[6].id == "№6"
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(DataError, match=f"{shard.name}: record 0 cannot be read"):
        ArrayRecordSource(built)[4]


def test_ids_that_differ_from_the_manifest_are_refused(built):
    source = ArrayRecordSource(built)
    np.save(built / "ids.npy", source.id_hashes() + 1)
    with pytest.raises(DataError, match="ids.npy: missing or damaged"):
        source.id_hashes()
