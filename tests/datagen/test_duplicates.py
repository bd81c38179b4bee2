import random

import numpy as np
import pytest

from llava_jax.datagen.duplicates import SIMILARITY, duplicates

DOG = "The image shows a black dog that sleeps on a red couch beside a tall lamp in a quiet and tidy living room."


def random_text(rng: random.Random, tokens: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(tokens)]


def jaccard(first: str, second: str) -> float:
    a, b = ({tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)} for tokens in (first.split(), second.split()))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(
    "other, is_duplicate",
    [
        (DOG, True),
        (DOG.upper().replace(" ", "  ").replace(".", "!"), True),
        (DOG + " It is night.", True),  # 20 of 23 shingles
        ("Today, the" + DOG[3:], True),
        (DOG.replace("dog", "cat"), False),  # 3 of 20 shingles on either side differ
        (DOG.replace("red", "blue").replace("black", "white"), False),
        ("", False),
        ("The image shows a black dog.", False),
        (" ".join(reversed(DOG.split())), False),
    ],
)
def test_table_of_pairs(other, is_duplicate):
    assert duplicates([("a", DOG), ("b", other)]) == ({"b": "a"} if is_duplicate else {})


def test_short_texts_are_compared_whole():
    texts = [(0, "Yes."), (1, "No."), (2, "yes"), (3, ""), (4, "?!"), (5, "A dog"), (6, "a dog!"), (7, "A cat")]
    assert duplicates(texts) == {2: 0, 4: 3, 6: 5}


def test_a_duplicate_names_the_first_text_that_is_none():
    tokens = random_text(random.Random(1), 60)
    first, second = " ".join(tokens), " ".join([*tokens[:-5], *"a b c d e".split()])
    third = " ".join([*tokens[:-5], *"a b c d e f g h i".split()])  # near the second text only
    assert jaccard(first, second) >= SIMILARITY > jaccard(first, third) and jaccard(second, third) >= SIMILARITY
    assert duplicates([(1, first), (2, second), (3, third), (4, third)]) == {2: 1, 4: 3}
    assert duplicates([(2, second), (1, first), (3, third)]) == {1: 2, 3: 2}


def test_no_text_and_one_text():
    assert duplicates([]) == {} == duplicates([("a", DOG)])


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        duplicates([("a", DOG), ("b", "x"), ("a", "y")])


def test_all_planted_duplicates_are_detected_and_no_others():
    """Compared with the similarity of every pair: all pairs near the limit, above and below it."""
    rng = random.Random(0)
    texts, planted = [], {}
    for i in range(300):
        tokens = random_text(rng, rng.randint(30, 90))
        texts.append((f"{i}", " ".join(tokens)))
        for k in range(rng.randint(0, 3)):
            changed = list(tokens)
            for _ in range(rng.randint(0, 4)):
                changed[rng.randrange(len(tokens))] = "new"
            texts.append((f"{i}-{k}", " ".join(changed)))
    for i, (name, text) in enumerate(texts):
        for earlier, other in texts[:i]:
            if earlier not in planted and earlier.split("-")[0] == name.split("-")[0]:
                if jaccard(text, other) >= SIMILARITY:
                    planted[name] = earlier
                    break
    assert len(planted) > 100 and len(texts) - 300 - len(planted) > 100
    assert duplicates(texts) == planted


def test_the_limit_is_exact():
    """A changed word changes 3 of 90 shingles: with 3 changes, 81 of 99 are common; with 4, 78 of 102."""
    tokens = [f"w{i}" for i in range(92)]
    for changes, expected in ((3, True), (4, False)):
        changed = [f"new{i}" if i % 20 == 5 and i // 20 < changes else word for i, word in enumerate(tokens)]
        pair = [("a", " ".join(tokens)), ("b", " ".join(changed))]
        assert (jaccard(pair[0][1], pair[1][1]) >= SIMILARITY) is expected
        assert bool(duplicates(pair)) is expected


def test_many_texts_over_several_chunks():
    rng = np.random.default_rng(0)
    texts = [(i, " ".join(map(str, row))) for i, row in enumerate(rng.integers(0, 10_000, (9_000, 12)))]
    again = [(i + 9_000, text) for i, text in texts[::100]]
    assert duplicates(texts + again) == {i + 9_000: i for i, _ in texts[::100]}
