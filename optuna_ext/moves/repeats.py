"""Repeated evaluations of a row, for objectives with noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optuna_ext.moves.history import History
from optuna_ext.moves.history import matches


def averaged(history: History, n_repeats: int) -> tuple[History, np.ndarray | None]:
    """Return the history with repeated rows averaged, and the best row if it needs repeating."""
    _, first, inverse, counts = np.unique(
        np.round(history.rows, 9),
        axis=0,
        return_index=True,
        return_inverse=True,
        return_counts=True,
        equal_nan=True,
    )
    order = np.argsort(first)
    sums = [np.bincount(inverse.ravel(), y) for y in (history.values, history.ties)]
    averaged = replace(
        history,
        rows=history.rows[first[order]],
        values=(sums[0] / counts)[order],
        ties=(sums[1] / counts)[order],
        numbers=history.numbers[first[order]],
        order=None,
        lineage=None,
    )
    best = averaged.ranking()[0]
    row = averaged.rows[best]
    n_known = counts[order][best] + np.count_nonzero(matches(history.pending, row))
    return averaged, row if n_known < n_repeats else None
