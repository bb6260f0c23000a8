"""The simplex method of Nelder and Mead (1965), on mixed spaces and with any number of workers.

A search is written down as what it is, a sequential program, in the form of a generator: it
yields the rows it wants to be evaluated and is sent the evaluation of the first. Replaying it on
the stored trials brings it to where it stood, so nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from dataclasses import dataclass
import functools
from typing import TYPE_CHECKING
from typing import TypeVar

import numpy as np


if TYPE_CHECKING:
    from optuna_ext.moves.history import History


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A row of the unit cube as a trial had it, and the trial's value."""

    row: np.ndarray
    value: float


_T = TypeVar("_T")
# Yields the rows wanted, the one needed next first and the others in the order in which they are
# likely to be needed; is sent the evaluation of the first.
Search = Generator[list[np.ndarray], Evaluation, _T]
Snap = Callable[[np.ndarray], np.ndarray]

_SAME = 1e-9  # a continuous value and its coordinate round differently
_LAST = np.nextafter(1.0, 0.0)  # the largest coordinate
_MAX_NEW_RUNS = 8  # how many runs may be started to find one row
_MAX_OVERTAKEN = 8  # a trial is given up when so many younger ones, per running one, have ended


def nelder_mead(
    simplex: np.ndarray,
    *,
    values: np.ndarray | None = None,
    adaptive: bool = True,
    tolerance: float = 1e-2,
    is_flat: Callable[[np.ndarray], bool] | None = None,
) -> Search[None]:
    """Search with one simplex until it is small.

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
        if np.abs(simplex[1:] - best).max() <= tolerance or (is_flat and is_flat(simplex)):
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


def _replace(row: np.ndarray, columns: object, coordinates: object) -> np.ndarray:
    row = row.copy()
    row[columns] = coordinates
    return row


def local_search(
    start: Evaluation,
    *,
    n_values: tuple[int | None, ...],
    ordered: tuple[bool, ...],
    edge: float,
    adaptive: bool,
    tolerance: float,
    snap: Snap,
) -> Search[Evaluation]:
    """Poll the choices and run a simplex over the rest, in turns, until neither is better.

    Every turn starts with a new simplex, half as large as the last one and on the other side of
    the best row. That also gets over a simplex that has collapsed (Kelley 1999).

    Args:
        start: Where to start. Columns that are NaN there stay as they are.
        n_values: For each column the number of different values, None if continuous.
        ordered: For each column whether its values have an order.
        edge: Length of the first simplex's edges, in ``(0, 0.5]``. They are longer where the
            next of a few values is farther.
        adaptive: As of :func:`nelder_mead`.
        tolerance: As of :func:`nelder_mead`.
        snap: Maps a row to the row that stands for the same parameters.

    Yields:
        Rows wanted, the one needed next first.

    Returns:
        The best evaluation.
    """
    n_choices = {j: n or 0 for j, n in enumerate(n_values) if not ordered[j]}
    best, side = start, 1.0
    while True:
        before = best.value
        best = yield from poll_choices(best, n_choices)
        free = np.flatnonzero(np.array(ordered) & ~np.isnan(best.row))
        if len(free):
            edges = [max(edge, 1.0 / (n_values[j] or np.inf)) for j in free]
            best = yield from _simplex_search(
                best, free, side * np.array(edges), adaptive=adaptive, tolerance=tolerance, snap=snap
            )
        if not best.value < before:
            return best
        edge, side = edge / 2, -side


def _simplex_search(
    start: Evaluation,
    free: np.ndarray,
    edges: np.ndarray,
    *,
    adaptive: bool,
    tolerance: float,
    snap: Snap,
) -> Search[Evaluation]:
    """Run a simplex over the columns ``free``, with a corner at ``start``."""

    def whole(row: np.ndarray) -> np.ndarray:
        return _replace(start.row, free, row)

    def is_flat(simplex: np.ndarray) -> bool:
        rows = np.array([snap(whole(row)) for row in simplex])[:, free]
        return bool(np.ptp(rows, axis=0).max() < _SAME)

    corner = start.row[free]
    inwards = np.where(corner < 0.5, edges, -edges)
    simplex = reflect_at_bounds(np.vstack([corner, corner + np.diag(inwards)]))
    values = np.array([start.value] + [np.nan] * len(free))
    search = nelder_mead(
        simplex, values=values, adaptive=adaptive, tolerance=tolerance, is_flat=is_flat
    )
    best = start
    try:
        rows = next(search)
        while True:
            found = yield [whole(row) for row in rows]
            best = min(best, found, key=lambda evaluation: evaluation.value)
            rows = search.send(found)
    except StopIteration:
        return best


class SimplexSearch:
    """Proposes the next row by replaying local searches on the history.

    There is a run of :func:`local_search` from each of the start-up rows, the best first, and
    then from random rows. The next row is the first wanted one that is neither evaluated nor
    under way, in the first run that has one. So one worker goes through the runs one after the
    other, restarting where a run has ended; many workers help a run with the rows that it may
    need and go on to later runs instead of waiting.

    The answer depends on the history alone. An instance remembers how far it has replayed one
    history, and starts over when given one that does not continue it.

    Args:
        n_startup: How many of the first rows of the history are start-up rows.
        edge: As of :func:`local_search`.
        adaptive: As of :func:`nelder_mead`.
        tolerance: As of :func:`nelder_mead`.
        snap: As of :func:`local_search`. The default is for continuous columns.
    """

    def __init__(
        self,
        *,
        n_startup: int = 16,
        edge: float = 0.25,
        adaptive: bool = True,
        tolerance: float = 1e-2,
        snap: Snap = np.copy,
    ) -> None:
        self._n_startup = max(1, n_startup)
        self._snap = snap
        self._local_search = functools.partial(
            local_search, edge=edge, adaptive=adaptive, tolerance=tolerance, snap=snap
        )
        self._seen: History | None = None
        self._starts: list[Evaluation] = []
        self._last_start = 0
        self._runs: list[_Run] = []

    def next_row(self, history: History) -> np.ndarray:
        """Return the row to evaluate next.

        Args:
            history: What is known. Rows that have been under way for very long, compared to the
                others, are taken for lost.

        Returns:
            Array of shape ``(d,)``. A coordinate is NaN where any will do; all are, while
            start-up rows are missing or if everything wanted is evaluated or under way.
        """
        pending = history.pending[_is_alive(history)]
        if self._seen is None or not self._continues(self._seen, history):
            self._starts, self._runs = _start_up(history, self._n_startup), []
            self._last_start = max(history.numbers[: self._n_startup], default=0)
        self._seen = history
        live = [run for run in self._runs if run.wanted]
        since = max((run.latest for run in self._runs if not run.wanted), default=self._last_start)
        for k in range(len(live) + _MAX_NEW_RUNS if self._starts else 0):
            run = live[k] if k < len(live) else self._new_run(history)
            run.replay(history, since=since if k == 0 else None)
            for row in map(self._snap, run.wanted):
                if find(history.rows, row) is None and find(pending, row) is None:
                    return row
        return np.full(history.rows.shape[1], np.nan)

    def _new_run(self, history: History) -> _Run:
        k = len(self._runs)
        if k < len(self._starts):
            start, row = self._starts[k], self._starts[k].row
        else:  # a random row, another one in every study
            bits = self._starts[0].row.view(np.uint64)
            start, row = None, np.random.default_rng([k, *bits]).random(len(bits))
        search = functools.partial(
            self._local_search, n_values=history.n_values, ordered=history.ordered
        )
        self._runs.append(_Run(_from_row(row, start, search), self._snap))
        return self._runs[-1]

    def _continues(self, old: History, new: History) -> bool:
        """Tell whether a replay of ``new`` comes by where the replay of ``old`` stands."""
        if (old.n_values, old.ordered) != (new.n_values, new.ordered) or len(new) < len(old):
            return False
        at = np.searchsorted(new.numbers, old.numbers)
        if len(old) and not (
            at[-1] < len(new)
            and np.array_equal(old.numbers, new.numbers[at])
            and np.array_equal(old.values, new.values[at])
            and np.array_equal(old.rows, new.rows[at], equal_nan=True)
        ):
            return False
        # Trials that ended after younger ones: had one been an answer in a younger one's place?
        late = np.setdiff1d(np.arange(at[-1] if len(at) else 0), at)
        return bool(self._starts) and not any(
            self._last_start > new.numbers[i]
            or any(run.would_change(new.rows[i], new.numbers[i]) for run in self._runs)
            for i in late
        )


class _Run:
    """A search, replayed up to the first row that is not in the history.

    Attributes:
        wanted: Rows wanted, the one needed next first; empty if the search has ended.
        latest: The largest number of a trial that was an answer.
    """

    def __init__(self, search: Search[Evaluation], snap: Snap) -> None:
        self._search = search
        self._snap = snap
        self._answers: list[tuple[np.ndarray, int]] = []  # row wanted, number of the trial
        self.wanted = next(search)
        self.latest = -1

    def replay(self, history: History, *, since: int | None) -> None:
        """Go on until something is wanted that the history does not have.

        Args:
            history: The history.
            since: If the trials younger than number ``since`` are this run's, that number.
        """
        while self.wanted:
            found = self._answer(history, since)
            if found is None:
                return
            number = int(history.numbers[found])
            self._answers.append((self._snap(self.wanted[0]), number))
            self.latest = max(self.latest, number)
            answer = Evaluation(history.rows[found], float(history.values[found]))
            try:
                self.wanted = self._search.send(answer)
            except StopIteration:
                self.wanted = []

    def _answer(self, history: History, since: int | None) -> int | None:
        """Return the index of the trial that evaluated the row needed next.

        An objective may have the same parameter in one range here and in another one there, and a
        row outside ends up elsewhere. When the trials since the last answer repeat each other,
        that was where, and trying again is no use.
        """
        found = find(history.rows, self._snap(self.wanted[0]))
        if since is None:
            return found
        first = int(np.searchsorted(history.numbers, max(since, self.latest), side="right"))
        for i in range(first + 1, len(history) if found is None else found):
            if find(history.rows[first:i], history.rows[i]) is not None:
                return i
        return found

    def would_change(self, row: np.ndarray, number: int) -> bool:
        """Tell whether the trial ``number`` at ``row`` would have been one of the answers."""
        rows = [wanted for wanted, answer in self._answers if answer > number]
        return bool(rows) and find(np.array(rows), row) is not None


def find(rows: np.ndarray, row: np.ndarray) -> int | None:
    """Return the index of the first of ``rows`` that stands for the same parameters as ``row``.

    NaN agrees with every coordinate: it was not asked for, or any will do. There must be at least
    one coordinate that both have.
    """
    apart = np.abs(rows - row)
    found = np.flatnonzero(~(apart >= _SAME).any(axis=1) & (apart < _SAME).any(axis=1))
    return int(found[0]) if len(found) else None


def _from_row(
    row: np.ndarray,
    start: Evaluation | None,
    search: Callable[[Evaluation], Search[Evaluation]],
) -> Search[Evaluation]:
    if start is None:
        start = yield [row]
    return (yield from search(start))


def _start_up(history: History, n: int) -> list[Evaluation]:
    """Return the first ``n`` evaluations, the best first; none before all of them are known."""
    first = history.numbers[:n]
    alive = history.pending_numbers[_is_alive(history)]
    if len(first) < n or (alive < first[-1]).any():
        return []
    order = np.lexsort((first, history.ties[:n], history.values[:n]))
    return [Evaluation(history.rows[i], float(history.values[i])) for i in order]


def _is_alive(history: History) -> np.ndarray:
    """Tell the pending rows that may still be evaluated from those whose worker must have died."""
    n_younger = len(history) - np.searchsorted(history.numbers, history.pending_numbers)
    known = ~np.isnan(history.pending).all(axis=1)
    return known & (n_younger <= _MAX_OVERTAKEN * len(history.pending))
