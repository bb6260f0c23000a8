from __future__ import annotations

import abc
import math
import threading
from typing import Any
from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING
import weakref

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from optuna_ext._checks import check_int
from optuna_ext.samplers import _host
from optuna_ext.samplers._design import DesignSampler
from optuna_ext.samplers._levels import Levels
from optuna_ext.samplers._sobol import SobolSampler
from optuna_ext.samplers._trial_table import TrialTable
from optuna_ext.space import from_unit
from optuna_ext.space import UnitSpace


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState

    from optuna_ext.moves import History

FailedTrials = Literal["ignore", "worst"]

_PLAN = "optuna_ext:plan"  # user attribute of a running trial: where it is going
_MAX_PLANS = 16  # how often a trial gives way to others that had the same idea


class HistorySampler(BaseSampler, abc.ABC):
    """Base of the samplers that learn from the study's trials.

    A subclass gives :meth:`_next_row`, the next row of the unit cube after a
    :class:`~optuna_ext.moves.History`; this class turns trials into a history and the row into
    parameters. What it proposes is a function of the seed, the trial's number and the stored
    trials, so that workers and restarted processes need nothing but the storage.

    The search space is the given one, or else the union of what the finished trials had, each
    parameter as the latest of them had it. A trial of a conditional space is thus offered a value
    for every parameter it may ask for; one that nobody asked for before, or to which
    :meth:`_next_row` gives NaN, comes from the start-up sampler.

    Workers that are between reading the history and storing their parameters cannot see each
    other's choice. So, while other trials are running, a trial first writes its plan, then reads
    the others' (some may be finished by now) and gives way to an equal one: two trials that both
    end up with the same row would each have read the history before the other had written, which
    cannot be.
    """

    def __init__(
        self,
        *,
        search_space: Mapping[str, BaseDistribution] | None,
        seed: int | None,
        n_startup_trials: int,
        startup_sampler: BaseSampler | None,
        failed: FailedTrials,
    ) -> None:
        if seed is not None:
            check_int("seed", seed)
        if failed not in get_args(FailedTrials):
            raise ValueError(
                f"`failed` must be one of {get_args(FailedTrials)}, but got {failed!r}."
            )
        if startup_sampler is not None and not isinstance(startup_sampler, BaseSampler):
            raise TypeError(
                f"`startup_sampler` must be an Optuna sampler, but got {startup_sampler!r}."
            )
        self._n_startup_trials = check_int("n_startup_trials", n_startup_trials)
        self._search_space = None if search_space is None else dict(search_space)
        UnitSpace(self._search_space or {})  # says what cannot be resolved
        self._seed = seed
        self._failed = failed
        self._startup = startup_sampler or SobolSampler(search_space=search_space, seed=seed)
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._lock = threading.RLock()
        self._tables: weakref.WeakKeyDictionary[BaseStorage, dict[int, TrialTable]] = (
            weakref.WeakKeyDictionary()
        )
        # Coordinates planned for running trials, for values that their distributions do not have.
        self._plans: dict[tuple[int, int, int], dict[str, float]] = {}
        self._unit_space_cache: tuple[dict[str, BaseDistribution], UnitSpace] | None = None

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_lock", "_tables", "_plans", "_unit_space_cache")
        return {key: value for key, value in vars(self).items() if key not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_caches()

    @abc.abstractmethod
    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the row for trial ``number``, shape ``(space.n_dims,)``.

        ``history`` has at least one evaluated row. NaN leaves a coordinate to the start-up
        sampler.
        """

    def _tie(self, trial: FrozenTrial) -> float:
        """Return what decides between trials of equal value, the smaller the better."""
        del trial
        return 0.0

    def _admissible(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """Return the distribution of those values of a parameter that are to be tried."""
        del name
        return distribution

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._check_objectives(study)
        table = self._read(study)
        if self._is_startup(table, trial):
            return self._startup.infer_relative_search_space(study, trial)
        space = table.space() if self._search_space is None else self._search_space
        return {name: dist for name, dist in space.items() if not dist.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._lock:
            table = self._table(study)
            if self._is_startup(table, trial):
                params = self._startup.sample_relative(study, trial, search_space)
                return {n: self._admit(n, v, search_space[n]) for n, v in params.items()}
            if not search_space:
                return {}
            space = self._unit_space(search_space)
            plan = self._plan(study, trial, table, space)
            self._plans[_host.trial_key(study, trial)] = plan
            return {name: table.value(space, name, u) for name, u in plan.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._check_objectives(study)
        plan = self._plans.get(_host.trial_key(study, trial), {})
        distribution = self._admissible(param_name, param_distribution)
        if param_name in plan:  # but its value is outside this trial's range
            return from_unit(distribution, plan[param_name])
        if isinstance(self._startup, DesignSampler):  # it spreads over whatever there is
            return self._startup.sample_independent(study, trial, param_name, distribution)
        value = self._startup.sample_independent(study, trial, param_name, param_distribution)
        return self._admit(param_name, value, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._check_objectives(study)
        self._startup.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._plans.pop(_host.trial_key(study, trial), None)
        self._startup.after_trial(study, trial, state, values)

    def _check_objectives(self, study: Study) -> None:
        if len(study.directions) > 1:
            raise ValueError(
                f"`{type(self).__name__}` needs a study with one objective, but this one has "
                f"{len(study.directions)}."
            )

    def _admit(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        """Return the value to be tried that is nearest to the one given."""
        admissible = self._admissible(name, distribution)
        return admissible.nearest(value) if isinstance(admissible, Levels) else value

    def _unit_space(self, search_space: Mapping[str, BaseDistribution]) -> UnitSpace:
        if self._unit_space_cache is None or self._unit_space_cache[0] != search_space:
            space = UnitSpace({n: self._admissible(n, d) for n, d in search_space.items()})
            self._unit_space_cache = dict(search_space), space
        return self._unit_space_cache[1]

    def _rng(self, study: Study, number: int) -> np.random.Generator:
        return np.random.default_rng((_host.seed_of(study, self._seed), number))

    def _table(self, study: Study) -> TrialTable:
        storage, study_id = _host.identity(study)
        with self._lock:
            tables = self._tables.setdefault(storage, {})
            if study_id not in tables:
                tables[study_id] = TrialTable(
                    maximize=study.direction == StudyDirection.MAXIMIZE,
                    count_failed=self._failed == "worst",
                    tie=self._tie,
                    plan_key=_PLAN,
                )
            return tables[study_id]

    def _read(self, study: Study) -> TrialTable:
        table = self._table(study)
        with self._lock:  # also while reading: an older list must not come after a newer one
            table.update(_host.all_trials(study))
        return table

    def _is_startup(self, table: TrialTable, trial: FrozenTrial) -> bool:
        return table.n_started_before(trial.number) < self._n_startup_trials or not table.n_usable

    def _plan(
        self, study: Study, trial: FrozenTrial, table: TrialTable, space: UnitSpace
    ) -> dict[str, float]:
        history = table.history(space, exclude=trial.number)
        for _ in range(_MAX_PLANS):
            rng = self._rng(study, trial.number)
            row = self._next_row(history, space, trial.number, rng)
            plan = {
                name: float(u)
                for name, u in zip(space.names, row, strict=True)
                if not math.isnan(u)
            }
            # Where a plan was ever needed, a worker may start before this trial has parameters.
            if not len(history.pending_numbers) and not table.has_plans:
                break
            _host.set_trial_user_attr(study, trial, _PLAN, plan)
            known, history = history, self._read(study).history(space, exclude=trial.number)
            if known.is_taken(row) or not history.is_taken(row):
                break
        return plan
