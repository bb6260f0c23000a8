"""How many random trainings would have found something as good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studies._curve_table import Floats


def random_equivalents(losses: Floats, found: Sequence[float]) -> float:
    """Return how many whole trainings find on average what searches found on average.

    The best of ``k`` configurations drawn with replacement is the one of rank ``i`` of ``n`` with
    the probability ``((n - i) / n)**k - ((n - i - 1) / n)**k``, which needs no whole ``k``.

    Args:
        losses: What every configuration of a table ends with.
        found: The best that each search has found, infinite for nothing.

    Returns:
        A number from 1 to 100 times the size of the table.
    """
    ordered = np.sort(losses)
    ordered = np.minimum(ordered, ordered[np.isfinite(ordered)].max())
    n = len(ordered)
    k = np.geomspace(1, 100 * n, 2000)
    none_better = (np.arange(n, -1, -1) / n) ** k[:, None]
    expected = -np.diff(none_better, axis=1) @ ordered  # falls with k
    mean = np.minimum(found, ordered[-1]).mean()
    return float(np.interp(-mean, -expected, k))
