"""Images in a zip archive. Image folders are tested in tests/data/sources/test_llava_json.py."""

import io
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.errors import DataError
from llava_jax.images import files as image_files
from llava_jax.images.files import open_images
from llava_jax.images.preprocess import load_image


def png(color) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def archive(folder: Path, entries: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(folder / "images.zip", "w", method) as zip_file:
        for name, data in entries.items():
            zip_file.writestr(name, data)
    return folder / "images.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_are_read_by_name(tmp_path, method):
    images = open_images(archive(tmp_path, {"a/b.png": png("red"), "c.png": png("blue")}, method), tmp_path)
    assert images.find("a/b.png", "here") == png("red")
    assert load_image(images.find("c.png", "here"), "c").getpixel((0, 0)) == (0, 0, 255)


def test_threads_and_unpickled_copies_read_the_same_bytes(tmp_path):
    entries = {f"{i}.png": png((i, 0, 0)) * 50 for i in range(100)}
    images = pickle.loads(pickle.dumps(open_images(archive(tmp_path, entries), tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: images.find(name, ""), entries)) == list(entries.values())


def understate_size(path: Path) -> None:
    """Makes the headers of a 50 MB entry claim 1,000 bytes."""
    data = bytearray(path.read_bytes())
    for magic, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        offset = data.index(magic) + field
        data[offset : offset + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)


def test_faulty_archives_and_entries_are_refused(tmp_path, monkeypatch):
    where = f"here: image 'a.png' in {tmp_path}/images.zip: "
    path = archive(tmp_path, {"a.png": bytes(50_000_000)})
    understate_size(path)
    with pytest.raises(DataError, match="^" + where + "damaged"):
        open_images(path, tmp_path).find("a.png", "here")
    monkeypatch.setattr(image_files, "MAX_BYTES", 999)
    with pytest.raises(DataError, match=where + "unpacks to 1,000 bytes, more than 999"):
        open_images(path, tmp_path).find("a.png", "here")
    path = archive(tmp_path, {"a.png": png("red")}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match=where + "encrypted, or compressed by a rare method"):
        open_images(path, tmp_path).find("a.png", "here")
    path = archive(tmp_path, {"a.png": png("red")}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=where + "damaged .*CRC"):
        open_images(path, tmp_path).find("a.png", "here")
    with pytest.raises(DataError, match="'../a.png' in .*no such entry"):
        open_images(path, tmp_path).find("../a.png", "here")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="images.zip: not a readable zip archive"):
        open_images(path, tmp_path)


def test_a_json_reads_its_images_from_an_archive(tmp_path):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Red."}]
    rows = [{"id": name, "image": name, "conversations": turns} for name in ("a.png", "b.png")]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    source = LlavaJson(tmp_path / "train.json", archive(tmp_path, {"a.png": png("red")}))
    assert source[0].images == (png("red"),)
    with pytest.raises(DataError, match="train.json: sample 'b.png': image 'b.png' in .*images.zip: no such entry"):
        source[1]
    assert source.example_id(1) == "b.png"
