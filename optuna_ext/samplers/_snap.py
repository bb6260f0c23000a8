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

    That is the row which a trial with these parameters has, but for rounding: centers of bins,
    where values are few. NaN stays NaN.
    """
    few = [
        (column, space.distributions[name])
        for column, (name, n) in enumerate(zip(space.names, space.n_values, strict=True))
        if n is not None
    ]

    def snap(row: np.ndarray) -> np.ndarray:
        snapped = row.copy()
        for column, distribution in few:
            u = float(row[column])
            if u == u:
                snapped[column] = to_unit(distribution, from_unit(distribution, u))
        return snapped

    return snap


def scale_of(distribution: BaseDistribution) -> Scale:
    """Return the values at both ends of an ordered column, bins and all (see UnitSpace)."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return Scale(low=0.0, high=1.0, log=False, nonnegative=False)  # choices in order
    low, high = distribution.low, distribution.high
    half_bin = (distribution.step or 0) / 2
    return Scale(
        low=low - half_bin, high=high + half_bin, log=distribution.log, nonnegative=low >= 0
    )
