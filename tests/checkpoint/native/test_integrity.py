import json
import shutil
import subprocess

import pytest

from llava_jax.checkpoint.native.integrity import (
    HASH_MARKER,
    METADATA_FILE,
    SUMS_FILE,
    faults,
    is_hashed,
    steps_in,
    write_hashes,
)
from tests.fixtures.file_damage import DAMAGES, delete, flip


@pytest.fixture
def folder(tmp_path):
    """A folder like a checkpoint, with hashes."""
    folder = tmp_path / "7"
    for name in ("state/d/0a1b", "state/ocdbt.process_0/d/0a1b", "state/manifest.ocdbt", "data/metadata", "empty"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(range(256)) * (name != "empty"))
    (folder / METADATA_FILE).write_text(json.dumps({"custom_metadata": HASH_MARKER}))
    write_hashes(folder)
    return folder


def test_untouched_checkpoint_is_intact_also_for_sha256sum(folder):
    assert is_hashed(folder) and faults(folder) == []
    metadata = {"custom_metadata": HASH_MARKER, "commit_timestamp_nsecs": 1}  # as Orbax writes it
    (folder / METADATA_FILE).write_text(json.dumps(metadata))
    (folder / "commit_success.txt").write_text("done")
    (folder / "state" / ".nfs0001").touch()
    assert faults(folder) == []
    if shutil.which("sha256sum"):
        output = subprocess.run(
            ["sha256sum", "-c", SUMS_FILE], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        assert output.count(": OK") == 5


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["state/d/0a1b", "state/manifest.ocdbt", "data/metadata", METADATA_FILE, SUMS_FILE])
def test_damage_to_any_file_names_that_file(folder, damage, name):
    damage(folder / name)
    damaged = faults(folder)
    assert len(damaged) == 1 and damaged[0].startswith(name + " "), damaged
    assert ("missing" in damaged[0]) == (damage is delete)


def test_single_flipped_bit_is_detected_and_all_faults_listed(folder):
    data = bytearray((folder / "state/d/0a1b").read_bytes())
    data[-1] ^= 1
    (folder / "state/d/0a1b").write_bytes(data)
    (folder / "data/metadata").unlink()
    (folder / "empty").write_bytes(b"x")
    assert [fault.split()[0] for fault in faults(folder)] == ["data/metadata", "empty", "state/d/0a1b"]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_truncated_hash_file_is_damage(folder, kept):
    lines = (folder / SUMS_FILE).read_text().splitlines(keepends=True)
    (folder / SUMS_FILE).write_text("".join(lines[:kept]))
    missing = [line.split()[1] for line in lines[kept:] if "/" in line]
    assert faults(folder) == [f"{name} is not in {SUMS_FILE}" for name in missing]


def test_checkpoint_without_hashes_is_not_damaged(folder):
    (folder / SUMS_FILE).unlink()
    (folder / METADATA_FILE).write_text(json.dumps({"custom_metadata": {}}))
    flip(folder / "state/d/0a1b")
    assert not is_hashed(folder) and faults(folder) == []
    shutil.rmtree(folder)
    folder.mkdir()
    assert faults(folder) == [f"{METADATA_FILE} is missing"], "an empty folder is damaged"


@pytest.mark.parametrize("text", ["\xff", "nothing", "0a1b  state/d/0a1b\n"], ids=repr)
def test_invalid_hash_file_is_damage(folder, text):
    (folder / SUMS_FILE).write_text(text, encoding="latin-1")
    assert faults(folder) == [f"{SUMS_FILE} cannot be read: it is damaged"]


def test_files_outside_the_checkpoint_are_never_opened(folder, monkeypatch):
    (folder.parent / "secret").write_text("secret")
    (folder / SUMS_FILE).write_text(f"{'0' * 64}  ../secret\n{'0' * 64}  {folder.parent}/secret\n")
    assert [fault.rsplit("/", 1)[1] for fault in faults(folder)[:2]] == ["secret is missing"] * 2


def test_only_complete_checkpoints_are_listed(tmp_path):
    for name in ("12", "3", "4.damaged", "5.orbax-checkpoint-tmp", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "6").touch()
    assert steps_in(tmp_path) == [3, 12]
