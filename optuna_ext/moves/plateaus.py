"""Plateaus: where an objective gives the very same value to different rows."""

from __future__ import annotations

import numpy as np

from optuna_ext.moves.history import SAME


def is_on_plateau(
    rows: np.ndarray, values: np.ndarray, index: int, n_values: tuple[int | None, ...]
) -> bool:
    """Tell whether a row has exactly the value of the row nearest to it.

    A smooth objective never does that, one that changes in jumps does it wherever a step was too
    short to tell anything. Integers and choices must be the same: other ones may well have equal
    values, if these are coarse, as accuracies are. Every continuous column must differ: a single
    one may not matter to the objective.

    Args:
        rows: Evaluated rows, shape ``(n, d)``.
        values: Their values, shape ``(n,)``.
        index: Index of the row in question.
        n_values: For each column the number of different values, None if continuous.
    """
    value = values[index]
    if np.count_nonzero(values == value) < 2 or not np.isfinite(value):
        return False
    offsets = np.abs(rows - rows[index])
    is_continuous = np.array([n is None for n in n_values])
    distances = np.nan_to_num(offsets[:, is_continuous]).max(axis=1, initial=0.0)
    is_beside = (distances > SAME) & ~(offsets[:, ~is_continuous] > SAME).any(axis=1)
    nearest = np.where(is_beside, distances, np.inf).argmin()
    has_moved = not (offsets[nearest, is_continuous] <= SAME).any()
    return bool(is_beside[nearest] and has_moved and values[nearest] == value)
