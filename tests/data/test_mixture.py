"""The order of a mixture, and what a resumed run keeps when the mixture is changed."""

import dataclasses
import functools
import json
import pickle
from collections import Counter

import jax
import numpy as np
import pytest

from llava_jax.config import Data, Stage
from llava_jax.data.mixture import BLOCK, Mixture, MixtureComponent
from llava_jax.data.pipeline import Batches
from llava_jax.data.rows import Rows, SourceRow
from llava_jax.errors import ConfigError
from llava_jax.text.token_row import TokenRow
from llava_jax.train.dataset import StageData, data_state_of, resume_data, training_batches


class Named:
    """A source whose example i is (name, i)."""

    def __init__(self, name: str, length: int):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        return self.name, index


def part(name: str, length: int, weight: float) -> MixtureComponent:
    return MixtureComponent(name, Named(name, length), weight)


# grain's shuffle is slower for shorter sources: 0.5 ms per index at 70, 8 us from 65,536 on.
LENGTHS = {"a": 700, "b": 1000, "c": 500}
A, B, C = (part(name, LENGTHS[name], weight) for name, weight in (("a", 3.0), ("b", 1.0), ("c", 2.0)))


@functools.cache
def indices_alone(name: str) -> list[int]:
    """The first indices of a source outside of a mixture."""
    return indices_of(name, take(Mixture([part(name, LENGTHS[name], 1.0)], 3), range(9_600)))


@functools.cache
def examples_before() -> list[tuple[str, int]]:
    return take(Mixture([A, B], 3), range(BLOCK + 2001))


def take(mixture, positions) -> list[tuple[str, int]]:
    return [mixture[i] for i in positions]


def indices_of(name: str, examples) -> list[int]:
    return [index for source, index in examples if source == name]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((3, 1), (0.75, 0.25)), ((0.3, 0.1), (0.75, 0.25)), ((1, 1, 1), (1 / 3,) * 3), ((9999, 1), (0.9999, 0.0001))],
)
def test_each_block_matches_the_weights_to_one_example(weights, shares):
    mixture = Mixture([part(f"{i}", 70_000, w) for i, w in enumerate(weights)], 0)
    for block in range(2):
        counts = Counter(mixture.locate(block * BLOCK + i)[0] for i in range(BLOCK))
        for i, share in enumerate(shares):
            assert abs(counts[i] - share * BLOCK) <= 1


def test_sources_alternate_evenly_within_a_block():
    names = [name for name, _ in take(Mixture([A, B], 3), range(2000))]
    shares = [names[i : i + 200].count("a") / 200 for i in range(0, 2000, 200)]
    assert 0.6 < min(shares) and max(shares) < 0.9


def test_each_source_has_its_own_epochs_in_new_orders():
    small = [part("a", 70, 3.0), part("b", 500, 1.0)]
    indices = indices_of("a", take(Mixture(small, 5), range(400)))
    first, second, third = (indices[i : i + 70] for i in (0, 70, 140))
    assert sorted(first) == sorted(second) == sorted(third) == list(range(70))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(70))}) == 4
    block_end = BLOCK * 3 // 4 - 200  # of a, whose epochs continue across the end of a block
    indices = indices_of("a", examples_before())
    for epoch in range(block_end // 700, block_end // 700 + 2):
        assert sorted(indices[epoch * 700 : epoch * 700 + 700]) == list(range(700))


def test_any_position_is_computed_without_history():
    mixture = Mixture([A, B], 3)
    for i in (BLOCK + 2000, 0, BLOCK, BLOCK - 1, 17):
        assert mixture[i] == Mixture([A, B], 3)[i] == examples_before()[i] == pickle.loads(pickle.dumps(mixture))[i]


def test_order_depends_on_seed_and_names_alone():
    assert take(Mixture([A, B], 1), range(300)) == take(Mixture([B, A], 1), range(300))
    assert take(Mixture([A, B], 1), range(300)) != take(Mixture([A, B], 2), range(300))
    renamed = take(Mixture([MixtureComponent("z", A.source, 3.0), B], 1), range(300))
    assert indices_of("a", take(Mixture([A, B], 1), range(300))) != indices_of("a", renamed)


def test_order_is_the_same_in_every_version():
    """A checkpoint of today must resume at the same position with later versions, also of numpy."""
    assert take(Mixture([A, B], 7), [0, 1, 2, 3, 9_999, 10_000, 123_456]) == GOLDEN


GOLDEN = [("a", 462), ("b", 911), ("a", 116), ("a", 54), ("a", 651), ("b", 3), ("a", 181)]

CHANGES = {
    "a new source": [A, B, C],
    "another weight": [A, MixtureComponent("b", B.source, 2.5)],
    "one removed": [B],
    "one replaced": [A, C],
}


@pytest.mark.parametrize("position", [0, 1, 137, BLOCK, BLOCK + 2001])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_mixture_resumes_each_source_at_its_position(change, position):
    state = json.loads(json.dumps(Mixture([A, B], 3).state(), sort_keys=True))
    changed = Mixture(CHANGES[change], 3).resumed(state, position)
    rest = take(changed, range(position, position + 300))
    for name in {name for name, _ in rest}:
        indices = indices_of(name, examples_before()[:position]) + indices_of(name, rest)
        assert indices == indices_alone(name)[: len(indices)] and len(indices_of(name, rest)) > 30
    assert {name for name, _ in rest} == {part.name for part in CHANGES[change]}


def test_unchanged_mixture_resumes_identically_at_any_position():
    for position in (0, 1, 500):
        resumed = Mixture([B, A], 3).resumed(json.loads(json.dumps(Mixture([A, B], 3).state())), position)
        assert take(resumed, range(900)) == examples_before()[:900]


def test_source_that_was_removed_and_added_again_resumes():
    first = Mixture([A, B], 3)
    second = Mixture([B], 3).resumed(first.state(), 200)
    third = Mixture([A, B], 3).resumed(json.loads(json.dumps(second.state())), 300)
    examples = take(first, range(200)) + take(second, range(200, 300)) + take(third, range(300, 700))
    for name in "ab":
        assert indices_of(name, examples) == indices_alone(name)[: len(indices_of(name, examples))]
    resumed = Mixture([A, B], 3).resumed(third.state(), 650)
    assert take(resumed, range(650, 700)) == examples[650:]
    with pytest.raises(IndexError, match="position 299 is outside of this mixture, which has 300 to"):
        third[299]


def test_source_packed_differently_is_refused_even_after_removal():
    packed = dataclasses.replace(A, contents="1f")
    state = json.loads(json.dumps(Mixture([packed, B], 3).state()))
    assert Mixture([B, packed, C], 3).resumed(state, 10).state()["contents"] == {"a": "1f", "b": "", "c": ""}
    with pytest.raises(ConfigError, match="a is packed differently than before"):
        Mixture([A, B], 3).resumed(state, 10)
    without = Mixture([B], 3).resumed(state, 10).state()
    with pytest.raises(ConfigError, match="a is packed differently than before"):
        Mixture([dataclasses.replace(A, contents="2f"), B], 3).resumed(without, 20)


def test_source_of_another_length_is_refused_even_after_removal():
    state = Mixture([A, B], 3).state()
    with pytest.raises(ConfigError, match="a had 700 examples, now it has 701. Restore it"):
        Mixture([part("a", 701, 1.0), B], 3).resumed(state, 10)
    without = Mixture([B], 3).resumed(state, 10).state()
    with pytest.raises(ConfigError, match="a had 700 examples, now it has 701. Restore it"):
        Mixture([part("a", 701, 1.0), B], 3).resumed(without, 20)


@pytest.mark.parametrize(
    ("parts", "message"),
    [([], "needs sources"), ([A, A], "duplicates: a"), ([A, part("b", 9, 0.0)], "must be positive"),
     ([part("a", 9, float("nan"))], "must be positive"), ([part("a", 9, float("inf"))], "must be positive"),
     ([A, part("b", 9, 1e-5)], "the weight of b is below 1/10000")],
)  # fmt: skip
def test_invalid_mixtures_are_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(parts, 0)


# --- in batches ------------------------------------------------------------


class Numbers(Rows):
    def row(self, index, length=None) -> SourceRow:
        name, i = self.groups[index] if self.groups else self.source[index]
        return SourceRow(TokenRow(np.array([ord(name) * 10_000 + i]), *[np.zeros(1)] * 4))


STAGE = Stage(data=Data(threads=2), batch=8, steps=99)


def data_of(parts) -> StageData:
    return StageData(Numbers(None, None, groups=Mixture(parts, 3)), None, [], 99, 99)


def batches(parts, data_state=None) -> tuple[Batches, StageData]:
    """Those of a run, from the start or from where another one was."""
    data = data_of(parts) if data_state is None else resume_data(data_of(parts), data_state)
    stream = training_batches(STAGE, data, 3)
    if data_state is not None:
        stream.set_state({name: value for name, value in data_state.items() if name != "mixture"})
    return stream, data


def next_batches(stream, count: int) -> list[list[int]]:
    tokens = [next(stream)[0].tokens[:, 0].tolist() for _ in range(count)]
    stream.close()
    return tokens


def test_batches_of_a_mixture_resume_exactly_also_after_a_change():
    whole = next_batches(batches([A, B])[0], 40)
    stream, data = batches([A, B])
    for _ in range(15):
        next(stream)
    data_state = json.loads(json.dumps(data_state_of(data, stream)))
    stream.close()
    assert next_batches(batches([A, B], data_state)[0], 25) == whole[15:]

    changed, data = batches([A, B, C], data_state)
    rest = [next(changed)[0].tokens[:, 0].tolist() for _ in range(12)]
    flat = [t for batch in whole[:15] + rest for t in batch if t // 10_000 == ord("a")]
    assert [t % 10_000 for t in flat] == indices_alone("a")[: len(flat)] and len(flat) > 120
    assert any(t // 10_000 == ord("c") for batch in rest for t in batch)
    changed.close()
    resumed, _ = batches([A, B, C], data_state_of(data, changed))
    assert len(next_batches(resumed, 1)[0]) == 8


def test_states_of_mixture_and_single_source_are_not_interchangeable():
    mixed, data = batches([A, B])
    single = dataclasses.replace(data, train=Numbers(A.source, None))
    data_state = data_state_of(single, training_batches(STAGE, single, 3))
    with pytest.raises(ConfigError, match="examples was 700, is 2147483647"):
        batches([A, B], data_state)
    with pytest.raises(ConfigError, match="examples was 2147483647, is 700"):
        training_batches(STAGE, single, 3).set_state(
            {name: value for name, value in data_state_of(data, mixed).items() if name != "mixture"}
        )


def test_two_processes_share_the_batches_of_one(monkeypatch):
    whole, parts = next_batches(batches([A, B])[0], 5), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for i in range(2):
        monkeypatch.setattr(jax, "process_index", lambda i=i: i)
        parts.append(next_batches(batches([A, B])[0], 5))
    assert [sum(both, []) for both in zip(*parts, strict=True)] == whole
