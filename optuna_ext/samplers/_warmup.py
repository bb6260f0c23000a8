from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any
from typing import TYPE_CHECKING

from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from optuna_ext._checks import check_int
from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


@dataclass
class _Turn:
    """The lowest trial number known to belong to ``then``: all later ones do, too."""

    first: float = math.inf


class WarmupSampler(BaseSampler):
    """Sampler that hands the study's first trials to one sampler and the rest to another.

    A trial belongs to ``first`` if fewer than ``n`` trials before it are running or finished, in
    whatever state; trials that only wait in the queue do not count. Trial numbers decide, so any
    number of workers together give ``first`` its ``n`` trials, and a restarted one goes on.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import SobolSampler, WarmupSampler

            sampler = WarmupSampler(SobolSampler(seed=0), 16, optuna.samplers.TPESampler(seed=0))
            study = optuna.create_study(sampler=sampler)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)

    Args:
        first:
            Sampler of the first ``n`` trials, for example a space-filling one.
        n:
            Number of trials for ``first``, ``n >= 0``.
        then:
            Sampler of all other trials. A sampler with a start-up phase of its own, such as
            :class:`~optuna.samplers.TPESampler`, counts the trials of ``first`` towards it.

    Raises:
        TypeError: If ``first`` or ``then`` is not a sampler, or ``n`` is not an integer.
        ValueError: If ``n`` is negative.
    """

    def __init__(self, first: BaseSampler, n: int, then: BaseSampler) -> None:
        for name, sampler in (("first", first), ("then", then)):
            if not isinstance(sampler, BaseSampler):
                raise TypeError(f"`{name}` must be an Optuna sampler, but {sampler!r} was given.")
        self._n = check_int("n", n)
        self._first = first
        self._then = then
        self._owner: dict[tuple[int, int, int], BaseSampler] = {}  # of running trials
        self._turn: _host.StudyCache[_Turn] = _host.StudyCache()

    def __getstate__(self) -> tuple[BaseSampler, int, BaseSampler]:
        return self._first, self._n, self._then

    def __setstate__(self, state: tuple[BaseSampler, int, BaseSampler]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # everything else is a cache

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._first}, {self._n}, {self._then})"

    def reseed_rng(self) -> None:
        self._first.reseed_rng()
        self._then.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler_of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler_of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        sampler = self._sampler_of(study, trial)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # Decided once: a queued trial may start before this one has all its parameters.
        owner = self._owner[_host.trial_key(study, trial)] = self._sampler_of(study, trial)
        owner.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._sampler_of(study, trial).after_trial(study, trial, state, values)
        self._owner.pop(_host.trial_key(study, trial), None)

    def _sampler_of(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        owner = self._owner.get(_host.trial_key(study, trial))
        return self._decide(study, trial) if owner is None else owner

    def _decide(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if trial.number < self._n:
            return self._first
        turn = self._turn.get(study, _Turn)
        if trial.number >= turn.first:
            return self._then
        waiting = _host.all_trials(study, states=(TrialState.WAITING,))
        if trial.number - sum(t.number < trial.number for t in waiting) < self._n:
            return self._first
        turn.first = trial.number
        return self._then
