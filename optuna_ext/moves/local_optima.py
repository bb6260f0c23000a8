"""The places where a neighborhood search comes to rest, read off the evaluated rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optuna_ext.moves.history import differ_at_most_once
from optuna_ext.moves.history import History
from optuna_ext.moves.history import matches
from optuna_ext.moves.history import SAME
from optuna_ext.moves.neighborhood import Neighborhood
from optuna_ext.moves.neighborhood import polls
from optuna_ext.moves.repeats import averaged


@dataclass(frozen=True)
class Optimum:
    """A row that no neighbor beats.

    Attributes:
        number: Its trial's number, the first one's where evaluations were repeated.
        value: Its value, the mean where evaluations were repeated.
        step: The smallest step at which all its neighbors have been evaluated.
        n_trials: Trials until the last of them.
    """

    number: int
    value: float
    step: float
    n_trials: int


def local_optima(history: History, search: Neighborhood) -> list[Optimum]:
    """Return the rows whose neighbors have all been evaluated, best of their surroundings first.

    Surroundings are these neighbors and, where their step is not the finest possible, the rows
    within that step.
    """
    if search.n_repeats > 1:
        history, _ = averaged(history, search.n_repeats)
    optima = []
    ranking = history.ranking()
    for rank, index in enumerate(ranking):
        better = history.rows[ranking[:rank]]
        polled = _finest_poll(history, index, better, search)
        if polled is None:
            continue
        step, latest = polled
        distances = np.nan_to_num(np.abs(better - history.rows[index]))
        if not (distances <= _surroundings(history, index, step, search)).all(axis=1).any():
            optima.append(
                Optimum(
                    number=int(history.numbers[index]),
                    value=float(history.values[index]),
                    step=step,
                    n_trials=latest + 1,
                )
            )
    return optima


def _surroundings(history: History, index: int, step: float, search: Neighborhood) -> np.ndarray:
    """Return how far from a row in each column other rows are still part of its surroundings."""
    radius = np.full(len(search.levels), SAME)
    for column, (u, values) in enumerate(zip(history.rows[index], search.levels, strict=True)):
        if values is None:
            radius[column] = step
        elif history.ordered[column]:
            between = np.count_nonzero((values > u - step) & (values < u + step))
            radius[column] = step if between > 3 else SAME  # more than u and those beside it
    return radius


def _finest_poll(
    history: History, index: int, better: np.ndarray, search: Neighborhood
) -> tuple[float, int] | None:
    """Return the smallest step of a whole poll and its latest trial, if it was in vain."""
    center = history.rows[index]
    near = differ_at_most_once(history.rows, center)
    finest = None
    for step, neighbors in polls(center, search.initial_step, history, search):
        found = [near[matches(history.rows[near], row)] for row in neighbors]
        if all(len(rows) for rows in found):
            in_vain = not any(matches(better, row).any() for row in neighbors)
            latest = max(int(history.numbers[rows[0]]) for rows in (np.array([index]), *found))
            finest = (step, latest) if in_vain else None
    return finest
