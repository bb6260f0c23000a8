"""Neighborhood search: look at the neighbors of the best point, in the order of promise.

A poll of a center consists of the rows that differ from it in one coordinate: by a step up or
down where values have an order, by any other value where they have none. Nothing is remembered:
centers and steps follow from the evaluated rows (Mahto and Chauhan; the convergence theory is
that of pattern search, Torczon 1997, SIAM J. Optim. 7(1)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args
from typing import Literal

import numpy as np

from optuna_ext.moves.gradients import Gradient
from optuna_ext.moves.gradients import predict
from optuna_ext.moves.history import agreeing
from optuna_ext.moves.history import differ_at_most_once
from optuna_ext.moves.history import History
from optuna_ext.moves.history import matches
from optuna_ext.moves.history import SAME
from optuna_ext.moves.offsets import nearest_rows
from optuna_ext.moves.offsets import offsets_to
from optuna_ext.moves.offsets import scores_of
from optuna_ext.moves.quadratic import minimizer
from optuna_ext.moves.repeats import averaged
from optuna_ext.moves.turns import whose_turn
from optuna_ext.moves.variation import Snap


PollKind = Literal["opportunistic", "complete"]
POLLS: tuple[PollKind, ...] = get_args(PollKind)
Levels = tuple[np.ndarray | None, ...]

_LAST = np.nextafter(1.0, 0.0)
_N_BOLD = 2  # trials after a success that may go in several coordinates at once
_MODEL_EVERY = 3  # trials, one goes to the minimizer of a quadratic model
_MAX_MODELED = 6  # dimensions of that model: it needs (d + 1) (d + 2) / 2 rows
_APART = 0.05  # steps, at least, of that minimizer from any other row
_MAX_CENTERS = 32  # polled through in vain before a point anywhere is taken
_N_ANYWHERE = 64  # such points tried


def _as_it_is(column: int, u: float) -> float:
    del column
    return u


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """How to search a neighborhood.

    Attributes:
        levels: For each column the coordinates of all its values, increasing, or None where they
            are too many.
        snap: Gives the coordinate of the nearest value of a column without levels. The default is
            for continuous columns.
        gradient: How to order a poll; see :func:`~optuna_ext.moves.gradients.predict`.
        poll: ``"opportunistic"`` moves the center at the first improvement, ``"complete"`` when
            the poll is over.
        initial_step: First step, as a share of each parameter's range.
        min_step: Smallest step where there are no levels.
        n_repeats: How many evaluations of the best row are averaged before it is believed.
    """

    levels: Levels
    snap: Snap = _as_it_is
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
    first = ranking[0]  # a complete poll is not left before it is over
    if search.poll == "opportunistic":
        first = whose_turn(history, ranking, search.initial_step, rng)
    for index in (first, *ranking[:_MAX_CENTERS]):
        row = _neighbor(history, ranking, int(index), search, rng)
        if row is not None:
            return row
    for _ in range(_N_ANYWHERE):
        row = _snap(rng.random((history.rows.shape[1],)), search)
        if not history.is_taken(row):
            return row
    return np.full(history.rows.shape[1], np.nan)


def poll(center: np.ndarray, step: float, history: History, search: Neighborhood) -> np.ndarray:
    """Return the neighbors of a row.

    Args:
        center: Row of shape ``(d,)``; a coordinate that is NaN is left alone.
        step: Distance, as a share of each parameter's range. With levels the nearest to it, at
            least one level off. Neighbors do not leave the unit cube.
        history: Tells which columns are ordered.
        search: Tells which values each column has.

    Returns:
        Array of shape ``(m, d)``.
    """
    columns: list[int] = []
    coordinates: list[float] = []
    for column, u in enumerate(center.tolist()):
        if u != u:
            continue
        values = search.levels[column]
        if values is None:
            ends = max(u - step, 0.0), min(u + step, _LAST)
            around = [search.snap(column, v) for v in ends]
        elif history.ordered[column]:
            here = int(np.abs(values - u).argmin())
            lower = min(int(np.abs(values - (u - step)).argmin()), here - 1)
            upper = max(int(np.abs(values - (u + step)).argmin()), here + 1)
            around = [float(values[i]) for i in (lower, upper) if 0 <= i < len(values)]
        else:
            around = values.tolist()
        around = [v for v in around if abs(v - u) > SAME]
        columns += [column] * len(around)
        coordinates += around
    neighbors = np.empty((len(columns), len(center)))
    neighbors[:] = center
    neighbors[np.arange(len(columns)), columns] = coordinates
    return neighbors


def polls(
    center: np.ndarray, step: float, history: History, search: Neighborhood
) -> Iterator[tuple[float, np.ndarray]]:
    """Give the polls of a center with the step halved each time, as long as that changes them."""
    previous = None
    while step >= search.min_step:
        neighbors = poll(center, step, history, search)
        if not len(neighbors) or (previous is not None and np.array_equal(neighbors, previous)):
            return
        yield step, neighbors
        previous = neighbors
        step /= 2


def _neighbor(
    history: History,
    ranking: np.ndarray,
    index: int,
    search: Neighborhood,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Return the next row of the polls around a center, None if they are all over."""
    if history.lineage is not None and index in history.lineage.exhausted:
        return None
    step = _first_step(history, ranking, index, search)
    if search.poll == "complete":
        index, step = _unfinished(history, ranking, index, search) or (index, step)
    center = _center(history, index, search)
    place = center.tobytes(), step
    step = history.polled.get(place, step)
    if step > 0:
        under_way = history.planned[differ_at_most_once(history.planned, center)]
        evaluated = history.rows[differ_at_most_once(history.rows, center)]
        near = np.concatenate([evaluated, under_way])
        candidates, step = _untried(center, step, near, history, search)
        if not len(under_way):  # a row that is on its way may fail
            history.polled[place] = step
        if len(candidates):
            modeled = _modeled(history, index, center, step, search)
            if modeled is not None:
                return modeled
            return _choose(history, ranking, index, center, candidates, search, rng)
        if len(under_way):
            return None
    # Without an absent coordinate, center and step are the same for ever.
    if history.lineage is not None and search.poll == "opportunistic" and not history.has_absent:
        history.lineage.exhausted.add(index)
    return None


def _untried(
    center: np.ndarray, step: float, near: np.ndarray, history: History, search: Neighborhood
) -> tuple[np.ndarray, float]:
    """Return the neighbors to try next, those of the largest step that has any, and that step.

    An axis on which that step has failed on both sides is ahead of the others, by one halving:
    small gains along flat axes must not keep the steps along a steep one long.
    """
    found, found_at = np.empty((0, len(center))), 0.0
    for smaller, neighbors in polls(center, step, history, search):
        fresh = _not_among(near, neighbors)
        if len(found):
            ahead = ~(np.abs(found - center) > SAME).any(axis=0)
            fresh = fresh[(np.abs(fresh - center) > SAME)[:, ahead].any(axis=1)]
            return np.concatenate([found, fresh]), found_at
        if len(fresh):
            found, found_at = fresh, smaller
            if search.poll == "complete":
                break
    return found, found_at


def _modeled(
    history: History, index: int, center: np.ndarray, step: float, search: Neighborhood
) -> np.ndarray | None:
    """Return the minimizer of a quadratic model around the center, if it is its turn.

    Steps along the axes are slow in a narrow valley. While the mesh is being refined in a few
    continuous dimensions, every third trial goes where the curvature leads.
    """
    n_since = len(history) - 1 - index + len(history.pending)
    is_its_turn = n_since % _MODEL_EVERY == 0 and step < search.initial_step
    if not is_its_turn or search.gradient == "none" or search.poll == "complete":
        return None
    if (
        len(center) > _MAX_MODELED
        or history.has_absent
        or any(v is not None for v in search.levels)
    ):
        return None
    nearest = nearest_rows(history, center, search.levels)
    move = minimizer(history.rows[nearest] - center, history.values[nearest], 2.0 * step)
    if move is None:
        return None
    row = _snap(center + move, search)
    known = np.concatenate([history.rows, history.planned])
    is_new = (np.abs(known - row) > _APART * step).any(axis=1).all()
    return row if is_new else None


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
    nearest = nearest_rows(history, center, search.levels)
    offsets = offsets_to(history.rows[nearest], center, history, search.levels)
    scores = scores_of(history, np.append(nearest, index))
    heights = scores[:-1] - scores[-1]

    def expect(rows: np.ndarray) -> np.ndarray:
        there = offsets_to(rows, center, history, search.levels)
        return predict(search.gradient, offsets, heights, there)

    n_since = len(history) - 1 - index + len(history.pending)
    if n_since >= _N_BOLD or search.poll == "complete":
        expected = expect(candidates)
    else:
        expected = expect(np.concatenate([candidates, center[None]]))
        expected, here = expected[:-1], expected[-1]
        bold = [
            *_joint(center, candidates, expected - here),
            *_speculative(history, ranking, index, center, search),
        ]
        bold = [
            row
            for row in bold
            if not any(len(agreeing(rows, row)) for rows in (history.rows, history.planned))
        ]
        if bold:
            bold_rows = np.array(bold)
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
    history: History, ranking: np.ndarray, index: int, center: np.ndarray, search: Neighborhood
) -> list[np.ndarray]:
    """Return the center moved on by the step that led to it, once and twice as far."""
    previous = _previous(ranking, index)
    if previous is None:
        return []
    move = center - history.rows[previous]
    move[np.isnan(move) | ~np.array(history.ordered)] = 0.0
    return [_snap(center + factor * move, search) for factor in (1, 2)]


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
    return int(ranking[(ranking < index).argmax()]) if index else None


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
        neighbors = poll(center, step, history, search)
        was_polled = matches(neighbors, history.rows[index]).any()
        if was_polled and len(
            _not_among(np.concatenate([history.rows, history.planned]), neighbors)
        ):
            return record, step
    return None


def _axis_distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the distance of two rows that differ in one coordinate only."""
    distances = np.nan_to_num(np.abs(a - b))
    return float(distances.max()) if np.count_nonzero(distances > SAME) == 1 else None


def _center(history: History, index: int, search: Neighborhood) -> np.ndarray:
    """Return a row on its levels, with coordinates for the parameters that it did not have."""
    return _snap(history.inherit(history.rows[index]), search)


def _snap(row: np.ndarray, search: Neighborhood) -> np.ndarray:
    row = np.clip(row, 0.0, _LAST)
    for column, (u, values) in enumerate(zip(row.tolist(), search.levels, strict=True)):
        if u == u:
            row[column] = (
                search.snap(column, u) if values is None else values[np.abs(values - u).argmin()]
            )
    return row


def _not_among(known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return those of ``rows`` that agree with none of the known rows."""
    differ = (np.abs(known[:, None] - rows[None]) > SAME).any(axis=2)
    return np.asarray(rows[differ.all(axis=0)])
