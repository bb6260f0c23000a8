"""How many random trainings would have found something as good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studies._curve_table import Floats


def random_equivalents(losses: Floats, found: Sequence[float]) -> float:
    """Return how many whole trainings rank on average as well as what searches found.

    The best of ``k`` configurations drawn at random is expected where ``1 / (k + 1)`` of all are
    better. Ranks rather than losses, as of a few searches the worst would decide alone.

    Args:
        losses: What every configuration of a table ends with.
        found: The best that each search has found, infinite for nothing.

    Returns:
        A number from 0 to twice the size of the table, which cannot tell more apart.
    """
    ordered = np.sort(losses)
    better, up_to = (np.searchsorted(ordered, found, side=side) for side in ("left", "right"))
    share = np.where(np.isinf(found), 1.0, (better + up_to) / (2 * len(ordered))).mean()
    return float(1 / share - 1)
