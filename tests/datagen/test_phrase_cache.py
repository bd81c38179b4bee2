"""Cached noun phrases: blocks, resuming, damaged files, and that nothing stale is used."""

import json

import numpy as np
import pytest

from llava_jax.datagen import caption_rows, phrase_cache
from llava_jax.datagen.caption_rows import open_captions
from llava_jax.datagen.phrase_cache import load_phrases
from llava_jax.errors import ConfigError

NAMES, COLORS = "dog cat cow hen pig".split(), "red tan old new big".split()
CAPTIONS = [f"two red buses and a {color} {name}" for color in COLORS for name in NAMES] + ["!", "the dog"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caption_rows, "BLOCK", 10)
    monkeypatch.setattr(phrase_cache, "BLOCK", 10)


def opened(tmp_path, captions=CAPTIONS):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": f"{i}", "caption": c}) + "\n" for i, c in enumerate(captions)))
    return open_captions(path)


def phrases_by_row(table, rows: int) -> list[set[str]]:
    sets = [set() for _ in range(rows)]
    for row, i in zip(table.rows.tolist(), table.ids.tolist(), strict=True):
        sets[row].add(table.names[i])
    return sets


def same(a, b) -> bool:
    arrays = [(a[key].rows, b[key].rows) for key in a] + [(a[key].ids, b[key].ids) for key in a]
    return all(a[key].names == b[key].names for key in a) and all(np.array_equal(*pair) for pair in arrays)


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """The captions that are parsed, as they are."""
    captions, extract = [], phrase_cache.noun_phrases

    def record(texts, model):
        captions.extend(texts)
        return extract(texts, model)

    monkeypatch.setattr(phrase_cache, "noun_phrases", record)
    return captions


def test_tables_have_each_phrase_of_a_row_once(tmp_path):
    captions = ["two dogs and a dog", *CAPTIONS]
    tables = load_phrases(opened(tmp_path, captions), tmp_path / "cache", None)
    assert phrases_by_row(tables["head"], 28)[:3] == [{"dog"}, {"bus", "dog"}, {"bus", "cat"}]
    assert phrases_by_row(tables["chunk"], 28)[0] == {"two dogs", "a dog"}
    assert phrases_by_row(tables["lemma"], 28)[26:] == [set(), {"dog"}]
    assert tables["head"].names == sorted(tables["head"].names) and len(tables["head"].ids) == 1 + 25 * 2 + 1


def test_cached_blocks_are_not_parsed_again(tmp_path, parsed):
    first = load_phrases(opened(tmp_path), tmp_path / "cache", None)
    assert parsed == CAPTIONS
    assert same(load_phrases(opened(tmp_path), tmp_path / "cache", None), first) and len(parsed) == 27
    for file in (tmp_path / "cache").glob("*.merged.npz"):
        file.unlink()
    assert same(load_phrases(opened(tmp_path), tmp_path / "cache", None), first) and len(parsed) == 27
    longer = load_phrases(opened(tmp_path, [*CAPTIONS, "a tram"]), tmp_path / "cache", None)
    assert parsed[27:] == [*CAPTIONS[20:], "a tram"]  # the block that changed
    assert phrases_by_row(longer["head"], 28)[:27] == phrases_by_row(first["head"], 27)


def test_another_extractor_uses_its_own_phrases(tmp_path, parsed, monkeypatch):
    load_phrases(opened(tmp_path), tmp_path / "cache", None)
    monkeypatch.setattr(phrase_cache, "extractor_name", lambda model: "rules 999")
    load_phrases(opened(tmp_path), tmp_path / "cache", None)
    assert parsed == CAPTIONS * 2


def test_a_stopped_run_keeps_its_blocks(tmp_path, parsed):
    def stop(done):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_phrases(opened(tmp_path), tmp_path / "cache", None, on_progress=stop)
    assert len(parsed) == 20 and not list((tmp_path / "cache").glob("*.partial"))
    progress = []
    tables = load_phrases(opened(tmp_path), tmp_path / "cache", None, on_progress=progress.append)
    assert len(parsed) == 27 and progress == [27]
    assert same(tables, load_phrases(opened(tmp_path), tmp_path / "other", None))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", "cut"])
def test_damaged_files_are_made_again(tmp_path, damage, capsys):
    first = load_phrases(opened(tmp_path), tmp_path / "cache", None)
    for file in (tmp_path / "cache").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else damage)
    assert same(load_phrases(opened(tmp_path), tmp_path / "cache", None), first)
    assert capsys.readouterr().err.count("damaged; its ") == 3


def test_implausible_files_are_made_again(tmp_path, capsys):
    first = load_phrases(opened(tmp_path), tmp_path / "cache", None)
    for file in (tmp_path / "cache").iterdir():
        with np.load(file) as archive:
            arrays = dict(archive)
        for name in arrays:
            if name.endswith("ids"):
                arrays[name] = arrays[name] + 1000
        np.savez(file, **arrays)
    assert same(load_phrases(opened(tmp_path), tmp_path / "cache", None), first)
    assert capsys.readouterr().err.count("damaged; its ") == 3


def test_worker_processes_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_rows, "BLOCK", 10_000)
    monkeypatch.setattr(phrase_cache, "BLOCK", 10_000)  # as in the workers, which are other processes
    captions = opened(tmp_path, CAPTIONS * 400)
    tables = load_phrases(captions, tmp_path / "cache", None, workers=2)
    assert same(tables, load_phrases(captions, tmp_path / "other", None))


def test_blocks_of_the_same_captions_are_parsed_once(tmp_path, parsed):
    tables = load_phrases(opened(tmp_path, CAPTIONS[:10] * 3), tmp_path / "cache", None)
    assert parsed == CAPTIONS[:10]
    rows = phrases_by_row(tables["chunk"], 30)
    assert rows[:10] == rows[10:20] == rows[20:] and rows[0] == {"two red buses", "a red dog"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match="cache: phrases cannot be cached there .*--phrases"):
        load_phrases(opened(tmp_path), tmp_path / "cache", None)
