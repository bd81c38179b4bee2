"""The tokenizer and the architecture in a workdir, without a run."""

import json
import shutil

import pytest

from llava_jax.checkpoint.native.run_inputs import (
    open_run_tokenizer,
    own_architecture,
    own_tokenizer,
    tokenizer_digest,
    write_run_inputs,
)
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.errors import ConfigError, DataError
from llava_jax.text.tokenizer import train_tokenizer
from tests.checkpoint.test_open_checkpoint import chatml_gguf
from tests.fixtures.file_damage import files_of_at_most
from tests.fixtures.tiny_models import EVEN


@pytest.fixture
def source(tmp_path):
    """A folder with a copy of the built-in tokenizer."""
    return shutil.copytree(TINY_TOKENIZER, tmp_path / "source")


def changed_tokenizer(folder, change) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))


@pytest.fixture
def workdir(tmp_path, source):
    """A workdir with a checkpoint (an empty folder), started with the tokenizer `source`."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"tokenizer": str(source)}))
    write_run_inputs(folder, open_tokenizer(str(source)), str(source), EVEN)
    (folder / "checkpoints" / "3").mkdir()
    return folder


def swap_ids(spec):
    vocab = spec["model"]["vocab"]
    a, b = list(vocab)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def lower(spec):
    spec["normalizer"] = {"type": "Lowercase"}


def test_architecture_is_kept_without_how_it_computes(workdir):
    recorded = own_architecture(workdir)
    assert (recorded.vision, recorded.llm, recorded.projector) == (EVEN.vision, EVEN.llm, EVEN.projector)
    (workdir / "architecture.json").write_text('{"vision": 1}')
    with pytest.raises(DataError, match="architecture.json"):
        own_architecture(workdir)


@pytest.mark.parametrize("change", [swap_ids, lower])
def test_digest_differs_for_other_ids(source, change):
    before = tokenizer_digest(open_tokenizer(str(source)))
    assert before == tokenizer_digest(open_tokenizer("tiny"))
    changed_tokenizer(source, change)
    assert tokenizer_digest(open_tokenizer(str(source))) != before


def test_copy_has_the_digest_of_its_source(tmp_path, source):
    for name in (str(source), str(source / "tokenizer.json"), str(chatml_gguf(tmp_path / "a.gguf"))):
        tokenizer = open_tokenizer(name)
        write_run_inputs(tmp_path, tokenizer, name, EVEN)
        assert tokenizer_digest(open_tokenizer(str(own_tokenizer(tmp_path)))) == tokenizer_digest(tokenizer), name


def test_resumed_run_uses_its_own_tokenizer_and_reports_a_change(workdir, source):
    lines = []
    expected = tokenizer_digest(open_tokenizer("tiny"))
    open_run_tokenizer(workdir, str(source), "", lines.append)
    assert lines == []
    changed_tokenizer(source, lower)
    assert tokenizer_digest(open_run_tokenizer(workdir, str(source), "", lines.append)) == expected
    (line,) = lines
    assert f"the tokenizer {source} has changed since" in line and f"{workdir}/tokenizer" in line
    shutil.rmtree(source)
    assert tokenizer_digest(open_run_tokenizer(workdir, str(source), "", lines.append)) == expected


def test_another_tokenizer_by_name_is_refused(workdir, source, tmp_path):
    lines = []
    open_run_tokenizer(workdir, "tiny", "", lines.append)
    assert lines == [], "another name for the same tokens"
    train_tokenizer(["a b c"], 300, tmp_path / "other")
    with pytest.raises(ConfigError, match=f"other.* Resume with --config.tokenizer={source}"):
        open_run_tokenizer(workdir, str(tmp_path / "other"), "", lines.append)
    with pytest.raises(DataError, match="missing"):
        open_run_tokenizer(workdir, str(tmp_path / "missing"), "", lines.append)


def test_own_tokenizer_is_rewritten_only_before_the_first_checkpoint(workdir, tmp_path):
    other = train_tokenizer(["a b c"], 300, tmp_path / "other")
    before = {p.name: p.read_bytes() for p in (workdir / "tokenizer").iterdir()}
    write_run_inputs(workdir, other, str(tmp_path / "other"), EVEN)
    assert {p.name: p.read_bytes() for p in (workdir / "tokenizer").iterdir()} == before
    (workdir / "checkpoints" / "3").rmdir()
    (workdir / "tokenizer.partial").mkdir()  # left by a process that was killed
    write_run_inputs(workdir, other, str(tmp_path / "other"), EVEN)
    assert open_tokenizer(str(workdir / "tokenizer")).vocab_size == other.vocab_size
    assert open_run_tokenizer(workdir, "tiny", "", print).vocab_size != other.vocab_size, "the run starts over"
    write_run_inputs(workdir, other, str(workdir / "tokenizer"), EVEN)
    assert open_tokenizer(str(workdir / "tokenizer")).vocab_size == other.vocab_size, "copied onto itself"
    assert not (workdir / "tokenizer.partial").exists()


def test_full_disk_leaves_no_part_of_a_tokenizer(tmp_path):
    with files_of_at_most(5_000), pytest.raises(OSError):
        write_run_inputs(tmp_path, open_tokenizer("tiny"), "tiny", EVEN)
    assert list(tmp_path.iterdir()) == []


def test_other_tokenizer_than_that_of_the_language_model_is_logged(tmp_path, source, workdir):
    model, plain = shutil.copytree(source, tmp_path / "model"), tmp_path / "plain"
    plain.mkdir()  # weights without a tokenizer
    lines, new = [], tmp_path / "new"
    for load_llm in ("", str(source), str(model), str(workdir), str(plain), "tiny:llm"):
        open_run_tokenizer(new, str(source), load_llm, lines.append)
    assert lines == []
    changed_tokenizer(model, swap_ids)
    open_run_tokenizer(new, str(source), str(model), lines.append)
    assert len(lines) == 1 and f"is not the one of load.llm={model}" in lines[0] and "--config.tokenizer=" in lines[0]
