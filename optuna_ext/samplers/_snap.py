from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution

from optuna_ext.moves.variation import Scale
from optuna_ext.space import from_unit
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.distributions import BaseDistribution

    from optuna_ext.space import UnitSpace


def snap_to(space: UnitSpace) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from a row to the row that stands for the same parameters.

    That is the row which a trial with these parameters has: centers of bins, where values are
    few. NaN stays NaN.
    """
    distributions = [space.distributions[name] for name in space.names]

    def snap(row: np.ndarray) -> np.ndarray:
        coordinates = zip(distributions, row.tolist(), strict=True)
        return np.array([u if u != u else to_unit(d, from_unit(d, u)) for d, u in coordinates])

    return snap


def scale_of(distribution: BaseDistribution) -> Scale:
    """Return the values at both ends of an ordered column, bins and all (see UnitSpace)."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return Scale(low=0.0, high=1.0, log=False, positive=False)  # choices in order
    low, high = distribution.low, distribution.high
    half_bin = (distribution.step or 0) / 2
    return Scale(low=low - half_bin, high=high + half_bin, log=distribution.log, positive=low > 0)
