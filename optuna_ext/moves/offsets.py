"""What a gradient is made of: the rows near a center, how far off and how good they are."""

from __future__ import annotations

import numpy as np

from optuna_ext.moves.history import History
from optuna_ext.moves.history import SAME


Levels = tuple[np.ndarray | None, ...]

_N_ROWS = 64  # the nearest ones, that a gradient is made of: a trial's cost must not grow
_CHOICE = 0.5  # offset of a choice: two different ones are as far apart as a parameter's ends


def offsets_to(
    rows: np.ndarray, center: np.ndarray, history: History, levels: Levels
) -> np.ndarray:
    """Return differences to the center, one column for each choice of an unordered parameter.

    A coordinate that a row or the center does not have makes no difference.
    """
    offsets = rows - center
    offsets[np.isnan(offsets)] = 0.0
    is_choice = [v is not None and not o for v, o in zip(levels, history.ordered, strict=True)]
    if not any(is_choice):
        return np.asarray(offsets)
    columns = [offsets[:, ~np.array(is_choice)]]
    for column in np.flatnonzero(is_choice).tolist():
        here, values = center[column], levels[column]
        there = np.where(np.isnan(rows[:, column]), here, rows[:, column])
        chosen = np.abs(there[:, None] - values) < SAME
        columns.append(_CHOICE * (chosen.astype(float) - (np.abs(here - values) < SAME)))
    return np.concatenate(columns, axis=1)


def nearest_rows(history: History, center: np.ndarray, levels: Levels) -> np.ndarray:
    """Return the indices of the rows nearest to a center, as many as are worth looking at."""
    if len(history) <= _N_ROWS:
        return np.arange(len(history))
    distances = np.zeros(len(history))
    for column, u in enumerate(center.tolist()):
        distance = np.abs(history.rows[:, column] - u)
        if levels[column] is not None and not history.ordered[column]:
            distance = 2.0 * _CHOICE * (distance > SAME)
        elif history.has_absent or u != u:
            distance = np.nan_to_num(distance)
        distances += distance
    return np.argpartition(distances, _N_ROWS)[:_N_ROWS]


def scores_of(history: History, indices: np.ndarray) -> np.ndarray:
    """Return the logarithm of the ranks of some rows: what is good is told apart finely.

    Ranks make the scale of the objective, outliers and infinities harmless. Equals share theirs.
    """
    ranking = history.ranking()
    values, ties = history.values[ranking], history.ties[ranking]
    is_first = np.full(len(values) + 1, True)  # of its equals, and behind the last one
    is_first[1:-1] = (values[1:] != values[:-1]) | (ties[1:] != ties[:-1])
    firsts = np.flatnonzero(is_first)
    places = np.empty(len(ranking), np.int64)
    places[ranking] = np.arange(len(ranking))
    group = np.searchsorted(firsts, places[indices], side="right") - 1
    return np.asarray(np.log((firsts[group] + firsts[group + 1] + 1) / 2))
