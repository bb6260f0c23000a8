from __future__ import annotations

import threading
from typing import TYPE_CHECKING
import weakref

from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class _Settled:
    """Names seen in the trials ``0 .. n_trials-1``, all finished: they can never change again."""

    def __init__(self, declared: Iterable[str]) -> None:
        self.columns = {name: column for column, name in enumerate(declared)}
        self.n_trials = 0
        self.n_first: int | None = None  # parameters of the first trial that had any


class ColumnMap:
    """Gives every parameter of a study its own column of a design.

    The declared names come first; every other name follows in order of first appearance in the
    study: by trial number, then by the order in which that trial suggested it. This is a function
    of the stored trials alone, so workers and restarted processes agree without writing anything.
    Names of finished trials are remembered; asking for one of them reads no storage.

    While several workers run the very first trials of a *conditional* space, a lower-numbered
    trial may still bring in a name and move the later ones by a column. That affects only the
    points drawn until then, and declaring the space avoids it.

    Args:
        declared: Names that take the columns ``0, 1, ...`` whatever the trials do.
    """

    def __init__(self, declared: Sequence[str] = ()) -> None:
        self._declared = tuple(declared)
        self._lock = threading.Lock()
        self._settled: weakref.WeakKeyDictionary[BaseStorage, dict[int, _Settled]] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> tuple[str, ...]:
        return self._declared

    def __setstate__(self, state: tuple[str, ...]) -> None:
        self.__init__(state)  # type: ignore[misc]  # everything else is a cache

    def columns(self, study: Study, trial: FrozenTrial, names: Iterable[str]) -> dict[str, int]:
        """Return the columns of ``names``, about to be suggested in this order by ``trial``."""
        names = tuple(names)
        settled = self._get_settled(study)
        if all(name in settled.columns for name in names):
            return {name: settled.columns[name] for name in names}

        trials = self._settle(study, settled)
        columns = dict(settled.columns)
        # Trials from the first unfinished one on may still bring in names: nothing is kept.
        for other in trials[settled.n_trials :]:
            _append(columns, parameters(other))
            if other.number == trial.number:
                _append(columns, names)
        _append(columns, names)
        return {name: columns[name] for name in names}

    def n_first(self, study: Study, trial: FrozenTrial | None) -> int | None:
        """Return how many parameters the study's first trial has, None while there is none.

        ``trial`` itself, still suggesting, is not counted.
        """
        settled = self._get_settled(study)
        if settled.n_first is None:
            trials = self._settle(study, settled)
            if settled.n_first is None:
                sizes = (
                    len(parameters(other))
                    for other in trials[settled.n_trials :]
                    if trial is None or other.number != trial.number
                )
                return next(filter(None, sizes), None)
        return settled.n_first

    def _get_settled(self, study: Study) -> _Settled:
        storage, study_id = _host.identity(study)
        with self._lock:
            studies = self._settled.setdefault(storage, {})
            return studies.setdefault(study_id, _Settled(self._declared))

    def _settle(self, study: Study, settled: _Settled) -> list[FrozenTrial]:
        """Take in the finished trials up to the first unfinished one; return all trials."""
        trials = _host.all_trials(study)
        with self._lock:
            while settled.n_trials < len(trials) and trials[settled.n_trials].state.is_finished():
                names = parameters(trials[settled.n_trials])
                settled.n_first = settled.n_first or len(names) or None
                _append(settled.columns, names)
                settled.n_trials += 1
        return trials


def parameters(trial: FrozenTrial) -> list[str]:
    """Return the names that can take a column, in the order of their suggestion."""
    return [name for name, dist in trial.distributions.items() if not dist.single()]


def _append(columns: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        columns.setdefault(name, len(columns))
