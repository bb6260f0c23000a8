from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_ext.space import from_unit
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from collections.abc import Callable

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
