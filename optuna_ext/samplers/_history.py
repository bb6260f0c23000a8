from __future__ import annotations

import abc
import threading
from typing import Any
from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from optuna_ext._checks import check_int
from optuna_ext.samplers import _host
from optuna_ext.samplers._design import DesignSampler
from optuna_ext.samplers._levels import Levels
from optuna_ext.samplers._snap import row_snap
from optuna_ext.samplers._sobol import SobolSampler
from optuna_ext.samplers._trial_table import encode
from optuna_ext.samplers._trial_table import TrialTable
from optuna_ext.space import from_unit
from optuna_ext.space import UnitSpace


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState

    from optuna_ext.moves import History

FailedTrials = Literal["ignore", "worst"]

_MAX_PROPOSALS = 8  # of the search, before a trial that always has to give way goes anywhere
_MAX_ROWS = 64  # tried in all


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

    No two trials get the same row, whatever workers, threads and storages do. A trial writes the
    row it has chosen as its plan, then reads the trials, and chooses again if the row is taken:
    by an evaluated trial, by the parameters of a running one, or by its plan. Of two trials that
    ended up with the same row, one would have written its last plan before the other one did its
    last reading, which then would have shown it. This holds even for a trial that sees nobody:
    somebody may start before it has stored its first parameter, and would know neither its row
    nor, as nobody shall wait, when it will be known. So every trial writes a plan.

    A row is chosen as a whole, and so can be compared, as soon as a trial is finished or if the
    search space is given; until then trials take different points of the start-up design. A row
    is repeated only if the search wants that, or if the space is all but used up.
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
        self._tables: _host.StudyCache[TrialTable] = _host.StudyCache()
        # Coordinates planned for running trials, for values that their distributions do not have.
        self._plans: dict[tuple[int, int, int], dict[str, float]] = {}
        self._unit_space_cache: tuple[Mapping[str, BaseDistribution], UnitSpace] = (
            {},
            UnitSpace({}),
        )

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
        space = table.space() if self._search_space is None else self._search_space
        if self._is_startup(table, trial):
            return self._startup.infer_relative_search_space(study, trial) | space
        return dict(space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        with self._lock:
            table, space = self._table(study), self._unit_space(search_space)
            row, given = self._choose_row(study, trial, table, space)
            plan = _by_name(space, row)
            self._plans[_host.trial_key(study, trial)] = plan
            params = {name: table.value(space, name, u) for name, u in plan.items()}
            return params | given

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
        return _nearest(distribution, value)

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

    def _unit_space(self, search_space: Mapping[str, BaseDistribution]) -> UnitSpace:
        known, space = self._unit_space_cache
        if [*known.items()] != [*search_space.items()]:  # columns are in this order
            space = UnitSpace({n: self._admissible(n, d) for n, d in search_space.items()})
        self._unit_space_cache = search_space, space
        return space

    def _rng(self, study: Study, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((_host.seed_of(study, self._seed), *numbers))

    def _table(self, study: Study) -> TrialTable:
        def make() -> TrialTable:
            return TrialTable(
                maximize=study.direction == StudyDirection.MAXIMIZE,
                count_failed=self._failed == "worst",
                tie=self._tie,
            )

        with self._lock:
            return self._tables.get(study, make)

    def _read(self, study: Study) -> TrialTable:
        table = self._table(study)
        with self._lock:  # also while reading: an older list must not come after a newer one
            table.update(_host.all_trials(study))
        return table

    def _is_startup(self, table: TrialTable, trial: FrozenTrial) -> bool:
        return table.n_started_before(trial.number) < self._n_startup_trials or not table.n_usable

    def _choose_row(
        self, study: Study, trial: FrozenTrial, table: TrialTable, space: UnitSpace
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return a row that no other trial has, and the values that were given for some of it.

        The class says why no other trial can come to have it.
        """
        history = table.history(space, exclude=trial.number)
        fixed = _host.fixed_params(trial)
        given: dict[str, Any] = {}
        goes_anywhere = False
        for attempt in range(_MAX_ROWS):
            goes_anywhere = goes_anywhere or attempt >= _MAX_PROPOSALS
            if goes_anywhere:
                rng = self._rng(study, trial.number, attempt)
                row, given = row_snap(space)(rng.random(space.n_dims)), {}
            else:
                row, given = self._propose(study, trial, history, space)
            is_taken = history.is_taken(row)
            is_meant = is_taken and not given and not goes_anywhere  # a search may repeat a trial
            if fixed:
                fixed_row = encode(space, fixed)
                row = np.where(np.isnan(fixed_row), row, fixed_row)
                is_taken = history.is_taken(row)
            if is_taken and not is_meant:
                goes_anywhere = True  # the same would be proposed again
                continue
            if np.isnan(row).all():  # the start-up sampler will decide
                break
            n_trials = len(table) if table.is_alone(trial.number) else None
            _host.set_trial_plan(study, trial, _by_name(space, row))
            self._read(study)
            is_alone = len(table) == n_trials and table.is_alone(trial.number)
            if is_meant or is_alone:
                break
            history = table.history(space, exclude=trial.number)
            if not history.is_taken(row):
                break
        return row, given

    def _propose(
        self, study: Study, trial: FrozenTrial, history: History, space: UnitSpace
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the search's row, and the start-up sampler's values for what it lacks."""
        from_startup: dict[str, BaseDistribution] = {}
        if len(history) and not self._is_startup(self._table(study), trial):
            rng = self._rng(study, trial.number)
            row = row_snap(space)(self._next_row(history, space, trial.number, rng))
        else:
            row = np.full(space.n_dims, np.nan)
            from_startup = self._startup.infer_relative_search_space(study, trial)
        missing = [name for name, u in zip(space.names, row.tolist(), strict=True) if u != u]
        if not missing:
            return row, {}
        if isinstance(self._startup, DesignSampler):  # none of its values depends on another one
            from_startup = {name: space.distributions[name] for name in missing}
        values = self._startup.sample_relative(study, trial, from_startup) if from_startup else {}
        given = {n: _nearest(space.distributions[n], values[n]) for n in missing if n in values}
        return np.where(np.isnan(row), encode(space, given), row), given


def _by_name(space: UnitSpace, row: np.ndarray) -> dict[str, float]:
    """Return the coordinates that a row has."""
    return {name: u for name, u in zip(space.names, row.tolist(), strict=True) if u == u}


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value to be tried that is nearest to the one given."""
    return distribution.nearest(value) if isinstance(distribution, Levels) else value
