"""The filter of captions, compared with an independent rule; draws; the page."""

import hashlib
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from llava_jax.datagen.caption_filter import Selection, rows_in, select_captions, split_mix_64
from llava_jax.datagen.caption_rows import open_captions
from llava_jax.datagen.filter_page import filter_page
from llava_jax.datagen.phrase_cache import PhraseTable, load_phrases
from llava_jax.errors import ConfigError

# Letters without vowels: no plural, verb form or function word among them.
NAMES = [f"{a}{b}{c}{d}" for a in "bcdfg" for b in "hjklm" for c in "npqrt" for d in "vwxz"]


def corpus(count: int, seed: int = 0) -> list[tuple[str, str, set[str]]]:
    """(image, caption, its nouns). The noun with index i has about 1/i of the frequency of the first."""
    rng, weights = random.Random(seed), [1 / (i + 1) ** 2.2 for i in range(len(NAMES))]
    rows = []
    for i in range(count):
        nouns = rng.choices(NAMES, weights, k=3)
        rows.append((f"{i}.jpg", f"a {nouns[0]} with two {nouns[1]} and the {nouns[2]}", set(nouns)))
    return rows


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def expected(rows, min_count: int, cap: int, seed: int) -> set[str]:
    """The images that the rule selects, written without the package."""
    members = defaultdict(list)
    for image, caption, nouns in rows:
        for noun in nouns:
            members[noun].append((image, caption))
    pool = set()
    for noun, pairs in sorted(members.items(), key=lambda item: (len(item[1]), item[0])):
        if len(pairs) < min_count:
            continue
        if len(pairs) > cap:
            numbers = {}
            for image, caption in pairs:
                state = digest(f"{seed}\0{noun}") ^ digest(f"{image}\0{caption}")
                state = (state + 0x9E3779B97F4A7C15) % 2**64
                state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
                state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
                numbers[image, caption] = state ^ state >> 31
            pairs = sorted(pairs, key=numbers.get)[:cap]
        pool.update(image for image, _ in pairs)
    return pool


def select_file(path, rows, cache, **options) -> tuple[list[str], Selection, PhraseTable]:
    """The selected images in the order of the file, by all of the program."""
    lines = (json.dumps({"image": image, "caption": caption}) + "\n" for image, caption, _ in rows)
    path.write_text("".join(lines), encoding="utf-8")
    captions = open_captions(path)
    table = load_phrases(captions, cache, None)["head"]
    selection = select_captions(table, captions.row_keys, **options)
    return [rows[i][0] for i in selection.rows], selection, table


def test_selection_of_200_000_captions_equals_an_independent_rule_in_any_order():
    rows = corpus(200_000)
    options = {"min_count": 3, "cap": 100, "seed": 5}
    images = expected(rows, **options)
    counts = Counter(noun for *_, nouns in rows for noun in nouns)
    assert min(counts.values()) < 3 and len(images) < 100_000  # both rules matter
    names = sorted(counts)
    index = {name: i for i, name in enumerate(names)}
    for seed in range(2):
        pairs = np.array([(row, index[noun]) for row, (*_, nouns) in enumerate(rows) for noun in nouns], np.int32)
        keys = np.array([digest(f"{image}\0{caption}") for image, caption, _ in rows], np.uint64)
        selection = select_captions(PhraseTable(names, *pairs.T), keys, **options)
        assert dict(zip(names, selection.counts.tolist(), strict=True)) == counts
        assert selection.kept == sum(count >= 3 for count in counts.values())
        assert len(selection.rows) == len(images) and {rows[i][0] for i in selection.rows} == images
        assert (np.diff(selection.rows) > 0).all() and selection.pool[-1] == len(images)
        random.Random(seed).shuffle(rows)


def test_files_in_any_order_give_the_same_rows(tmp_path):
    rows = corpus(3000, seed=1) + corpus(50, seed=1)  # 50 rows twice
    options = {"min_count": 3, "cap": 20}
    selected = set(select_file(tmp_path / "a.jsonl", rows, tmp_path / "a", **options)[0])
    assert selected == expected(rows, 3, 20, 0) and 300 < len(selected) < 2000
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        assert set(select_file(tmp_path / "b.jsonl", rows, tmp_path / "b", **options)[0]) == selected


def test_seed_changes_the_draw_only(tmp_path):
    rows = corpus(3000)
    first, selection, _ = select_file(tmp_path / "a.jsonl", rows, tmp_path, cap=20)
    second, other, _ = select_file(tmp_path / "a.jsonl", rows, tmp_path, cap=20, seed=1)
    assert first != second and abs(len(first) - len(second)) < 200
    assert selection.counts.tolist() == other.counts.tolist() and selection.kept == other.kept


def table_of(*rows: str) -> tuple[PhraseTable, np.ndarray]:
    names = sorted({name for row in rows for name in row.split()})
    pairs = [(i, names.index(name)) for i, row in enumerate(rows) for name in row.split()]
    table = PhraseTable(names, *(np.array(column, np.int32) for column in zip(*pairs, strict=True)))
    return table, np.array([digest(str(i)) for i in range(len(rows))], np.uint64)


def test_counts_at_the_limits():
    table, keys = table_of("a", "a b", "b c", "c b", "c d", "c d")
    assert select_captions(table, keys, min_count=3, cap=100).rows.tolist() == [1, 2, 3, 4, 5]  # b, c; a and d have 2
    assert select_captions(table, keys, min_count=2, cap=100).rows.tolist() == [0, 1, 2, 3, 4, 5]
    selection = select_captions(table, keys, min_count=3, cap=3)
    assert selection.counts.tolist() == [2, 3, 4, 2] and selection.kept == 2
    assert selection.pool.tolist() == [3, len(selection.rows)] and {1, 2, 3} <= set(selection.rows.tolist())
    assert len(select_captions(table, keys, min_count=4, cap=2).rows) == 2  # the cap may be below the count
    assert len(select_captions(table, keys, min_count=5).rows) == 0


def test_draws_are_uniform():
    table, _ = table_of(*["a"] * 50)
    draws = Counter()
    for seed in range(400):
        keys = np.array([digest(str(i)) for i in range(50)], np.uint64)
        draws.update(select_captions(table, keys, cap=10, seed=seed).rows.tolist())
    assert len(draws) == 50 and sum(draws.values()) == 4000
    assert sum((count - 80) ** 2 / 80 for count in draws.values()) < 49 + 4 * (2 * 49) ** 0.5  # chi squared


def test_split_mix_64_gives_the_published_sequence():
    """The first outputs of the reference generator for the state 0; a step adds a constant to the state."""
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert split_mix_64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_released_rows_match_by_url_or_else_by_image(tmp_path):
    def file(name, rows):
        (tmp_path / name).write_text(json.dumps(rows))
        return open_captions(tmp_path / name)

    rows = [{"image": f"{i}.jpg", "caption": "x", "url": f"http://x/{i}"} for i in range(4)]
    captions = file("a", rows)
    assert rows_in(captions, file("b", [rows[2] | {"image": "other"}])).tolist() == [False, False, True, False]
    by_image = [{"image": "1.jpg", "caption": "other"}]
    assert rows_in(captions, file("c", by_image)).tolist() == [False, True, False, False]
    with pytest.raises(ConfigError, match="none of its 1 rows .*by URL"):
        rows_in(captions, file("d", [{"image": "1.jpg", "caption": "x", "url": "http://y"}]))


def test_page_shows_the_published_numbers_and_is_reproducible():
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    table, keys = table_of("a", "a b", "b c", "c b", "c d", "c d")
    selections = {"head": select_captions(table, keys, min_count=2)}
    page = filter_page("selection of <x>", "head", selections, 6, 2, {"seed": "0"})
    for text in ("108,182", "31,423", "595,375", "selection of &lt;x&gt;", "all captions: 4 phrases", "100.0%"):
        assert text in page, text
    assert page.count("<svg") == 2 and page == filter_page("selection of <x>", "head", selections, 6, 2, {"seed": "0"})
