"""The verb `checkpoints`: what it prints about the checkpoints of a folder, and its exit code."""

import json

import pytest

from llava_jax.__main__ import main
from llava_jax.checkpoint.native.integrity import HASH_MARKER, METADATA_FILE, SUMS_FILE, write_hashes
from tests.fixtures.file_damage import DAMAGES


@pytest.fixture
def workdir(tmp_path):
    """With the checkpoints 3 and 12, of before there were hashes and hashed."""
    for step, about in (("3", {}), ("12", {"custom_metadata": HASH_MARKER})):
        folder = tmp_path / "checkpoints" / step
        (folder / "state" / "d").mkdir(parents=True)
        (folder / "state" / "d" / "0a1b").write_bytes(bytes(1000))
        (folder / METADATA_FILE).write_text(json.dumps(about))
    write_hashes(folder)
    return tmp_path


def test_the_verb_is_also_spelled_ckpt(workdir, capsys):
    printed = []
    for name in ("checkpoints", "ckpt"):
        assert main([name, "verify", str(workdir)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


@pytest.mark.parametrize("what, where", [("verify", ""), ("verify", "checkpoints"), ("list", "")])
def test_whole_checkpoints_are_listed_in_their_order_and_the_code_is_0(workdir, capsys, what, where):
    assert main(["checkpoints", what, str(workdir / where)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3: 2 files, 1,002 bytes, 20") and said[0].endswith("hashes: contents unchecked")
    assert said[1].startswith("12: 3 files, 1,1") and said[1].endswith(": ok") == (what == "verify")
    assert said[2:] == (["0 of 2 damaged"] if what == "verify" else [])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["state/d/0a1b", SUMS_FILE])
def test_verify_finds_damage_names_the_file_and_ends_with_1(workdir, capsys, damage, name):
    damage(workdir / "checkpoints" / "12" / name)
    assert main(["checkpoints", "verify", str(workdir)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith(": DAMAGED") and said[2].startswith(f"    {name} ") and said[3:] == ["1 of 2 damaged"]
    assert main(["checkpoints", "list", str(workdir)]) == 0


def test_what_is_no_checkpoint_is_named_too(workdir, capsys):
    (workdir / "checkpoints" / "15.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "12").rename(workdir / "checkpoints" / "12.damaged")
    assert main(["checkpoints", "verify", str(workdir)]) == 0
    said = capsys.readouterr().out
    assert "12.damaged: 3 files" in said and "15.orbax-checkpoint-tmp: a save that never ended" in said
    assert said.endswith("0 of 1 damaged\n")


@pytest.mark.parametrize("where", ["nowhere", "checkpoints/12", "checkpoints/12/state/d/0a1b"])
def test_a_folder_without_checkpoints_is_bad_usage(workdir, capsys, where):
    assert main(["checkpoints", "verify", str(workdir / where)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {workdir / where} ") and "workdir of a run" in said and said.count("\n") == 1
