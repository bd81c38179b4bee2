"""The verb `checkpoints`: its output and exit code."""

import json

import pytest

from llava_jax.__main__ import main
from llava_jax.checkpoint.native.integrity import HASH_MARKER, METADATA_FILE, SUMS_FILE, write_hashes
from tests.fixtures.file_damage import DAMAGES


@pytest.fixture
def workdir(tmp_path):
    """A workdir with checkpoint 3, saved without hashes, and checkpoint 12, saved with them."""
    for step, metadata in (("3", {}), ("12", {"custom_metadata": HASH_MARKER})):
        folder = tmp_path / "checkpoints" / step
        (folder / "state" / "d").mkdir(parents=True)
        (folder / "state" / "d" / "0a1b").write_bytes(bytes(1000))
        (folder / METADATA_FILE).write_text(json.dumps(metadata))
    write_hashes(folder)
    return tmp_path


def test_ckpt_is_an_alias_of_checkpoints(workdir, capsys):
    printed = []
    for name in ("checkpoints", "ckpt"):
        assert main([name, "verify", str(workdir)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


@pytest.mark.parametrize("action, where", [("verify", ""), ("verify", "checkpoints"), ("list", "")])
def test_intact_checkpoints_are_listed_in_order_and_exit_0(workdir, capsys, action, where):
    assert main(["checkpoints", action, str(workdir / where)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3: 2 files, 1,002 bytes, 20") and lines[0].endswith("hashes: contents unchecked")
    assert lines[1].startswith("12: 3 files, 1,1") and lines[1].endswith(": ok") == (action == "verify")
    assert lines[2:] == (["0 of 2 damaged"] if action == "verify" else [])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["state/d/0a1b", SUMS_FILE])
def test_verify_names_the_damaged_file_and_exits_1(workdir, capsys, damage, name):
    damage(workdir / "checkpoints" / "12" / name)
    assert main(["checkpoints", "verify", str(workdir)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(": DAMAGED") and lines[2].startswith(f"    {name} ") and lines[3:] == ["1 of 2 damaged"]
    assert main(["checkpoints", "list", str(workdir)]) == 0


def test_damaged_and_unfinished_checkpoint_folders_are_listed(workdir, capsys):
    (workdir / "checkpoints" / "15.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "12").rename(workdir / "checkpoints" / "12.damaged")
    assert main(["checkpoints", "verify", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert "12.damaged: 3 files" in out and "15.orbax-checkpoint-tmp: an unfinished save" in out
    assert out.endswith("0 of 1 damaged\n")


@pytest.mark.parametrize("where", ["nowhere", "checkpoints/12", "checkpoints/12/state/d/0a1b"])
def test_folder_without_checkpoints_exits_2(workdir, capsys, where):
    assert main(["checkpoints", "verify", str(workdir / where)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {workdir / where} ") and "workdir of a run" in err and err.count("\n") == 1
