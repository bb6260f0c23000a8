from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution

from optuna_ext.moves.variation import Scale
from optuna_ext.space import from_unit
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from optuna_ext.moves.replay import SnapRow
    from optuna_ext.moves.variation import Snap
    from optuna_ext.space import UnitSpace


def column_snap(space: UnitSpace) -> Snap:
    """Return the function to the coordinate that a trial with the same value has.

    That is the center of a bin, where a column has values that can be counted.
    """
    distributions = [space.distributions[name] for name in space.names]

    def snap(column: int, u: float) -> float:
        if space.n_values[column] is None:
            return u
        return to_unit(distributions[column], from_unit(distributions[column], u))

    return snap


def row_snap(space: UnitSpace) -> SnapRow:
    """Return the function from a row to the row that stands for the same parameters.

    NaN stays NaN.
    """
    columns = [column for column, n in enumerate(space.n_values) if n is not None]
    snap = column_snap(space)

    def snap_row(row: np.ndarray) -> np.ndarray:
        snapped = row.copy()
        for column in columns:
            u = float(row[column])
            if u == u:
                snapped[column] = snap(column, u)
        return snapped

    return snap_row


def scale_of(distribution: BaseDistribution) -> Scale:
    """Return the values at both ends of an ordered column, bins and all (see UnitSpace)."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return Scale(low=0.0, high=1.0, log=False, nonnegative=False)  # choices in order
    low, high = distribution.low, distribution.high
    half_bin = (distribution.step or 0) / 2
    return Scale(
        low=low - half_bin, high=high + half_bin, log=distribution.log, nonnegative=low >= 0
    )
