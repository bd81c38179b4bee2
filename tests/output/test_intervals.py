import math

import pytest

from llava_jax.output.intervals import mcnemar, wilson


@pytest.mark.parametrize("correct, count", [(0, 10), (10, 10), (1, 1), (3855, 4241), (7, 30)])
def test_wilson_interval_inverts_the_score_test(correct, count):
    """Its ends are the shares p with |correct/count - p| = z sqrt(p (1-p) / count)."""
    low, high = (end / 100 for end in wilson(correct, count))
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = abs(correct / count - end) / math.sqrt(end * (1 - end) / count)
            assert z == pytest.approx(1.96, abs=1e-4)
    assert (low < 1e-9) == (correct == 0) and (high > 1 - 1e-9) == (correct == count) and 0 <= low < high <= 1


def test_zero_count_has_no_interval():
    assert wilson(0, 0) is None


@pytest.mark.parametrize("first, second, p", [(0, 0, 1), (5, 5, 1), (1, 0, 1), (0, 6, 2 / 64), (1, 9, 22 / 1024)])
def test_mcnemar_equals_the_binomial_test(first, second, p):
    assert mcnemar(first, second) == mcnemar(second, first) == p


def test_mcnemar_of_thousands_is_exact_and_finite():
    assert 0 < mcnemar(1500, 2700) < 1e-70
