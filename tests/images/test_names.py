"""Image names in another form than the file's, below a folder and in a zip archive."""

import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from llava_jax.errors import DataError
from llava_jax.images.files import ImageFolder, ImageZip, open_images
from llava_jax.images.preprocess import load_image
from tests.fixtures.odd_images import PNG

COMPOSED, DECOMPOSED = "Bücher/café 한.png", unicodedata.normalize("NFD", "Bücher/café 한.png")
TREE = ("sub dir/c d.png", "IMG.PNG", "train2017/1.png", "a.jpeg", "Screenshot 3.45\u202fPM.png", "100%.png", COMPOSED)
NEAR = {  # name in the data: the file that is meant
    "sub dir\\c d.png": "sub dir/c d.png",
    ".\\sub dir\\c d.png": "sub dir/c d.png",
    "sub%20dir/c%20d.png": "sub dir/c d.png",
    "sub%20dir%5Cc%20d.png": "sub dir/c d.png",
    "SUB DIR/C D.PNG": "sub dir/c d.png",
    " sub dir / c d.png": "sub dir/c d.png",
    "IMG.png": "IMG.PNG",
    "img.jpg": "IMG.PNG",
    "IMG.PNG\n": "IMG.PNG",
    "IMG": "IMG.PNG",
    "a.jpg": "a.jpeg",
    "ＩＭＧ.PNG": "IMG.PNG",
    "Screenshot 3.45 PM.png": "Screenshot 3.45\u202fPM.png",
    "100%25.png": "100%.png",
    "images/IMG.PNG": "IMG.PNG",
    "images/images/IMG.PNG": "IMG.PNG",
    "coco/train2017/1.png": "train2017/1.png",
    "1.png": "train2017/1.png",
    "/IMG.PNG": "IMG.PNG",
    "../IMG.PNG": "IMG.PNG",
    "/home/me/images/sub dir/c d.png": "sub dir/c d.png",
    "C:\\data\\IMG.PNG": "IMG.PNG",
    "BÜCHER/CAFÉ 한.PNG": COMPOSED,
}


def folder_of(root: Path, names=TREE) -> ImageFolder:
    for name in names:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(PNG)
    return open_images(root / "images", root)


def archive_of(root: Path, names=TREE) -> ImageZip:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(name, PNG)
    return open_images(root / "images.zip", root)


def fault_of(images, name: str) -> str:
    with pytest.raises(DataError) as caught:
        load_image(images.find(name, "here"), name)
    assert caught.value.kind in ("missing", "outside the folder")
    return str(caught.value)


@pytest.mark.parametrize("name", NEAR)
def test_near_match_of_a_missing_name_is_shown(tmp_path, name):
    for images in (folder_of(tmp_path), archive_of(tmp_path)):
        shown = repr(NEAR[name])[1:]
        message = fault_of(images, name)
        assert "; did you mean '" in message and f"{shown}" in message.partition("did you mean")[2]


NOWHERE = ["nothing.png", "IMG2.PNG", "train2017", "sub dir/1.gif", "\ud83d.png", "a\0b", "x" * 999]


@pytest.mark.parametrize("name", NOWHERE)
def test_names_without_a_near_match_are_only_missing(tmp_path, name):
    for images in (folder_of(tmp_path), archive_of(tmp_path)):
        assert "did you mean" not in fault_of(images, name)


def test_a_file_whose_folder_is_the_image_folder_is_shown(tmp_path):
    folder_of(tmp_path)
    message = fault_of(ImageFolder(tmp_path / "images" / "train2017"), "coco/train2017/1.png")
    assert f"did you mean '{tmp_path}/images/train2017/1.png'?" in message


@pytest.mark.parametrize(("stored", "name"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_same_name_in_another_unicode_form_is_used(tmp_path, stored, name):
    assert stored != name
    folder, archive = folder_of(tmp_path, [stored]), archive_of(tmp_path, [stored])
    assert folder.find(name, "here") == tmp_path / "images" / stored and archive.find(name, "here") == PNG
    assert [images.has(form) for images in (folder, archive) for form in (name, stored)] == [False, True] * 2


def test_two_files_of_one_name_are_never_chosen_from(tmp_path):
    stored = ["\u00c5.png", "A\u030a.png"]  # the same letter as U+212B
    for images in (folder_of(tmp_path, stored), archive_of(tmp_path, stored)):
        assert "did you mean" in fault_of(images, "\u212b.png")
        assert images.find(stored[0], "here") in (tmp_path / "images" / stored[0], PNG)
    fault_of(archive_of(tmp_path, ["./y.png", "\\y.png"]), "y.png")


def test_entries_that_programs_write_differently_are_used(tmp_path):
    odd = {"sub\\x.png": "sub/x.png", "./y.png": "y.png", "/z.png": "z.png", "a//b.png": "a/b.png"}
    path = archive_of(tmp_path, [*odd, "B__/__.png"]).path
    path.write_bytes(path.read_bytes().replace(b"B__/__.png", "Bü/ü.png".encode()))  # without the mark of UTF-8
    images = ImageZip(path)
    for name in [*odd.values(), "Bü/ü.png"]:
        assert images.find(name, "here") == PNG == images.find(f"./{name}", "here")
    assert "did you mean" in fault_of(images, "/y.png")


def test_folders_are_listed_only_after_a_miss_and_once(tmp_path, monkeypatch):
    images, scan, listed = folder_of(tmp_path), os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scan(folder))
    for name in TREE:
        load_image(images.find(name, "here"), name)
    assert not listed
    for i in range(50):
        fault_of(images, f"gone {i}.png")
        fault_of(images, f"sub dir/gone {i} é.png")
    assert len(listed) == len(set(listed)) <= 5


def test_files_that_appear_later_are_seen(tmp_path):
    images = folder_of(tmp_path)
    assert "did you mean" not in fault_of(images, "late.png")
    (tmp_path / "images" / "Late.png").write_bytes(PNG)
    os.utime(tmp_path / "images", ns=(1, 1))
    assert "Late.png'?" in fault_of(images, "late.png")


def test_another_form_does_not_lead_out_of_the_folder(tmp_path):
    images = folder_of(tmp_path)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "images" / "cafe\u0301.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="is outside of"):
        images.find("caf\u00e9.png", "here")


def test_names_that_are_not_unicode_are_shown_escaped(tmp_path):
    images = folder_of(tmp_path)
    (tmp_path / "images" / os.fsdecode(b"gone.\xff")).write_bytes(PNG)
    assert "did you mean" in fault_of(images, "gone.png") and fault_of(images, "gone.png").encode()


URLS = ["http://images.cocodataset.org/1.png", "s3://bucket/1.png", "data:image/png;base64," + "A" * 9999]


@pytest.mark.parametrize("name", URLS)
def test_a_url_is_named_and_nothing_downloaded(tmp_path, name):
    for path in (folder_of(tmp_path).find(name, "here"), name):
        with pytest.raises(DataError, match="no such file: it is a URL, and nothing is downloaded") as caught:
            load_image(path, str(path))
        assert len(str(caught.value)) < 600
