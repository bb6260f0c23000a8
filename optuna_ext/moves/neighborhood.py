"""Neighborhood search: look at the neighbors of the best point, in the order of promise.

A poll of a center consists of the rows that differ from it in one coordinate: by a step up or
down where values have an order, by any other value where they have none. Nothing is remembered:
centers and steps follow from the evaluated rows (Mahto and Chauhan; the convergence theory is
that of pattern search, Torczon 1997, SIAM J. Optim. 7(1)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import get_args
from typing import Literal

import numpy as np

from optuna_ext.moves.gradients import Gradient
from optuna_ext.moves.gradients import predict
from optuna_ext.moves.history import History
from optuna_ext.moves.history import SAME
from optuna_ext.moves.turns import whose_turn


PollKind = Literal["opportunistic", "complete"]
POLLS: tuple[PollKind, ...] = get_args(PollKind)
Levels = tuple[np.ndarray | None, ...]

_LAST = np.nextafter(1.0, 0.0)
_N_BOLD = 2  # trials after a success that may go in several coordinates at once
_MAX_CENTERS = 32  # polled through in vain before a point anywhere is taken
_N_ANYWHERE = 64  # such points tried
_CHOICE = 0.5  # offset of a choice: two different ones are as far apart as a parameter's ends


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """How to search a neighborhood.

    Attributes:
        levels: For each column the coordinates of all its values, increasing, or None where they
            are too many.
        gradient: How to order a poll; see :func:`~optuna_ext.moves.gradients.predict`.
        poll: ``"opportunistic"`` moves the center at the first improvement, ``"complete"`` when
            the poll is over.
        initial_step: First step, as a share of each parameter's range.
        min_step: Smallest step where there are no levels.
        n_repeats: How many evaluations of the best row are averaged before it is believed.
    """

    levels: Levels
    gradient: Gradient = "ridge"
    poll: PollKind = "opportunistic"
    initial_step: float = 0.25
    min_step: float = 2.0**-12
    n_repeats: int = 1


def next_row(history: History, search: Neighborhood, rng: np.random.Generator) -> np.ndarray:
    """Return the row to evaluate next.

    Args:
        history: At least one evaluated row.
        search: How to search.
        rng: Source of what is left to chance: the order of equally promising neighbors, and
            whether to stay where nothing improves.

    Returns:
        Array of shape ``(d,)``: a row that is not taken, or one that is to be repeated. NaN
        where no row has the coordinate; all NaN if no row has a finite value, or none was found
        that is not taken.
    """
    if search.n_repeats > 1:
        history, repeat = averaged(history, search.n_repeats)
        if repeat is not None:
            return history.inherit(repeat)
    ranking = history.ranking()
    if not np.isfinite(history.values[ranking[0]]):  # nothing to start from yet
        return np.full(history.rows.shape[1], np.nan)
    known = _known(history)
    first = ranking[0]  # a complete poll is not left before it is over
    if search.poll == "opportunistic":
        first = whose_turn(history, ranking, search.initial_step, rng)
    for index in (first, *ranking[:_MAX_CENTERS]):
        row = _neighbor(history, ranking, index, known, search, rng)
        if row is not None:
            return row
    for _ in range(_N_ANYWHERE):
        row = _snap(rng.random((history.rows.shape[1],)), search.levels)
        if not history.is_taken(row):
            return row
    return np.full(history.rows.shape[1], np.nan)


def poll(center: np.ndarray, step: float, history: History, levels: Levels) -> np.ndarray:
    """Return the neighbors of a row.

    Args:
        center: Row of shape ``(d,)``; a coordinate that is NaN is left alone.
        step: Distance, as a share of each parameter's range. With levels the nearest to it, at
            least one level off. Neighbors do not leave the unit cube.
        history: Tells which columns are ordered.
        levels: For each column its values, or None.

    Returns:
        Array of shape ``(m, d)``.
    """
    neighbors = []
    for column, u in enumerate(center):
        if np.isnan(u):
            continue
        values = levels[column]
        if values is None:
            around = np.array([max(u - step, 0.0), min(u + step, _LAST)])
        elif history.ordered[column]:
            here = int(np.abs(values - u).argmin())
            lower = min(int(np.abs(values - (u - step)).argmin()), here - 1)
            upper = max(int(np.abs(values - (u + step)).argmin()), here + 1)
            around = values[[i for i in (lower, upper) if 0 <= i < len(values)]]
        else:
            around = values
        for value in around[np.abs(around - u) > SAME]:
            neighbors.append(center.copy())
            neighbors[-1][column] = value
    return np.array(neighbors).reshape(len(neighbors), len(center))


def polls(
    center: np.ndarray, step: float, history: History, search: Neighborhood
) -> Iterator[tuple[float, np.ndarray]]:
    """Give the polls of a center with the step halved each time, as long as that changes them."""
    previous = None
    while step >= search.min_step:
        neighbors = poll(center, step, history, search.levels)
        if previous is not None and np.array_equal(neighbors, previous):
            return
        yield step, neighbors
        previous = neighbors
        step /= 2


def _neighbor(
    history: History,
    ranking: np.ndarray,
    index: int,
    known: np.ndarray,
    search: Neighborhood,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Return the next row of the polls around a center, None if they are all over."""
    step = _first_step(history, ranking, index, search)
    if search.poll == "complete":
        index, step = _unfinished(history, ranking, index, search) or (index, step)
    center = _center(history, index, search)
    place = center.tobytes(), step
    if place in history.exhausted:
        return None
    near = differ_at_most_once(known, center)
    candidates = _untried(center, step, known[near], history, search)
    if len(candidates):
        return _choose(history, ranking, index, center, candidates, search, rng)
    if not near[len(history) :].any():  # a row that is on its way may fail
        history.exhausted.add(place)
    return None


def _untried(
    center: np.ndarray, step: float, known: np.ndarray, history: History, search: Neighborhood
) -> np.ndarray:
    """Return the neighbors to try next: those of the largest step that has any.

    An axis on which that step has failed on both sides is ahead of the others, by one halving:
    small gains along flat axes must not keep the steps along a steep one long.
    """
    found = np.empty((0, len(center)))
    for _, neighbors in polls(center, step, history, search):
        fresh = _not_among(known, neighbors)
        if len(found):
            ahead = ~(np.abs(found - center) > SAME).any(axis=0)
            fresh = fresh[(np.abs(fresh - center) > SAME)[:, ahead].any(axis=1)]
            return np.concatenate([found, fresh])
        found = fresh
        if len(found) and search.poll == "complete":
            break
    return found


def _choose(
    history: History,
    ranking: np.ndarray,
    index: int,
    center: np.ndarray,
    candidates: np.ndarray,
    search: Neighborhood,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the most promising of the candidates and, after a success, of bolder ones."""
    offsets = _offsets(history.rows, center, history, search.levels)
    scores = _scores(history.values, history.ties)
    heights = scores - scores[index]

    def expect(rows: np.ndarray) -> np.ndarray:
        there = _offsets(rows, center, history, search.levels)
        return predict(search.gradient, offsets, heights, there)

    expected = expect(candidates)
    n_since = len(history) - 1 - index + len(history.pending)
    if n_since < _N_BOLD and search.poll == "opportunistic":
        here = expect(center[None])[0]
        bold = [
            *_joint(center, candidates, expected - here),
            *_speculative(history, ranking, index, center, search.levels),
        ]
        bold_rows = np.array(bold).reshape(len(bold), len(center))
        bold_rows = _not_among(_known(history), bold_rows)
        if len(bold_rows):
            candidates = np.concatenate([candidates, bold_rows])
            # Without a gradient the last successful direction is all there is to go by.
            bonus = -1.0 if search.gradient == "none" else 0.0
            expected = np.concatenate([expected, expect(bold_rows) + bonus])
    ties = rng.permutation(len(candidates))
    return np.asarray(candidates[np.lexsort((ties, expected))[0]])


def _joint(center: np.ndarray, candidates: np.ndarray, gains: np.ndarray) -> list[np.ndarray]:
    """Return the center moved along the 2, 3, ... coordinates that promise most, at once."""
    best: dict[int, int] = {}
    for candidate in np.argsort(gains, kind="stable"):
        if gains[candidate] < 0:
            column = int(np.flatnonzero(np.abs(candidates[candidate] - center) > SAME)[0])
            best.setdefault(column, int(candidate))
    rows = []
    row = center
    for column, candidate in best.items():
        row = row.copy()
        row[column] = candidates[candidate, column]
        rows.append(row)
    return rows[1:]  # the first one is in the poll


def _speculative(
    history: History, ranking: np.ndarray, index: int, center: np.ndarray, levels: Levels
) -> list[np.ndarray]:
    """Return the center moved on by the step that led to it, once and twice as far."""
    previous = _previous(ranking, index)
    if previous is None:
        return []
    move = center - history.rows[previous]
    move[np.isnan(move) | ~np.array(history.ordered)] = 0.0
    return [_snap(center + factor * move, levels) for factor in (1, 2)]


def _first_step(history: History, ranking: np.ndarray, index: int, search: Neighborhood) -> float:
    """Return the length of the move that led to the center: what has just worked."""
    previous = _previous(ranking, index)
    if previous is None:
        return search.initial_step
    moves = np.abs(history.rows[index] - history.rows[previous])[np.array(history.ordered)]
    longest = np.max(moves[~np.isnan(moves)], initial=0.0)
    if longest < search.min_step:
        return search.initial_step
    return min(search.initial_step, float(longest))


def _previous(ranking: np.ndarray, index: int) -> int | None:
    """Return the best row before ``index``: the center that it was an improvement on."""
    older = ranking[ranking < index]
    return int(older[0]) if len(older) else None


def _unfinished(
    history: History, ranking: np.ndarray, index: int, search: Neighborhood
) -> tuple[int, float] | None:
    """Return center and step of the poll in which ``index`` was found, if not yet over.

    It is the earliest of the latest record rows that has both the next record and ``index``
    among its neighbors at one distance.
    """
    records = [index]
    while len(records) <= 2 * history.rows.shape[1]:
        older = _previous(ranking, records[-1])
        if older is None:
            break
        records.append(older)
    for record, following in zip(records[:0:-1], records[-2::-1], strict=True):
        step = _axis_distance(history.rows[record], history.rows[following])
        if step is None or _axis_distance(history.rows[record], history.rows[index]) is None:
            continue
        center = _center(history, record, search)
        neighbors = poll(center, step, history, search.levels)
        was_polled = matches(neighbors, history.rows[index]).any()
        if was_polled and len(_not_among(_known(history), neighbors)):
            return record, step
    return None


def _axis_distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the distance of two rows that differ in one coordinate only."""
    distances = np.nan_to_num(np.abs(a - b))
    return float(distances.max()) if np.count_nonzero(distances > SAME) == 1 else None


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


def _center(history: History, index: int, search: Neighborhood) -> np.ndarray:
    """Return a row on its levels, with coordinates for the parameters that it did not have."""
    return _snap(history.inherit(history.rows[index]), search.levels)


def _snap(row: np.ndarray, levels: Levels) -> np.ndarray:
    row = np.clip(row, 0.0, _LAST)
    for column, values in enumerate(levels):
        if values is not None and not np.isnan(row[column]):
            row[column] = values[np.abs(values - row[column]).argmin()]
    return row


def _known(history: History) -> np.ndarray:
    """Return the rows that are evaluated or on their way."""
    planned = ~np.isnan(history.pending).all(axis=1)
    return np.concatenate([history.rows, history.pending[planned]])


def _not_among(known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return those of ``rows`` that agree with none of the known rows."""
    differ = (np.abs(known[:, None] - rows[None]) > SAME).any(axis=2)
    return np.asarray(rows[differ.all(axis=0)])


def differ_at_most_once(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Tell which rows have at most one coordinate that differs, absent ones aside."""
    return np.asarray(np.count_nonzero(np.abs(rows - center) > SAME, axis=1) <= 1)


def matches(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Tell which rows agree with ``row`` in every coordinate that they have."""
    return np.asarray(~(np.abs(rows - row) > SAME).any(axis=1))


def _offsets(rows: np.ndarray, center: np.ndarray, history: History, levels: Levels) -> np.ndarray:
    """Return differences to the center, one column for each choice of an unordered parameter.

    A coordinate that a row or the center does not have makes no difference.
    """
    columns = []
    for column, u in enumerate(center):
        there = np.where(np.isnan(rows[:, column]), u, rows[:, column])
        values = levels[column]
        if values is None or history.ordered[column]:
            columns.append(np.nan_to_num(there - u)[:, None])
        else:
            chosen = np.abs(there[:, None] - values) < SAME
            columns.append(_CHOICE * (chosen.astype(float) - (np.abs(u - values) < SAME)))
    return np.concatenate(columns, axis=1)


def _scores(values: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Return the logarithm of each row's rank, standardized: what is good is told apart finely.

    Ranks make the scale of the objective, outliers and infinities harmless.
    """
    order = np.lexsort((ties, values))
    values, ties = values[order], ties[order]
    changes = (values[1:] != values[:-1]) | (ties[1:] != ties[:-1])
    group = np.concatenate([[0], np.cumsum(changes)])
    counts = np.bincount(group)
    middle = np.cumsum(counts) - (counts - 1) / 2
    scores = np.empty(len(values))
    scores[order] = np.log(middle[group])
    return np.asarray((scores - scores.mean()) / max(scores.std(), SAME))
