"""The digests of the ids of sources, which tell other samples from the same ones."""

import dataclasses

import numpy as np
import pytest

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.combine import Concatenated, Subset, ids_of_sources


@dataclasses.dataclass
class Numbered:
    """Examples with the given ids; reading one fails."""

    ids: list

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("an example is read")

    def id_hashes(self) -> np.ndarray:
        return np.array([id_hash(i) for i in self.ids], np.int64)


class Unnumbered(Numbered):
    id_hashes = None

    def __getattribute__(self, name: str):
        if name == "id_hashes":
            raise AttributeError(name)
        return super().__getattribute__(name)


def digest_of(source) -> str:
    return ids_of_sources(["x"], source)["x"][1]


@pytest.mark.parametrize("other", [list("acb"), list("abd"), list("ab"), list("abcc")], ids="".join)
def test_digest_depends_on_ids_and_their_order(other):
    assert digest_of(Numbered(list("abc"))) == digest_of(Numbered(list("abc")))
    assert digest_of(Numbered(other)) != digest_of(Numbered(list("abc")))


def test_digest_of_a_split_is_that_of_its_part():
    whole = Numbered(list("abcd"))
    assert digest_of(Subset(whole, np.array([0, 2]))) == digest_of(Numbered(["a", "c"]))
    assert digest_of(Subset(whole, range(1, 4))) == digest_of(Numbered(list("bcd")))


def test_each_source_of_a_mixture_has_its_digest():
    a, b = Numbered(list("ab")), Numbered(["c"])
    expected = {"1": (2, digest_of(a)), "2": (1, digest_of(b))}
    assert ids_of_sources(["1", "2"], Concatenated([a, b])) == expected


def test_source_without_known_ids_is_not_read_for_a_digest():
    source = Unnumbered(list("abc"))
    for unknown in (source, Subset(source, range(3))):
        assert ids_of_sources(["x"], unknown) == {"x": (3, "")}
