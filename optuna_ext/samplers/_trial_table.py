from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from optuna_ext.moves import History
from optuna_ext.samplers._levels import Levels
from optuna_ext.space import from_unit
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from optuna_ext.space import UnitSpace

_UNSEEN, _FAILED, _RUNNING, _USABLE = range(4)


class TrialTable:
    """A study's trials as arrays, read incrementally: only what is new or was unfinished.

    Everything here follows from the trials alone; two tables of one study are equal.

    Args:
        maximize: Whether values are to be negated, so that everybody else minimizes.
        count_failed: Whether failed trials count as evaluated, with the worst value.
        tie: Gives what decides between equal values.
        plan_key: User attribute that holds a running trial's planned coordinates.
    """

    def __init__(
        self,
        *,
        maximize: bool,
        count_failed: bool,
        tie: Callable[[FrozenTrial], float],
        plan_key: str,
    ) -> None:
        self.maximize = maximize
        self._count_failed = count_failed
        self._tie = tie
        self._plan_key = plan_key
        self.has_plans = False  # whether trials were ever seen to run at the same time
        self._trials: list[FrozenTrial] = []
        self._open: list[int] = []  # numbers of the trials that may still change
        self._state = np.empty(0, np.int8)
        self._values = np.empty((0, 2))  # value and tie-break
        # The latest finished trial's distribution of each parameter, with that trial's number.
        self._latest: dict[str, tuple[int, BaseDistribution]] = {}
        # The first finished trial that had each parameter, and the place it had there.
        self._first: dict[str, tuple[int, int]] = {}
        self._space: UnitSpace | None = None  # that of the rows
        self._rows = np.empty((0, 0))
        self._encoded = np.empty(0, bool)
        # Continuous values by coordinate: the way there and back would round them.
        self._exact: dict[tuple[str, float], float] = {}
        self._exhausted: set[tuple[bytes, float]] = set()

    @property
    def n_usable(self) -> int:
        """Number of evaluated rows that a history would have."""
        return int(np.count_nonzero(self._state == _USABLE))

    def n_started_before(self, number: int) -> int:
        """Return how many earlier trials are running or evaluated."""
        return int(np.count_nonzero(self._state[:number] >= _RUNNING))

    def trial(self, number: int) -> FrozenTrial:
        return self._trials[number]

    def update(self, trials: list[FrozenTrial]) -> None:
        """Take in the study's trials, a list in order of their numbers."""
        new = range(len(self._trials), len(trials))
        self._trials = trials
        while len(self._state) < len(trials):
            self._grow()
        still_open = []
        for number in (*self._open, *new):
            trial = trials[number]
            self._state[number] = self._status(trial)
            self.has_plans = self.has_plans or self._plan_key in trial.user_attrs
            if not trial.state.is_finished():
                still_open.append(number)
            elif self._state[number] == _USABLE:
                self._values[number] = self._value(trial), self._finite_tie(trial)
                self._note_parameters(trial)
        self._open = still_open

    def space(self) -> dict[str, BaseDistribution]:
        """Return the parameters of all evaluated trials, in order of first appearance."""
        return {name: self._latest[name][1] for name in sorted(self._first, key=self._first.get)}  # type: ignore[arg-type]

    def history(self, space: UnitSpace, *, exclude: int) -> History:
        """Return the history on the columns of ``space``, without the trial ``exclude``."""
        if self._space is None or self._space.distributions != space.distributions:
            self._space = space
            self._rows = np.full((len(self._state), space.n_dims), np.nan)
            self._encoded = np.zeros(len(self._state), bool)
            self._exact.clear()
            self._exhausted.clear()
        numbers = np.flatnonzero(self._state == _USABLE)
        for number in numbers[~self._encoded[numbers]]:
            params = self._trials[number].params
            self._rows[number] = encode(space, params)
            self._encoded[number] = True
            for name, u, n in zip(
                space.names, self._rows[number].tolist(), space.n_values, strict=True
            ):
                if n is None and name in params:
                    self._exact[name, u] = params[name]
        rows, values = self._rows[numbers], self._values[numbers]
        # A trial of another branch, or from before a parameter was added, may have none of them.
        known = ~np.isnan(rows).all(axis=1)
        pending = [n for n in self._open if self._state[n] == _RUNNING and n != exclude]
        return History(
            rows=rows[known],
            values=values[known, 0],
            ties=values[known, 1],
            numbers=numbers[known],
            pending=np.array([self._pending_row(space, n) for n in pending]).reshape(
                len(pending), space.n_dims
            ),
            pending_numbers=np.array(pending, dtype=np.int64),
            n_values=space.n_values,
            ordered=tuple(is_ordered(space.distributions[name]) for name in space.names),
            exhausted=self._exhausted,
        )

    def value(self, space: UnitSpace, name: str, u: float) -> Any:
        """Return a parameter's value at a coordinate; the same as a trial's that was there."""
        exact = self._exact.get((name, u))
        return from_unit(space.distributions[name], u) if exact is None else exact

    def _grow(self) -> None:
        size = max(64, len(self._state))
        self._state = np.concatenate([self._state, np.full(size, _UNSEEN, np.int8)])
        self._values = np.concatenate([self._values, np.empty((size, 2))])
        self._rows = np.concatenate([self._rows, np.full((size, self._rows.shape[1]), np.nan)])
        self._encoded = np.concatenate([self._encoded, np.zeros(size, bool)])

    def _status(self, trial: FrozenTrial) -> int:
        if trial.state == TrialState.RUNNING:
            return _RUNNING
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            return _USABLE
        if trial.state == TrialState.FAIL:
            return _USABLE if self._count_failed else _FAILED
        return _UNSEEN  # waiting

    def _value(self, trial: FrozenTrial) -> float:
        if trial.state == TrialState.PRUNED:
            reports = trial.intermediate_values
            value = reports[max(reports)] if reports else math.nan
        else:
            value = trial.value if trial.value is not None else math.nan  # failed: worst
        value = -value if self.maximize else value
        return math.inf if math.isnan(value) else value

    def _finite_tie(self, trial: FrozenTrial) -> float:
        tie = self._tie(trial)
        return math.inf if math.isnan(tie) else tie

    def _note_parameters(self, trial: FrozenTrial) -> None:
        for place, (name, distribution) in enumerate(trial.distributions.items()):
            if trial.number >= self._latest.get(name, (-1, None))[0]:
                self._latest[name] = trial.number, distribution
            first = trial.number, place
            self._first[name] = min(self._first.get(name, first), first)

    def _pending_row(self, space: UnitSpace, number: int) -> np.ndarray:
        trial = self._trials[number]
        row = encode(space, trial.params)
        plan = trial.user_attrs.get(self._plan_key, {})
        for column, name in enumerate(space.names):
            if math.isnan(row[column]):
                row[column] = plan.get(name, math.nan)
        return row


def is_ordered(distribution: BaseDistribution) -> bool:
    """Tell whether neighboring values are alike: numbers, also as choices that rise or fall."""
    if isinstance(distribution, Levels) or not isinstance(distribution, CategoricalDistribution):
        return True
    choices = distribution.choices
    if not all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
        return False
    pairs = list(itertools.pairwise(choices))
    return all(a < b for a, b in pairs) or all(a > b for a, b in pairs)  # type: ignore[operator]


def encode(space: UnitSpace, params: dict[str, Any]) -> np.ndarray:
    """Return the row of ``params``, NaN where one is missing, clipped where one is outside."""
    row = np.full(space.n_dims, np.nan)
    for column, name in enumerate(space.names):
        if name in params:
            row[column] = _coordinate(space.distributions[name], params[name])
    return row


def _coordinate(distribution: BaseDistribution, value: Any) -> float:
    try:
        return to_unit(distribution, value)
    except ValueError:
        # The range has changed since, or this is no level: take the nearest value there is now.
        if isinstance(distribution, Levels) and distribution.nearest(value) != value:
            return to_unit(distribution, distribution.nearest(value))
        if not isinstance(distribution, FloatDistribution | IntDistribution):
            return math.nan
        low, high = distribution.low, distribution.high
        value = min(max(value, low), high)
        if distribution.step is not None:
            n_steps = round((value - low) / distribution.step)
            value = type(low)(low + n_steps * distribution.step)
        return to_unit(distribution, min(value, high))
