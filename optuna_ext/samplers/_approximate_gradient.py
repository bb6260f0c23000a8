from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
import math
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import IntDistribution

from optuna_ext._checks import check_int
from optuna_ext.moves.gradients import GRADIENTS
from optuna_ext.moves.local_optima import local_optima
from optuna_ext.moves.neighborhood import Neighborhood
from optuna_ext.moves.neighborhood import next_row
from optuna_ext.moves.neighborhood import POLLS
from optuna_ext.samplers._history import HistorySampler
from optuna_ext.samplers._levels import check_levels
from optuna_ext.samplers._levels import derive_levels
from optuna_ext.samplers._levels import fit_levels
from optuna_ext.samplers._snap import column_snap
from optuna_ext.space import n_values
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from optuna_ext.moves import History
    from optuna_ext.moves.gradients import Gradient
    from optuna_ext.moves.neighborhood import PollKind
    from optuna_ext.samplers._history import FailedTrials
    from optuna_ext.space import UnitSpace

_MAX_LEVELS = 512  # of an integer; with more, steps are shares of its range


@dataclass(frozen=True)
class Incumbent:
    """A local optimum: a trial that none of its neighbors beats.

    Attributes:
        number: The trial's number.
        params: Its parameters.
        value: Its value; where evaluations were repeated, their mean.
        step: The smallest step, as a share of the ranges, at which all neighbors are evaluated.
        n_trials: How many trials the study had when the last neighbor was evaluated.
    """

    number: int
    params: dict[str, Any]
    value: float
    step: float
    n_trials: int


class ApproximateGradientSampler(HistorySampler):
    """Sampler that improves the best trial step by step, in the most promising directions.

    After a few spread-out trials, the sampler polls the neighbors of the best one: points that
    differ in one parameter, by a step up or down or by another choice. An approximate gradient,
    fitted to the trials so far, says which neighbor to try first. After a success it first dares
    to change several parameters at once and to go on in the direction of the success. When all
    neighbors have failed the step is halved; from then on, if all parameters are continuous and
    at most six, every third trial goes to the minimizer of a quadratic model nearby. Around a
    region that yields nothing, every third trial goes to the next best region. No point is
    evaluated twice.

    Numbers are seen on their own scale, linear or logarithmic; a step is at least one value.
    Choices that are increasing or decreasing numbers are neighbors in that order, all other
    choices are neighbors of each other. In a conditional space, a neighbor in another branch gets
    the best values known there, and every branch gets its share of trials, the better its best
    trial, the more.

    Any number of trials may run at once: each takes the best point of the poll that nobody else
    has, and late results count when they arrive. What is proposed follows from the seed and the
    trials in storage, so a study goes on in a new process as if it had not been interrupted.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import ApproximateGradientSampler


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
                width = trial.suggest_int("width", 8, 512, log=True)
                optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
                return abs(lr - 1e-3) * 100 + abs(width - 100) / 100 + (optimizer == "sgd")


            sampler = ApproximateGradientSampler(levels={"width": [16, 64, 100, 256]}, seed=0)
            study = optuna.create_study(sampler=sampler)
            study.optimize(objective, n_trials=40)
            print(sampler.incumbents(study))

    Args:
        levels:
            For some parameters the values to try, two or more. The neighbors of a value are those
            beside it in the list. Numbers are sorted; for choices the list's order counts.
        n_levels:
            Number of values, from end to end on the parameter's scale, to which all other numeric
            parameters are restricted that have more. The default, :obj:`None`, restricts none: a
            continuous parameter's mesh is refined by halving the step.
        gradient:
            How a poll is ordered: ``"ridge"`` (kernel ridge regression on the trials so far),
            ``"simplex"`` (a plane through the nearest trials), ``"central"`` (central differences
            along the axes), ``"smoothing"`` (Gaussian smoothing), or ``"none"``, the direction of
            the last success and then chance.
        poll:
            ``"opportunistic"`` goes on from the first improvement; ``"complete"`` evaluates all
            neighbors first and goes on from the best.
        initial_step:
            First step, as a share of each parameter's range, in ``(0, 1]``.
        min_step:
            Step at which a continuous parameter is not refined any more.
        tie_break:
            Name of a user attribute, such as a validation loss, of which the smaller value wins
            among trials of equal value. Pays where the objective is coarse, such as an accuracy
            on few examples.
        n_repeats:
            How many times the best point is evaluated, and its values averaged, before the search
            goes on from it. More than 1 for noisy objectives.
        n_startup_trials:
            Number of trials that ``startup_sampler`` makes, enqueued trials included.
        startup_sampler:
            Sampler of the first trials and of parameters that no trial has had. The default,
            :obj:`None`, is a :class:`~optuna_ext.SobolSampler`.
        failed:
            ``"ignore"`` forgets failed trials, so that their points may be tried again;
            ``"worst"`` counts them as worse than all others. Pruned trials count with their last
            reported value.
        search_space:
            Distributions by name, if known. The default, :obj:`None`, takes them from the trials.
        seed:
            Seed, a non-negative integer. The default, :obj:`None`, derives it from the study's
            name, so that all workers on a study agree.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range or not one of its choices; at a trial, if
            a level is not a value of its parameter, or the study has several objectives.

    .. seealso::
        P. Mahto, R. Chauhan, *An approximate gradient based hyper-parameter optimization in a
        neural network architecture*; V. Torczon (1997), *On the convergence of pattern search
        algorithms*, SIAM J. Optim. 7(1); A. Custodio, L. Vicente (2007), *Using sampling and
        simplex derivatives in pattern search methods*, SIAM J. Optim. 18(2).
    """

    def __init__(
        self,
        *,
        levels: Mapping[str, Sequence[Any]] | None = None,
        n_levels: int | None = None,
        gradient: Gradient = "ridge",
        poll: PollKind = "opportunistic",
        initial_step: float = 0.25,
        min_step: float = 2.0**-12,
        tie_break: str | None = None,
        n_repeats: int = 1,
        n_startup_trials: int = 12,
        startup_sampler: BaseSampler | None = None,
        failed: FailedTrials = "ignore",
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
    ) -> None:
        _check_choice("gradient", gradient, GRADIENTS)
        _check_choice("poll", poll, POLLS)
        if not 0.0 < initial_step <= 1.0:
            raise ValueError(f"`initial_step` must be in (0, 1], but got {initial_step}.")
        if not 0.0 < min_step <= initial_step:
            raise ValueError(
                f"`min_step` must be in (0, `initial_step`], `initial_step` is {initial_step}, "
                f"but got {min_step}."
            )
        if tie_break is not None and not isinstance(tie_break, str):
            raise TypeError(
                f"`tie_break` must be the name of a user attribute, but got {tie_break!r}."
            )
        super().__init__(
            search_space=search_space,
            seed=seed,
            n_startup_trials=n_startup_trials,
            startup_sampler=startup_sampler,
            failed=failed,
        )
        self._levels = check_levels(levels)
        self._n_levels = None if n_levels is None else check_int("n_levels", n_levels, low=2)
        self._tie_break = tie_break
        self._search = Neighborhood(
            levels=(),
            gradient=gradient,
            poll=poll,
            initial_step=initial_step,
            min_step=min_step,
            n_repeats=check_int("n_repeats", n_repeats, low=1),
        )
        self._search_cache: tuple[UnitSpace, Neighborhood] | None = None
        if search_space is not None:
            for name in self._levels:
                if name not in search_space:
                    raise ValueError(
                        f"`levels` must be of parameters in `search_space`, which are "
                        f"{list(search_space)}, but got {name!r}."
                    )
            self._unit_space(search_space)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_search_cache": None}

    def incumbents(self, study: Study) -> list[Incumbent]:
        """Return the local optima that have been found, the best first.

        Args:
            study: A study, optimized by whatever sampler.

        Returns:
            Every trial whose neighbors, at some step, have all been evaluated and none of which
            is better.
        """
        table = self._read(study)
        space = self._unit_space(
            {n: d for n, d in (self._search_space or table.space()).items() if not d.single()}
        )
        history = table.history(space, exclude=-1)
        return [
            Incumbent(
                number=optimum.number,
                params=dict(table.trial(optimum.number).params),
                value=-optimum.value if table.maximize else optimum.value,
                step=optimum.step,
                n_trials=optimum.n_trials,
            )
            for optimum in local_optima(history, self._search_in(space))
        ]

    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        del number
        return next_row(history, self._search_in(space), rng)

    def _tie(self, trial: FrozenTrial) -> float:
        if self._tie_break is None:
            return 0.0
        tie = trial.user_attrs.get(self._tie_break)
        return float(tie) if isinstance(tie, int | float) else math.inf

    def _admissible(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        if name in self._levels:
            return fit_levels(name, self._levels[name], distribution)
        if self._n_levels is not None:
            return derive_levels(distribution, self._n_levels)
        return distribution

    def _search_in(self, space: UnitSpace) -> Neighborhood:
        if self._search_cache is None or self._search_cache[0] is not space:
            levels = tuple(_coordinates(space.distributions[name]) for name in space.names)
            snap = column_snap(space)
            self._search_cache = space, replace(self._search, levels=levels, snap=snap)
        return self._search_cache[1]


def _coordinates(distribution: BaseDistribution) -> np.ndarray | None:
    """Return the coordinates of all values of a distribution, None if they are too many."""
    count = n_values(distribution)
    if count is None or count > _MAX_LEVELS:
        return None
    if isinstance(distribution, IntDistribution) and distribution.log:
        values = range(distribution.low, distribution.high + 1)
        return np.array([to_unit(distribution, value) for value in values])
    return (np.arange(count) + 0.5) / count


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, but got {value!r}.")
