"""Sequential searches without a state, for any number of workers.

A search is written down as what it is, a sequential program, in the form of a generator: it
yields the rows it wants to be evaluated and is sent the evaluation of the first. Replaying it on
the stored trials brings it to where it stood, so nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import TypeVar

import numpy as np

from optuna_ext.moves.history import agreeing


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
SnapRow = Callable[[np.ndarray], np.ndarray]  # row -> row that stands for the same parameters

_MAX_NEW_RUNS = 8  # how many more runs than there are evaluations are tried to find a row
_MAX_OVERTAKEN = 16  # a trial is given up when so many younger ones, per running one, have ended


class Replay:
    """Proposes the next row by replaying searches on the history.

    There is a run of the search from each of the start-up rows, the best first, and then from
    random rows. The next row is the first wanted one that is neither evaluated nor under way, in
    the first run that has one. So one worker goes through the runs one after the other,
    restarting where a run has ended; many workers help a run with the rows that it may need and
    go on to later runs instead of waiting.

    The answer depends on the history alone. An instance remembers how far it has replayed one
    history, and starts over when given one that does not continue it.

    Args:
        search: Starts a search from an evaluation, on the columns of the history.
        n_startup: How many of the first rows of the history are start-up rows, at least 1.
        snap: Maps a row to the row that stands for the same parameters. The default is for
            continuous columns.
    """

    def __init__(
        self,
        search: Callable[[Evaluation, History], Search[Evaluation]],
        *,
        n_startup: int,
        snap: SnapRow = np.copy,
    ) -> None:
        self._search = search
        self._n_startup = n_startup
        self._snap = snap
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
        since: int | None = self._last_start  # until a run has not ended
        n_runs = len(history) + _MAX_NEW_RUNS if self._starts else 0  # the history alone decides
        for k in range(n_runs):
            run = self._runs[k] if k < len(self._runs) else self._new_run(history)
            run.replay(history, since=since)
            for row in map(self._snap, run.wanted):
                if find(history.rows, row) is None and find(pending, row) is None:
                    return row
            if run.wanted:
                since = None
            elif since is not None:
                since = max(since, run.latest)
        return np.full(history.rows.shape[1], np.nan)

    def _new_run(self, history: History) -> _Run:
        k = len(self._runs)
        if k < len(self._starts):
            search = self._search(self._starts[k], history)
        else:  # a random row, another one in every study
            bits = self._starts[0].row.view(np.uint64)
            row = np.random.default_rng([k, *bits]).random(len(bits))
            search = self._search_from(row, history)
        self._runs.append(_Run(search, self._snap))
        return self._runs[-1]

    def _search_from(self, row: np.ndarray, history: History) -> Search[Evaluation]:
        start = yield [row]
        return (yield from self._search(start, history))

    def _continues(self, old: History, new: History) -> bool:
        """Tell whether a replay of ``new`` comes by where the replay of ``old`` stands."""
        if not self._starts or len(new) < len(old):
            return False
        if (old.n_values, old.ordered) != (new.n_values, new.ordered):
            return False
        if old.lineage is not None and old.lineage is new.lineage:
            return True
        at = np.searchsorted(new.numbers, old.numbers)
        if at[-1] >= len(new) or not (
            np.array_equal(old.numbers, new.numbers[at])
            and np.array_equal(old.values, new.values[at])
            and np.array_equal(old.rows, new.rows[at], equal_nan=True)
        ):
            return False
        # Trials that ended after younger ones: had one been an answer in a younger one's place?
        is_new = np.full(len(new), True)
        is_new[at] = False
        return not any(
            self._last_start > new.numbers[i]
            or any(run.would_change(new.rows[i], new.numbers[i]) for run in self._runs)
            for i in np.flatnonzero(is_new[: at[-1]])
        )


class _Run:
    """A search, replayed up to the first row that is not in the history.

    Attributes:
        wanted: Rows wanted, the one needed next first; empty if the search has ended.
        latest: The largest number of a trial that was an answer.
    """

    def __init__(self, search: Search[Evaluation], snap: SnapRow) -> None:
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
    found = agreeing(rows, row)
    if len(found):
        has_none = np.isnan(rows[found]) | np.isnan(row)
        found = found[~has_none.all(axis=1)]
    return int(found[0]) if len(found) else None


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
    return np.asarray(n_younger <= _MAX_OVERTAKEN * len(history.pending))
