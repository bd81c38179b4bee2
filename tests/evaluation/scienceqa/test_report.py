import numpy as np

from llava_jax.evaluation.scienceqa.report import PUBLISHED
from llava_jax.evaluation.scienceqa.score import COLUMNS

# The published human accuracies by grade do not match their average.
PARTS = {("NAT", "SOC", "LAN"): list(PUBLISHED), ("G1-6", "G7-12"): [name for name in PUBLISHED if name != "Human"]}


def test_published_rows_are_consistent():
    """Subjects and grades each partition the problems: one set of weights gives the average in every row."""
    for parts, names in PARTS.items():
        rows = [dict(zip(COLUMNS, PUBLISHED[name], strict=True)) for name in names]
        values, average = np.array([[row[part] for part in parts] for row in rows]), [row["Avg"] for row in rows]
        weights, *_ = np.linalg.lstsq(values, average)
        np.testing.assert_allclose(values @ weights, average, rtol=0, atol=0.02)
        assert abs(sum(weights) - 1) < 1e-3
