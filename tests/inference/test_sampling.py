"""`choose` compared with a reference in numpy that handles one row at a time and follows the definitions."""

import jax
import numpy as np
import pytest

from llava_jax.inference.sampling import SamplingParams, choose
from tests.fixtures.decoding import compilations

V = 12
LOGITS = np.random.default_rng(0).normal(0, 1.5, (V,)).astype(np.float32)
DRAWS = 4000


def sampling(rows: int, temperature=1.0, top_k=0, top_p=1.0, seed=0, row=0) -> SamplingParams:
    full = lambda x, dtype: np.broadcast_to(np.asarray(x, dtype), rows)  # noqa: E731
    return SamplingParams(
        full(temperature, np.float32), full(top_k, np.int32), full(top_p, np.float32),
        full(seed, np.uint32), full(row, np.uint32),
    )  # fmt: skip


compiled = jax.jit(choose)


def draw(logits, positions=0, **settings) -> np.ndarray:
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    positions = np.broadcast_to(np.asarray(positions, np.int32), len(logits))
    return np.asarray(compiled(logits, sampling(len(logits), **settings), positions))


def reference(logits, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The distribution from which a row is sampled."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    candidates = order[: top_k or None]
    total, chosen = 0.0, []
    for i in candidates:
        if chosen and total >= top_p:
            break
        chosen.append(i)
        total += weights[i] / weights[candidates].sum()
    p = np.zeros(len(logits))
    p[chosen] = weights[chosen]
    return p / p.sum()


SETTINGS = [
    dict(),
    dict(temperature=0.5),
    dict(temperature=2.0),
    dict(top_k=3),
    dict(top_k=V + 5),
    dict(top_p=0.6),
    dict(top_p=0.05),
    dict(temperature=1.5, top_k=6, top_p=0.8),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_samples_follow_the_reference_distribution(settings):
    expected = reference(LOGITS, **settings)
    counts = np.bincount(draw(np.tile(LOGITS, (DRAWS, 1)), positions=np.arange(DRAWS), **settings), minlength=V)
    assert (counts[expected == 0] == 0).all(), "excluded tokens are never sampled"
    deviations = np.abs(counts / DRAWS - expected) / np.sqrt(expected * (1 - expected) / DRAWS + 1e-12)
    assert deviations[expected > 0].max() < 4.5  # standard deviations


def test_docstring_example():
    logits = np.log([0.5, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(reference(logits, top_k=3, top_p=0.6), [5 / 7, 2 / 7, 0, 0])
    sampled = draw(np.tile(logits, (500, 1)), positions=np.arange(500), top_k=3, top_p=0.6)
    assert set(sampled.tolist()) == {0, 1}


@pytest.mark.parametrize("settings", [dict(temperature=0.0), dict(top_k=1), dict(top_p=1e-6)], ids=str)
def test_greedy_settings_choose_the_argmax(settings):
    """Ties go to the lower id, as in argmax."""
    logits = np.random.default_rng(1).integers(0, 3, (300, V))
    np.testing.assert_array_equal(draw(logits, positions=np.arange(300), **settings), logits.argmax(axis=1))


def test_greedy_and_sampled_rows_share_a_batch():
    logits = np.tile(LOGITS, (400, 1))
    temperature = np.tile([0.0, 5.0], 200)
    sampled = draw(logits, positions=np.arange(400), temperature=temperature)
    assert (sampled[::2] == LOGITS.argmax()).all()
    assert len(set(sampled[1::2].tolist())) > V // 2


def test_samples_depend_only_on_seed_row_and_position():
    keys = [(seed, row, position) for seed in (0, 1, 2**32 - 1) for row in (0, 7) for position in range(40)]
    seed, row, position = np.array(keys).T
    logits = np.tile(LOGITS, (len(keys), 1))
    together = draw(logits, positions=position, temperature=3.0, seed=seed, row=row)
    backwards = draw(logits, positions=position[::-1], temperature=3.0, seed=seed[::-1], row=row[::-1])
    np.testing.assert_array_equal(together, backwards[::-1])
    others = np.random.default_rng(2).normal(size=logits.shape)
    others[5] = LOGITS
    among_others = draw(others, positions=position, temperature=3.0, seed=seed, row=row)
    assert among_others[5] == together[5]
    by_key = together.reshape(6, 40)
    assert len({tuple(line) for line in by_key.tolist()}) == 6, "each seed and row has its own random numbers"
    assert all(len(set(line)) > 3 for line in by_key.tolist()), "and so has each position"


def test_new_sampling_values_do_not_recompile():
    draw(LOGITS)
    with compilations() as compiled_names:
        for settings in SETTINGS:
            draw(LOGITS, **settings)
    assert not compiled_names


def test_extreme_logits_sample_without_nan():
    logits = np.array([[-1e30, 1e30, 1e30, -np.inf], [0, -np.inf, -np.inf, -np.inf]])
    for position in range(20):
        first, second = draw(logits, positions=position, temperature=1e-3, top_p=0.9)
        assert first in (1, 2) and second == 0
