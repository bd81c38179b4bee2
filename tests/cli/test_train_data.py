"""python -m llava_jax train: a fault of the data is named before the first step, with its file and sample."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.small_run import ROW, run, write_small_run


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return write_small_run(tmp_path, monkeypatch)


def no_file(folder):
    (folder / "train.json").unlink()


def no_folder(folder):
    (folder / "images" / "bus.jpg").unlink()
    (folder / "images").rmdir()


def no_image(folder):
    (folder / "images" / "bus.jpg").unlink()


def truncated_image(folder):
    path = folder / "images" / "bus.jpg"
    path.write_bytes(path.read_bytes()[:-300])


def no_rows(folder):
    (folder / "train.json").write_text("[]")


def no_bytes(folder):
    (folder / "train.json").write_text("")


def no_rows_at_all(folder):
    (folder / "train.json").write_text("samples:\n- id: 1\n")


def cut_off(folder):
    (folder / "train.json").write_text(json.dumps([ROW, ROW])[:-20])


def no_id(folder):
    (folder / "train.json").write_text(json.dumps([{**ROW, "id": None}]))


def outside(folder):
    (folder / "train.json").write_text(json.dumps([{**ROW, "image": "../../etc/passwd"}]))


FAULTS = [
    (no_file, ["train.json", "cannot be read"]),
    (no_folder, ["images", "does not exist"]),
    (no_image, ["bus-1", "bus.jpg", "no such file"]),
    (truncated_image, ["bus-1", "bus.jpg", "the image cannot be read"]),
    (no_rows, ["train.json", "no samples"]),
    (no_bytes, ["train.json", "empty"]),
    (no_rows_at_all, ["train.json", "expected one array of samples"]),
    (cut_off, ["train.json", "row 1", "broken JSON"]),
    (no_id, ["train.json", "row 0", '"id"']),
    (outside, ["train.json", "bus-1", "../../etc/passwd", "is outside of"]),
]


@pytest.mark.parametrize("fault, messages", FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_data_error_is_named_and_exits_1(folder, fault, messages, capsys, monkeypatch):
    fault(folder)
    monkeypatch.setattr("llava_jax.train.stage_run.first_state", lambda *_: None)  # avoids compiling it
    code, out, err = run(capsys, "--config=small.py", "--config.stages.one.data.bad=error")
    assert code == 1 and err.startswith("error: ")
    assert all(message in err for message in messages), err
    assert "stages.one.batch = 8  (small.py)" in out  # the config is printed first


def test_data_error_in_a_later_row_leaves_the_loader_threads(folder, capsys):
    Image.new("RGB", (64, 48)).save(folder / "images" / "late.jpg")
    late = folder / "images" / "late.jpg"
    late.write_bytes(late.read_bytes()[:-300])
    rows = [ROW, *({**ROW, "id": f"late-{i}", "image": "late.jpg"} for i in range(7))]
    (folder / "train.json").write_text(json.dumps(rows))
    code, out, err = run(capsys, "--config=small.py", "--config.stages.one.data.bad=error")
    assert code == 1 and err.startswith("error: sample 'late-") and str(late) in err and "truncated" in err
    assert "sample bus-1" in out  # the first sample was read and logged
    assert "  EXIF orientation of images: ignored, as in the original" in out


def test_control_characters_of_the_data_are_not_printed(folder, capsys):
    late = {**ROW, "id": "late\x1b[2J", "image": "gone\x1b[31m.jpg"}
    (folder / "train.json").write_text(json.dumps([{**ROW, "id": "bus\x1b[31m-1"}, *[late] * 7]))
    code, out, err = run(capsys, "--config=small.py", "--config.stages.one.data.bad=error")
    assert code == 1 and "sample bus[31m-1" in out and "gone[31m.jpg: no such file" in err
    assert "\x1b" not in out + err
