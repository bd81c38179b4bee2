"""Statistics of accuracies: a confidence interval for one, a paired test for two on the same questions."""

import math
from fractions import Fraction

Z = 1.959963984540054  # 95% of a normal distribution lie between -Z and Z


def wilson(correct: int, count: int) -> tuple[float, float] | None:
    """The 95% score interval of a proportion (Wilson 1927), in percent; None if `count` is 0.

    >>> [round(end, 2) for end in wilson(156, 181)]
    [80.41, 90.47]
    """
    if count == 0:
        return None
    share, z2 = correct / count, Z * Z
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    margin = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return 100 * max(0.0, center - margin), 100 * min(1.0, center + margin)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test; each count: questions that only this model answers correctly.

    >>> mcnemar(1, 9)
    0.021484375
    """
    flips = only_first + only_second
    tail = sum(math.comb(flips, k) for k in range(min(only_first, only_second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**flips)))
