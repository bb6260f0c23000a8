from __future__ import annotations

import abc
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler

from optuna_ext._checks import check_int
from optuna_ext.points import PointSequence
from optuna_ext.samplers import _host
from optuna_ext.samplers._columns import ColumnMap
from optuna_ext.space import from_unit
from optuna_ext.space import UnitSpace


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence
    from typing import Literal

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState


ROW_ATTR = "design_row"  # user attribute of the trials whose row is not their number


class DesignSampler(BaseSampler, abc.ABC):
    """Base of the samplers that place trials by a design, whatever the objective returns.

    A parameter's value is the coordinate of the trial's row in the parameter's column. The row is
    the trial's number, which every storage hands out once and in order, so workers never meet and
    a study goes on where it stopped; see :class:`~optuna_ext.samplers._columns.ColumnMap` for the
    column. Nothing is remembered but caches.

    Everything goes through :meth:`sample_independent`: a coordinate depends on no other one, so
    there is nothing relative to infer, and conditional, changing and enqueued parameters are
    ordinary cases.
    """

    def __init__(
        self,
        *,
        search_space: Mapping[str, BaseDistribution] | None,
        seed: int | None,
        first_trial: int,
    ) -> None:
        if seed is not None:
            check_int("seed", seed)
        check_int("first_trial", first_trial)
        self._space = UnitSpace({} if search_space is None else search_space)
        self._seed = seed
        self._first_trial = first_trial
        self._columns = ColumnMap(self._space.names)
        # Rows of running trials whose row is not their number, as ROW_ATTR says: the trial that
        # is handed to the hooks was read before the attribute was written.
        self._other_rows: dict[tuple[int, int, int], int] = {}

    @abc.abstractmethod
    def _coordinate(
        self, study: Study, trial: FrozenTrial, seed: int, row: int, column: int
    ) -> float:
        """Return the design's coordinate in ``[0, 1)``, ``row >= 0``."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        del study, trial
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        columns = self._columns.columns(study, trial, search_space)
        return {
            name: self._sample(study, trial, columns[name], distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        column = self._columns.columns(study, trial, (param_name,))[param_name]
        return self._sample(study, trial, column, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # A trial retried after its worker died keeps what it had suggested; the rest of its
        # parameters must come from the row it had then.
        original = _host.retried_number(trial)
        if original is not None and ROW_ATTR not in trial.user_attrs:
            self._set_row(study, trial, original - self._first_trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        del state, values
        self._other_rows.pop(_host.trial_key(study, trial), None)

    def _set_row(self, study: Study, trial: FrozenTrial, row: int) -> None:
        """Give the trial another row than its number, in this process and all others."""
        self._other_rows[_host.trial_key(study, trial)] = row
        _host.set_trial_user_attr(study, trial, ROW_ATTR, row)

    def _sample(
        self, study: Study, trial: FrozenTrial, column: int, distribution: BaseDistribution
    ) -> Any:
        seed = _host.seed_of(study, self._seed)
        row = trial.user_attrs.get(ROW_ATTR, trial.number - self._first_trial)
        if self._other_rows:
            row = self._other_rows.get(_host.trial_key(study, trial), row)
        if row < 0:  # before the design: any point will do, but the same one for everybody
            u = np.random.default_rng((seed, trial.number, column)).random()
        else:
            u = self._coordinate(study, trial, seed, row, column)
        return from_unit(distribution, u)


class SequenceSampler(DesignSampler):
    """A design without an end."""

    _kind: Literal["sobol", "halton"]

    def __init__(
        self,
        *,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        scramble: bool = True,
        first_trial: int = 0,
    ) -> None:
        super().__init__(search_space=search_space, seed=seed, first_trial=first_trial)
        self._scramble = bool(scramble)
        self._sequence: tuple[int, PointSequence] | None = None  # of the last study's seed

    def _coordinate(
        self, study: Study, trial: FrozenTrial, seed: int, row: int, column: int
    ) -> float:
        del study, trial
        cached = self._sequence
        if cached is None or cached[0] != seed:
            points = PointSequence(self._kind, seed=seed, scramble=self._scramble)
            self._sequence = cached = (seed, points)
        return cached[1].value(row, column)
