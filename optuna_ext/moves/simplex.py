"""The simplex method of Nelder and Mead (1965), on mixed spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_ext.moves.history import SAME
from optuna_ext.moves.plateaus import is_on_plateau
from optuna_ext.moves.replay import Evaluation
from optuna_ext.moves.replay import Search
from optuna_ext.moves.replay import SnapRow


if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence

    from optuna_ext.moves.history import History

_LAST = np.nextafter(1.0, 0.0)  # the largest coordinate
_MAX_REPEATS = 2  # of values on plateaus, since there was progress


def nelder_mead(
    simplex: np.ndarray,
    *,
    values: np.ndarray | None = None,
    adaptive: bool = False,
    tolerance: float = 1e-2,
    is_flat: Callable[[np.ndarray], bool] | None = None,
) -> Search[None]:
    """Search with one simplex until it is small, or all of its vertices are equally good.

    The rules, their order and the treatment of equal values are those of
    ``scipy.optimize.minimize(method="Nelder-Mead")``: both evaluate the same points until the
    first one is out of bounds, where this one reflects at the bound and scipy's stops there.

    Together with the reflection a step wants what it may need after it, the expansion and both
    contractions. Workers that would have to wait evaluate these.

    Args:
        simplex: Vertices, shape ``(d + 1, d)``, in ``[0, 1)``.
        values: Values of the vertices, shape ``(d + 1,)``, NaN where not known. The default is
            not to know any.
        adaptive: Whether the coefficients depend on ``d`` (Gao and Han 2012, eq. 4.1), which for
            ``d <= 2`` are the usual ones.
        tolerance: The search ends when no vertex is farther than this from the best one, along
            any axis.
        is_flat: Whether a simplex, shape ``(d + 1, d)``, is so small that all of its vertices
            stand for the same parameters; this ends the search, too.

    Yields:
        Rows wanted, the one needed next first.

    References:
        J. A. Nelder, R. Mead (1965), Comput. J. 7(4). F. Gao, L. Han (2012), Comput. Optim.
        Appl. 51, *Implementing the Nelder-Mead simplex algorithm with adaptive parameters*.
    """
    simplex = np.array(simplex, dtype=float)
    d = simplex.shape[1]
    values = np.full(d + 1, np.nan) if values is None else np.array(values, dtype=float)
    for i in np.flatnonzero(np.isnan(values)):
        values[i] = (yield list(simplex[i:][np.isnan(values[i:])])).value
    dim = max(d, 2) if adaptive else 2
    expand, contract, shrink = 1 + 2 / dim, 0.75 - 1 / (2 * dim), 1 - 1 / dim

    while True:
        order = np.argsort(values, kind="stable")
        simplex, values = simplex[order], values[order]
        best, worst = simplex[0], simplex[-1]
        is_small = np.abs(simplex[1:] - best).max() <= tolerance or (is_flat and is_flat(simplex))
        if is_small or values[0] == values[-1]:  # nothing to gain, or no way to tell where
            return
        centroid = simplex[:-1].sum(axis=0) / d
        reflected, expanded, outside, inside = (
            reflect_at_bounds((1 + t) * centroid - t * worst)
            for t in (1.0, expand, contract, -contract)
        )
        value = (yield [reflected, expanded, outside, inside]).value
        if value < values[0]:
            farther = (yield [expanded]).value
            accepted = (expanded, farther) if farther < value else (reflected, value)
        elif value < values[-2]:
            accepted = (reflected, value)
        else:
            row = outside if value < values[-1] else inside
            nearer = (yield [row]).value
            if nearer <= value if row is outside else nearer < values[-1]:
                accepted = (row, nearer)
            else:
                simplex[1:] = reflect_at_bounds(best + shrink * (simplex[1:] - best))
                for j in range(1, d + 1):
                    values[j] = (yield list(simplex[j:])).value
                continue
        simplex[-1], values[-1] = accepted


def reflect_at_bounds(rows: np.ndarray) -> np.ndarray:
    """Return rows with what lies outside the unit cube mirrored at its faces."""
    rows = np.abs(rows) % 2.0
    return np.minimum(np.where(rows > 1.0, 2.0 - rows, rows), _LAST)


def poll_choices(start: Evaluation, n_choices: dict[int, int]) -> Search[Evaluation]:
    """Change one choice at a time, keep what is better, until no change is better.

    Args:
        start: Where to start.
        n_choices: Columns without an order and how many values each has, at least 2.

    Yields:
        Rows wanted, the one needed next first.

    Returns:
        The best evaluation.
    """
    best, n_tried = start, 0
    columns = [column for column in n_choices if not np.isnan(start.row[column])]
    while n_tried < len(columns):  # the columns in turns, until all have failed in a row
        n_tried += 1
        column = columns.pop(0)
        columns.append(column)
        n = n_choices[column]
        others = [k for k in range(n) if k != int(best.row[column] * n)]
        rows = [_replace(best.row, [column], (k + 0.5) / n) for k in others]
        for i in range(len(rows)):
            found = yield rows[i:]
            if found.value < best.value:
                best, n_tried = found, 1
        columns = [column for column in columns if not np.isnan(best.row[column])]
    return best


def _replace(
    row: np.ndarray, columns: Sequence[int] | np.ndarray, coordinates: np.ndarray | float
) -> np.ndarray:
    row = row.copy()
    row[np.asarray(columns)] = coordinates
    return row


def local_search(
    start: Evaluation,
    history: History,
    *,
    edge: float = 0.25,
    adaptive: bool = False,
    tolerance: float = 1e-2,
    snap: SnapRow = np.copy,
) -> Search[Evaluation]:
    """Poll the choices and run a simplex over the rest, in turns, until neither is better.

    Every turn starts with a new simplex, half as large as the last one and on the other side of
    the best row. That also gets over a simplex that has collapsed (Kelley 1999). A simplex
    that makes no progress on plateaus is the last one.

    Args:
        start: Where to start. Columns that are NaN there stay as they are.
        history: Tells how many values each column has and whether they have an order.
        edge: Length of the first simplex's edges, in ``(0, 0.5]``. They are longer where the
            next of a few values is farther.
        adaptive: As of :func:`nelder_mead`.
        tolerance: As of :func:`nelder_mead`.
        snap: Maps a row to the row that stands for the same parameters. The default is for
            continuous columns.

    Yields:
        Rows wanted, the one needed next first.

    Returns:
        The best evaluation.
    """
    n_values, ordered = history.n_values, np.array(history.ordered)
    n_choices = {int(j): n_values[j] or 0 for j in np.flatnonzero(~ordered)}
    best, side, is_stuck = start, 1.0, False
    while True:
        before = best.value
        best = yield from poll_choices(best, n_choices)
        free = np.flatnonzero(ordered & ~np.isnan(best.row))
        if len(free):
            edges = [max(edge, 1.0 / (n_values[j] or np.inf)) for j in free]
            best, is_stuck = yield from _simplex_search(
                best,
                free,
                side * np.array(edges),
                n_values=n_values,
                adaptive=adaptive,
                tolerance=tolerance,
                snap=snap,
            )
        if is_stuck or not best.value < before:
            return best
        edge, side = edge / 2, -side


def _simplex_search(
    start: Evaluation,
    free: np.ndarray,
    edges: np.ndarray,
    *,
    n_values: tuple[int | None, ...],
    adaptive: bool,
    tolerance: float,
    snap: SnapRow,
) -> Search[tuple[Evaluation, bool]]:
    """Run a simplex over the columns ``free``, with a corner at ``start``.

    Returns:
        The best evaluation, and whether the simplex got stuck on plateaus: shrinking on would
        evaluate the same value again and again.
    """

    def whole(row: np.ndarray) -> np.ndarray:
        return _replace(start.row, free, row)

    def is_flat(simplex: np.ndarray) -> bool:
        rows = np.array([snap(whole(row)) for row in simplex])[:, free]
        return bool(np.ptp(rows, axis=0).max() < SAME)

    corner = start.row[free]
    inwards = np.where(corner < 0.5, edges, -edges)
    simplex = reflect_at_bounds(np.vstack([corner, corner + np.diag(inwards)]))
    values = np.array([start.value] + [np.nan] * len(free))
    search = nelder_mead(
        simplex, values=values, adaptive=adaptive, tolerance=tolerance, is_flat=is_flat
    )
    best, seen = start, [start]
    n_repeats = _MAX_REPEATS - 1  # without any progress a single one is enough
    try:
        rows = next(search)
        while n_repeats < _MAX_REPEATS:
            found = yield [whole(row) for row in rows]
            seen.append(found)
            if found.value < best.value:
                best, n_repeats = found, 0
            elif _is_repeat(seen, n_values):
                n_repeats += 1
            rows = search.send(found)
    except StopIteration:
        return best, False
    return best, True


def _is_repeat(seen: list[Evaluation], n_values: tuple[int | None, ...]) -> bool:
    """Tell whether the last evaluation has the value of its neighbor on a plateau."""
    rows = np.array([evaluation.row for evaluation in seen])
    values = np.array([evaluation.value for evaluation in seen])
    return is_on_plateau(rows, values, len(seen) - 1, n_values)
