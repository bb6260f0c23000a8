from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import cached_property

import numpy as np


SAME = 1e-9  # a continuous value and its coordinate round differently


@dataclass(eq=False)
class Lineage:
    """What can be remembered while a history grows at its end.

    Attributes:
        exhausted: Indices of rows around which a search has found nothing left to evaluate.
    """

    exhausted: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class History:
    """What a move knows: evaluated rows of the unit cube, their values, and rows under way.

    A coordinate is NaN where the trial did not have the parameter: in a conditional space a row
    has the coordinates of its branch only. Rows are in order of their trials' numbers.

    Attributes:
        rows: Evaluated rows, shape ``(n, d)``, in ``[0, 1)`` or NaN.
        values: What is minimized, shape ``(n,)``; ``+inf`` is the worst, never NaN.
        ties: Decides between equal values, the smaller the better, shape ``(n,)``; never NaN.
        numbers: Trial numbers of ``rows``, shape ``(n,)``, increasing.
        pending: Rows that are being evaluated, shape ``(m, d)``, NaN where not known.
        pending_numbers: Trial numbers of ``pending``, shape ``(m,)``, increasing.
        n_values: For each column the number of different values, None if continuous.
        ordered: For each column whether its values have an order.
        polled: How far the polls around a row have been evaluated: by row, as bytes, and first
            step, the step to go on with, 0 if there is none. A search notes it down, so as not
            to look again when there are more rows.
        order: Indices of ``rows`` from best to worst, if they are known already.
        lineage: Of two histories of the same lineage, the longer one begins with the shorter one.
            None, if that is not known.
    """

    rows: np.ndarray
    values: np.ndarray
    ties: np.ndarray
    numbers: np.ndarray
    pending: np.ndarray
    pending_numbers: np.ndarray
    n_values: tuple[int | None, ...]
    ordered: tuple[bool, ...]
    polled: dict[tuple[bytes, float], float] = field(default_factory=dict)
    order: np.ndarray | None = None
    lineage: Lineage | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def ranking(self) -> np.ndarray:
        """Return the indices of ``rows`` from best to worst; the older of two equals is better."""
        return self._ranking

    def before(self, number: int) -> History:
        """Return the history with only the evaluated rows of trials before ``number``.

        They come first in this history, too: indices into them hold in both.
        """
        n = int(np.searchsorted(self.numbers, number))
        return replace(
            self,
            rows=self.rows[:n],
            values=self.values[:n],
            ties=self.ties[:n],
            numbers=self.numbers[:n],
            polled={},
            order=None,
            lineage=None,
        )

    def is_taken(self, row: np.ndarray) -> bool:
        """Tell whether evaluating ``row`` would repeat a trial.

        It would, if a trial has the same value in every coordinate that it asked for: then the
        objective cannot tell the two apart, whatever the coordinates it never asked for.
        """
        absent = np.isnan(row)
        for rows in (self.rows, self.planned):
            same = agreeing(rows, row)
            if absent.any():
                same = same[np.isnan(rows[np.ix_(same, absent)]).all(axis=1)]
            if len(same):
                return True
        return False

    def inherit(self, row: np.ndarray) -> np.ndarray:
        """Return ``row`` with NaN replaced by the coordinate of the best row that has one.

        NaN remains where no evaluated row has the coordinate.
        """
        absent = np.isnan(row)
        return np.where(absent, self._best_known, row) if absent.any() else row

    @cached_property
    def planned(self) -> np.ndarray:
        """The pending rows of which anything is known."""
        return (
            self.pending[~np.isnan(self.pending).all(axis=1)]
            if len(self.pending)
            else self.pending
        )

    @cached_property
    def has_absent(self) -> bool:
        """Whether a row lacks a coordinate."""
        return bool(np.isnan(self.rows).any())

    @cached_property
    def _ranking(self) -> np.ndarray:
        if self.order is not None:
            return self.order
        return np.lexsort((self.numbers, self.ties, self.values))

    @cached_property
    def _best_known(self) -> np.ndarray:
        """Return for each column the coordinate of the best row that has one."""
        known = ~np.isnan(self.rows[self._ranking])
        best = self._ranking[known.argmax(axis=0)] if len(self) else np.empty(0, int)
        return np.asarray(self.rows[best, np.arange(len(best))])


def agreeing(rows: np.ndarray, row: np.ndarray, radii: np.ndarray | None = None) -> np.ndarray:
    """Return the indices of the rows that agree with ``row`` in every coordinate both have.

    Args:
        rows: Rows of shape ``(n, d)``; quickest if column by column in memory.
        row: Row of shape ``(d,)``.
        radii: How far coordinates may be apart in each column. The default is not at all.
    """
    found = np.arange(len(rows))
    reach = [SAME] * len(row) if radii is None else radii.tolist()
    for column, (u, radius) in enumerate(zip(row.tolist(), reach, strict=True)):
        if u != u:
            continue
        # A column leaves only a few rows to look at.
        there = rows[:, column] if len(found) == len(rows) else rows[found, column]
        found = found[~(np.abs(there - u) > radius)]
        if not len(found):
            break
    return found


def differ_at_most_once(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the indices of rows with at most one coordinate that differs, absent ones aside."""
    found = np.arange(len(rows))
    n_different = np.zeros(len(rows), np.int8)
    for column, u in enumerate(center.tolist()):  # two columns leave only a few rows to look at
        there = rows[:, column] if len(found) == len(rows) else rows[found, column]
        n_different += np.abs(there - u) > SAME
        if column:
            left = n_different <= 1
            found, n_different = found[left], n_different[left]
    return found


def matches(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Tell which rows agree with ``row`` in every coordinate that they have."""
    return np.asarray(~(np.abs(rows - row) > SAME).any(axis=1))
