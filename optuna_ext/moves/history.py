from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import cached_property

import numpy as np


SAME = 1e-9  # a continuous value and its coordinate round differently


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
        exhausted: Where a search found nothing left to evaluate: rows, as bytes, and the step it
            began with. It adds to them, so as not to look again when there are more rows.
        order: Indices of ``rows`` from best to worst, if they are known already.
        lineage: Of two histories of the same lineage, the longer one begins with the shorter one.
            None says nothing.
    """

    rows: np.ndarray
    values: np.ndarray
    ties: np.ndarray
    numbers: np.ndarray
    pending: np.ndarray
    pending_numbers: np.ndarray
    n_values: tuple[int | None, ...]
    ordered: tuple[bool, ...]
    exhausted: set[tuple[bytes, float]] = field(default_factory=set)
    order: np.ndarray | None = None
    lineage: object = None

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
            exhausted=set(),
            order=None,
            lineage=None,
        )

    def is_taken(self, row: np.ndarray) -> bool:
        """Tell whether evaluating ``row`` would repeat a trial.

        It would, if a trial has the same value in every coordinate that it asked for: then the
        objective cannot tell the two apart, whatever the coordinates it never asked for.
        """
        if _is_among(self.rows, row):
            return True
        planned = ~np.isnan(self.pending).all(axis=1)
        return bool(planned.any()) and _is_among(self.pending[planned], row)

    def inherit(self, row: np.ndarray) -> np.ndarray:
        """Return ``row`` with NaN replaced by the coordinate of the best row that has one.

        NaN remains where no evaluated row has the coordinate.
        """
        absent = np.isnan(row)
        return np.where(absent, self._best_known, row) if absent.any() else row

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


def _is_among(rows: np.ndarray, row: np.ndarray) -> bool:
    """Tell whether one of ``rows`` agrees with ``row``, where NaN in the former always does."""
    left = np.arange(len(rows))
    for column, u in enumerate(row.tolist()):  # a column leaves only a few rows to look at
        there = rows[:, column] if len(left) == len(rows) else rows[left, column]
        left = left[~(np.abs(there - u) >= SAME) if u == u else np.isnan(there)]
        if not len(left):
            return False
    return len(left) > 0
