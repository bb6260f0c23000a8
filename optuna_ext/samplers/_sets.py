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

    Trial ``i`` takes row ``i``, and a trial that repeats another one the row of that one. Later
    trials take the rows that are left so, and then open a further set with a seed of its own.
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
        size = self._size(study, trial)
        if size is None or trial.number < self._first_trial + size or _is_given(trial):
            return
        done = self._done.get(study, threading.Event)  # no row will be open: reads no storage
        if done.is_set():
            return
        trials = _host.all_trials(study)
        rows = self._open_rows(trials, size)
        # Workers that start together look at the same rows: the k-th takes the k-th of them.
        rank = sum(map(_is_choosing, trials[self._first_trial + size : trial.number]))
        if rank < len(rows):
            self._set_row(study, trial, rows[rank])
        elif not rows and (not self._retry_failed or self.is_exhausted(study)):
            done.set()

    def is_exhausted(self, study: Study) -> bool:
        """Return whether every point of the (first) set has been tried.

        With ``retry_failed=True`` a point counts when a trial at it is COMPLETE or PRUNED, else
        when a trial at it is finished in any state. Later trials are still served, from a further
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
            is_lost = self._retry_failed and trial.state == TrialState.FAIL
            if trial.state.is_finished() and not is_lost:
                tried.add(self._row_of(trial))
        return tried.issuperset(range(size))

    def _open_rows(self, trials: list[FrozenTrial], size: int) -> list[int]:
        """Return the rows of the first set that no trial covers, the longest open first.

        Args:
            trials: All trials; those of the set's numbers are among them.
            size: Rows of the set.
        """
        covered = {
            self._row_of(t)
            for t in trials
            if not self._retry_failed
            or t.state in _COVERING_STATES
            or (t.state == TrialState.WAITING and _host.retried_number(t) is not None)
        }
        left = [
            t
            for t in trials[self._first_trial : self._first_trial + size]
            if t.number - self._first_trial not in covered
        ]
        # A row that opens later must not move those that opened before it.
        left.sort(key=lambda t: (_opened(t), t.number))
        return [t.number - self._first_trial for t in left]

    def _row_of(self, trial: FrozenTrial) -> int | None:
        """Return the row that a trial uses up; None when that is to be retried, as it had its own.

        Its parameters were given to a trial that is enqueued.
        """
        if ROW_ATTR in trial.user_attrs:
            return int(trial.user_attrs[ROW_ATTR])
        if self._retry_failed and _host.is_enqueued(trial):
            return None
        original = _host.retried_number(trial)
        return (trial.number if original is None else original) - self._first_trial


def _is_given(trial: FrozenTrial) -> bool:
    """Return whether a trial takes no row of its own: it repeats another, or was enqueued."""
    return _host.is_enqueued(trial) or _host.retried_number(trial) is not None


def _is_choosing(trial: FrozenTrial) -> bool:
    """Return whether a trial may just be about to take an open row."""
    has_begun = trial.state == TrialState.RUNNING and not trial.params
    return has_begun and ROW_ATTR not in trial.user_attrs and not _is_given(trial)


def _opened(trial: FrozenTrial) -> datetime.datetime:
    """Return since when the row of a trial is open."""
    if _is_given(trial) or trial.datetime_complete is None:  # it never took it
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
