from __future__ import annotations

import bisect
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from optuna_ext.moves import History
from optuna_ext.moves.history import Lineage
from optuna_ext.samplers import _host
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
    """

    def __init__(
        self, *, maximize: bool, count_failed: bool, tie: Callable[[FrozenTrial], float]
    ) -> None:
        self.maximize = maximize
        self._count_failed = count_failed
        self._tie = tie
        self._trials: list[FrozenTrial] = []
        self._open: list[int] = []  # numbers of the trials that may still change
        self._state = np.empty(0, np.int8)
        self.n_usable = 0  # number of evaluated trials
        # The latest finished trial's distribution of each parameter, with that trial's number.
        self._latest: dict[str, tuple[int, BaseDistribution]] = {}
        # The first finished trial that had each parameter, and the place it had there.
        self._first: dict[str, tuple[int, int]] = {}
        self._union: dict[str, BaseDistribution] | None = None  # what `space` returned last
        self._space: UnitSpace | None = None  # that of the rows
        self._evaluated = Evaluated(0)
        self._not_encoded: list[int] = []  # usable trials that have no row yet
        # Continuous values by coordinate, as the way there and back would round them; of several,
        # such as those outside a range that has changed, the latest trial's, with its number.
        self._exact: dict[tuple[str, float], tuple[int, float]] = {}
        self._branches: set[bytes] = set()  # which coordinates an evaluated row lacks
        self._polled: dict[tuple[bytes, float], float] = {}
        self._ordered: tuple[bool, ...] = ()

    def __len__(self) -> int:
        """Return the number of trials in whatever state."""
        return len(self._trials)

    def n_started_before(self, number: int) -> int:
        """Return how many earlier trials are running or evaluated."""
        return int(np.count_nonzero(self._state[:number] >= _RUNNING))

    def is_alone(self, number: int) -> bool:
        """Tell whether all trials but the given one are finished."""
        return self._open in ([], [number])

    def trial(self, number: int) -> FrozenTrial:
        return self._trials[number]

    def update(self, trials: list[FrozenTrial]) -> None:
        """Take in the study's trials, a list in order of their numbers."""
        new = range(len(self._trials), len(trials))
        self._trials = trials
        if len(self._state) < len(trials):
            room = np.full(max(64, len(trials)), _UNSEEN, np.int8)
            self._state = np.concatenate([self._state, room])
        still_open = []
        for number in (*self._open, *new):
            trial = trials[number]
            status = self._state[number] = self._status(trial)
            if not trial.state.is_finished():
                still_open.append(number)
            elif status == _USABLE:
                self.n_usable += 1
                self._not_encoded.append(number)
                self._note_parameters(trial)
        self._open = still_open

    def space(self) -> dict[str, BaseDistribution]:
        """Return the parameters of all evaluated trials, in order of first appearance.

        The same object as long as nothing has changed. Parameters with a single value have none.
        """
        if self._union is None:
            names = sorted(self._first, key=self._first.__getitem__)
            union = {name: self._latest[name][1] for name in names}
            self._union = {name: dist for name, dist in union.items() if not dist.single()}
        return self._union

    def history(self, space: UnitSpace, *, exclude: int) -> History:
        """Return the history on the columns of ``space``, without the trial ``exclude``."""
        if self._space is not space:
            self._change_space(space)
        for number in sorted(self._not_encoded):
            self._encode(space, self._trials[number])
        self._not_encoded.clear()
        pending = [n for n in self._open if self._state[n] == _RUNNING and n != exclude]
        known = self._evaluated
        return History(
            rows=known.rows[: known.n],
            values=known.values[: known.n],
            ties=known.ties[: known.n],
            numbers=known.numbers[: known.n],
            pending=np.array([self._pending_row(space, n) for n in pending]).reshape(
                len(pending), space.n_dims
            ),
            pending_numbers=np.array(pending, dtype=np.int64),
            n_values=space.n_values,
            ordered=self._ordered,
            polled=self._polled,
            order=known.order,
            lineage=known.lineage,
        )

    def value(self, space: UnitSpace, name: str, u: float) -> Any:
        """Return a parameter's value at a coordinate; the same as a trial's that was there."""
        exact = self._exact.get((name, u))
        return from_unit(space.distributions[name], u) if exact is None else exact[1]

    def _change_space(self, space: UnitSpace) -> None:
        before = () if self._space is None else self._space.distributions.items()
        if [*before] != [*space.distributions.items()]:  # columns are in this order
            self._evaluated = Evaluated(space.n_dims)
            self._not_encoded = np.flatnonzero(self._state == _USABLE).tolist()
            self._exact.clear()
            self._branches.clear()
            self._polled = {}
            self._ordered = tuple(is_ordered(space.distributions[name]) for name in space.names)
        self._space = space

    def _encode(self, space: UnitSpace, trial: FrozenTrial) -> None:
        row = encode(space, trial.params)
        coordinates = row.tolist()
        for name, u, n in zip(space.names, coordinates, space.n_values, strict=True):
            if n is None and name in trial.params:
                exact = trial.number, trial.params[name]
                self._exact[name, u] = max(self._exact.get((name, u), exact), exact)
        # A trial of another branch, or from before a parameter was added, may have none of them.
        if not all(map(math.isnan, coordinates)):
            self._evaluated.add(row, self._value(trial), self._finite_tie(trial), trial.number)
            self._branches.add(np.isnan(row).tobytes())

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
            number, latest = self._latest.get(name, (-1, None))
            if trial.number >= number:
                self._latest[name] = trial.number, distribution
            first = trial.number, place
            if distribution != latest or first < self._first[name]:
                self._first[name] = min(self._first.get(name, first), first)
                self._union = None

    def _pending_row(self, space: UnitSpace, number: int) -> np.ndarray:
        """Return where a running trial is going, as far as can be known.

        Once it has what an evaluated trial had, it will ask for no more: in a conditional space
        its plan goes beyond its branch.
        """
        trial = self._trials[number]
        row = encode(space, _host.fixed_params(trial) | trial.params)
        if np.isnan(row).tobytes() in self._branches:
            return row
        plan = _host.plan_of(trial)
        for column, name in enumerate(space.names):
            if math.isnan(row[column]):
                row[column] = plan.get(name, math.nan)
        return row


class Evaluated:
    """Evaluated rows in order of their trials' numbers, and their ranking.

    Everything has room at its end. What has been written is never changed, so that a part of it
    can be handed out without copying.

    Attributes:
        rows: Array of shape ``(room, d)``, column by column in memory.
        values: What is minimized, shape ``(room,)``.
        ties: Decides between equal values, shape ``(room,)``.
        numbers: Trial numbers, shape ``(room,)``; the first ``n`` increase.
        n: How many rows there are.
        order: Their indices from best to worst, shape ``(n,)``.
        lineage: Another one when a row was not added at the end.
    """

    def __init__(self, n_dims: int) -> None:
        self.n = 0
        self.order = np.empty(0, np.int64)
        self.lineage = Lineage()
        self._allocate(n_dims, 0)

    def add(self, row: np.ndarray, value: float, tie: float, number: int) -> None:
        """Add the row of a trial, the numbers of which need not be given in order."""
        at = int(np.searchsorted(self.numbers[: self.n], number))
        if at < self.n or self.n == len(self.numbers):
            self._move(at)
        self.rows[at], self.values[at] = row, value
        self.ties[at], self.numbers[at] = tie, number
        order = self.order + (self.order >= at)
        place = bisect.bisect(order, (value, tie, number), key=self._key)
        self.order = np.concatenate([order[:place], [at], order[place:]])
        self.n += 1

    def _key(self, index: int) -> tuple[float, float, int]:
        return self.values[index], self.ties[index], self.numbers[index]

    def _move(self, at: int) -> None:
        """Make room at an index, in new arrays."""
        old = self.rows, self.values, self.ties, self.numbers
        self._allocate(
            self.rows.shape[1], len(self.numbers) * (2 if self.n == len(self.numbers) else 1)
        )
        for source, target in zip(
            old, (self.rows, self.values, self.ties, self.numbers), strict=True
        ):
            target[:at] = source[:at]
            target[at + 1 : self.n + 1] = source[at : self.n]
        if at < self.n:
            self.lineage = Lineage()

    def _allocate(self, n_dims: int, room: int) -> None:
        room = max(room, 64)
        self.rows = np.empty((room, n_dims), order="F")
        self.values, self.ties = np.empty((2, room))
        self.numbers = np.empty(room, np.int64)


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
