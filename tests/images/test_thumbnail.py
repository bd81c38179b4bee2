from llava_jax.images.thumbnail import thumbnail
from tests.fixtures.images import encoded, noise


def test_thumbnail_is_reduced_and_none_for_unreadable_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(noise(300, 200), "JPEG"))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert thumbnail(tmp_path / "a.jpg", "a").size == (96, 64)
    assert thumbnail((tmp_path / "a.jpg").read_bytes(), "a").size == (96, 64)
    assert thumbnail(tmp_path / "b.jpg", "b") is thumbnail(tmp_path / "c.jpg", "c") is thumbnail(None, "") is None


def test_thumbnail_neither_enlarges_nor_changes_its_input():
    image = noise(300, 200)
    assert thumbnail(image, "a", 400).size == (300, 200) and thumbnail(image, "a", 30).size == (30, 20)
    assert image.size == (300, 200)
