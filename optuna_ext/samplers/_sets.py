from __future__ import annotations

import abc
import datetime
import threading
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from optuna_ext._checks import check_int
from optuna_ext.points import halton
from optuna_ext.points import latin_hypercube
from optuna_ext.points import sobol
from optuna_ext.samplers import _host
from optuna_ext.samplers._design import DesignSampler
from optuna_ext.samplers._design import ROW_ATTR


if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


_COVERING_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
_N_KEPT = 64


class SetSampler(DesignSampler, abc.ABC):
    """A design that is a set of declared size, generated whole.

    Trial ``i`` takes row ``i``; later trials open a further set with a seed of its own.
    """

    def __init__(
        self,
        *,
        search_space: Mapping[str, BaseDistribution] | None,
        seed: int | None,
        retry_failed: bool,
        first_trial: int,
    ) -> None:
        super().__init__(search_space=search_space, seed=seed, first_trial=first_trial)
        self._retry_failed = bool(retry_failed)
        self._kept: dict[tuple[str, int, int, int, int], NDArray[np.float64]] = {}  # a cache
        self._done: _host.StudyCache[threading.Event] = _host.StudyCache()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_kept"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _kept={})

    @abc.abstractmethod
    def _size(self, study: Study, trial: FrozenTrial | None) -> int | None:
        """Return the number of rows of a set, or None while it cannot be known."""

    @abc.abstractmethod
    def _n_columns(self, study: Study, trial: FrozenTrial) -> int | None:
        """Return how many columns the design has by its nature, or None for any number."""

    @abc.abstractmethod
    def _points(self, seed: int, size: int, n_columns: int) -> NDArray[np.float64]:
        """Return the rows of one set, shape ``(size, n_columns)``."""

    def _coordinate(
        self, study: Study, trial: FrozenTrial, seed: int, row: int, column: int
    ) -> float:
        size = self._size(study, trial)
        if size is None:
            # A Poisson disk set starts with row 0 of this Sobol sequence whatever its columns and
            # takes its other rows from it: those of trials that cannot wait come from elsewhere.
            early = sobol if row == 0 else halton
            return float(early(1, column + 1, seed=seed, start=row)[0, column])
        block, row = divmod(row, size)
        n_columns = self._n_columns(study, trial)
        if n_columns is None:  # columns do not depend on their number: leave room for more
            n_columns = max(8, 1 << column.bit_length())
        # The first set keeps the user's own seed.
        set_seed = seed if block == 0 else _mix(seed, block)
        if column < n_columns:
            rows = self._keep(
                ("set", seed, size, block, n_columns),
                lambda: self._points(set_seed, size, n_columns),
            )
            return float(rows[row, column])
        # A parameter beyond the design's columns is stratified by itself.
        rows = self._keep(
            ("column", seed, size, block, column),
            lambda: latin_hypercube(size, 1, seed=_mix(set_seed, column)),
        )
        return float(rows[row, 0])

    def _keep(
        self, key: tuple[str, int, int, int, int], make: Callable[[], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        rows = self._kept.get(key)
        if rows is None:
            if len(self._kept) >= _N_KEPT:
                self._kept.clear()
            rows = self._kept[key] = make()
        return rows

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().before_trial(study, trial)
        if not self._retry_failed or _host.is_enqueued(trial):
            return
        size = self._size(study, trial)
        if size is None or trial.number < self._first_trial + size or self._is_done(study):
            return
        row = self._claim(_host.all_trials(study), trial, size)
        if row is not None:
            self._set_row(study, trial, row)

    def is_exhausted(self, study: Study) -> bool:
        """Return whether every point of the (first) set has been tried.

        With ``retry_failed=True`` a point counts when a trial at it is COMPLETE or PRUNED, else
        when its trial is finished in any state. Later trials are still served, from a further
        set; to stop there, stop the study in a callback::

            def stop_when_exhausted(study, trial):
                if study.sampler.is_exhausted(study):
                    study.stop()

        Args:
            study: The study that uses this sampler.
        """
        size = self._size(study, None)
        if size is None:
            return False
        tried: set[int | None] = set()
        for trial in _host.all_trials(study):
            if not trial.state.is_finished():
                continue
            if not self._retry_failed:
                tried.add(trial.number - self._first_trial)
            elif trial.state != TrialState.FAIL:
                tried.add(self._row_of(trial))
        return tried.issuperset(range(size))

    def _is_done(self, study: Study) -> bool:
        """Return whether no point will ever have to be retried; once so, reads no storage."""
        done = self._done.get(study, threading.Event)
        if not done.is_set() and self.is_exhausted(study):
            done.set()
        return done.is_set()

    def _claim(self, trials: list[FrozenTrial], trial: FrozenTrial, size: int) -> int | None:
        """Return a row of the first set that no trial covers, or None.

        Workers that start together look at the same list: the ``k``-th of them takes the
        ``k``-th open row, in order of their numbers.
        """
        end = self._first_trial + size
        covered = {self._row_of(t) for t in trials if t.state in _COVERING_STATES}
        covered |= {
            self._row_of(t)
            for t in trials
            if t.state == TrialState.WAITING and _host.retried_number(t) is not None
        }
        lost = [
            t
            for t in trials[self._first_trial : end]
            if t.number - self._first_trial not in covered
        ]
        # A row that opens later must not move those that opened before it.
        lost.sort(key=lambda t: (_opened(t), t.number))
        rank = sum(
            t.state == TrialState.RUNNING and not t.params and ROW_ATTR not in t.user_attrs
            for t in trials[end : trial.number]
        )
        return lost[rank].number - self._first_trial if rank < len(lost) else None

    def _row_of(self, trial: FrozenTrial) -> int | None:
        """Return the row that a trial evaluates, None when its parameters were given to it."""
        if ROW_ATTR in trial.user_attrs:
            return int(trial.user_attrs[ROW_ATTR])
        if _host.is_enqueued(trial):
            return None
        original = _host.retried_number(trial)
        return (trial.number if original is None else original) - self._first_trial


def _opened(trial: FrozenTrial) -> datetime.datetime:
    """Return since when the row of a trial is open: an enqueued trial never took it."""
    if _host.is_enqueued(trial) or trial.datetime_complete is None:
        return datetime.datetime.min
    return trial.datetime_complete


def _mix(*seeds: int) -> int:
    """Return one seed made of several."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])


class DeclaredSizeSampler(SetSampler, abc.ABC):
    """A set whose size is an argument."""

    def __init__(
        self,
        *,
        n_points: int,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        retry_failed: bool = False,
        first_trial: int = 0,
    ) -> None:
        check_int("n_points", n_points, low=1)
        super().__init__(
            search_space=search_space,
            seed=seed,
            retry_failed=retry_failed,
            first_trial=first_trial,
        )
        self._n_points = int(n_points)

    def _size(self, study: Study, trial: FrozenTrial | None) -> int:
        del study, trial
        return self._n_points
