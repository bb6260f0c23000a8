from __future__ import annotations

from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers.nsgaii import BaseCrossover

from optuna_ext._checks import check_int
from optuna_ext.moves import evolution
from optuna_ext.moves.selection import Selection
from optuna_ext.moves.selection import SELECTIONS
from optuna_ext.moves.variation import Mutation
from optuna_ext.moves.variation import uniform_crossover
from optuna_ext.points._checks import LAST
from optuna_ext.samplers import _host
from optuna_ext.samplers._history import FailedTrials
from optuna_ext.samplers._history import HistorySampler
from optuna_ext.samplers._snap import column_snap
from optuna_ext.samplers._snap import scale_of


if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from optuna_ext.moves import History
    from optuna_ext.moves.variation import Crossover
    from optuna_ext.space import UnitSpace

Replacement = Literal["elitism", "generational", "tournament"]


class EvolutionarySampler(HistorySampler):
    """Sampler that breeds trials from the best trials so far.

    A population of ``population_size`` trials survives, some of them are selected as parents, and
    the new trial takes each parameter from one of the parents, with one change on average. The
    defaults are a greedy steady-state strategy for studies of some ten to some hundred trials:
    the best trials survive, and the best quarter of them are the parents. For long studies of
    rugged objectives, a larger population and ``selection="tournament"`` search more widely.

    Changes know the space: a number moves on its own scale, linear or logarithmic, by steps from
    a thirty-second to half of its range, and by one value at least; a choice becomes another one.
    No trial repeats another one, finished or running, before the space is all but used up.

    In a conditional space a trial inherits what its branch needs: a parameter that its parents do
    not have comes from the best trial that has it, or else from the start-up sampler.

    A trial is a function of the seed, its number and the stored trials. So a study goes on in a
    new process as if it had not been interrupted, and any number of workers can join. Nobody ever
    waits: what is running is not a parent yet.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import EvolutionarySampler


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
                optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
                if optimizer == "sgd":
                    momentum = trial.suggest_float("momentum", 0.0, 0.99)
                    return abs(lr - 1e-2) + abs(momentum - 0.9)
                return abs(lr - 1e-3) + 0.1


            study = optuna.create_study(sampler=EvolutionarySampler(seed=0))
            study.optimize(objective, n_trials=40)

    Args:
        population_size:
            Number of trials that survive, at least 2.
        selection:
            How parents are drawn from the survivors, by value: ``"truncation"`` (the best quarter
            alike), ``"tournament"`` (the better of two), ``"rank"`` (linearly by rank) or
            ``"softmax"`` (exponentially by value, in standard deviations; a probability
            *inversely proportional* to a loss would be undefined for losses that are not
            positive). Or a function from ascending values to probabilities, such as those of
            :mod:`optuna_ext.moves.selection` with other arguments.
        crossover:
            A crossover of :mod:`optuna.samplers.nsgaii` for the numbers; choices always come from
            one of the parents. The default, :obj:`None`, takes every parameter from one of two
            parents.
        crossover_prob:
            Probability of a crossover, in ``[0, 1]``; a trial without has one parent.
        mutation:
            A :class:`~optuna_ext.moves.Mutation`, if it should be other than described above:
            ``Mutation(factor=1.25)`` multiplies positive numbers by 1.25 or by 0.8, as
            population-based training does, and ``Mutation(choices="neighbor")`` moves choices
            along their list.
        mutation_prob:
            Probability of each parameter to change, in ``[0, 1]``. The default, :obj:`None`, is
            one change per trial on average.
        replacement:
            Who survives. ``"elitism"``: the ``n_elites`` best of all trials, and for the rest the
            youngest. ``"generational"``: the youngest only. ``"tournament"``: each trial meets
            the survivor in its place, which is its number modulo ``population_size``, and the
            better one stays.
        n_elites:
            Number of best trials that always survive, in ``[0, population_size]``; with
            ``"elitism"`` only. The default, :obj:`None`, is all.
        steady_state:
            Whether a trial counts as soon as it is finished, which suits slow and uneven trials.
            Otherwise trials breed in generations of ``population_size`` consecutive numbers, and
            parents are of earlier generations.
        n_startup_trials:
            Number of trials that ``startup_sampler`` makes. The default, :obj:`None`, is
            ``population_size``.
        startup_sampler:
            Sampler of the initial population and of parameters that no trial has had. The
            default, :obj:`None`, is a :class:`~optuna_ext.SobolSampler`.
        failed:
            Whether to ``"ignore"`` failed trials or to count them as ``"worst"``, so that their
            points are not tried again. Pruned trials count with their last reported value.
        search_space:
            Distributions by name, if known. The default, :obj:`None`, takes them from the trials.
        seed:
            Seed, a non-negative integer. The default, :obj:`None`, derives it from the study's
            name, so that all workers on a study agree.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range or not one of its choices; at the first
            trial, if the study has several objectives.

    .. seealso::
        K. A. De Jong (2006), *Evolutionary Computation: A Unified Approach*, for the operators;
        E. Real et al. (2019), *Regularized evolution for image classifier architecture search*,
        AAAI, for replacing the oldest, which is ``"generational"`` in the steady state.
    """

    def __init__(
        self,
        *,
        population_size: int = 8,
        selection: str | Selection = "truncation",
        crossover: BaseCrossover | None = None,
        crossover_prob: float = 1.0,
        mutation: Mutation | None = None,
        mutation_prob: float | None = None,
        replacement: Replacement = "elitism",
        n_elites: int | None = None,
        steady_state: bool = True,
        n_startup_trials: int | None = None,
        startup_sampler: BaseSampler | None = None,
        failed: FailedTrials = "ignore",
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
    ) -> None:
        self._population_size = check_int("population_size", population_size, low=2)
        super().__init__(
            search_space=search_space,
            seed=seed,
            n_startup_trials=(
                self._population_size if n_startup_trials is None else n_startup_trials
            ),
            startup_sampler=startup_sampler,
            failed=failed,
        )
        if crossover is not None and not isinstance(crossover, BaseCrossover):
            raise TypeError(
                "`crossover` must be a crossover of optuna.samplers.nsgaii, but got "
                f"{crossover!r}."
            )
        if mutation is not None and not isinstance(mutation, Mutation):
            raise TypeError(f"`mutation` must be a Mutation, but got {mutation!r}.")
        _check_probability("crossover_prob", crossover_prob)
        if mutation_prob is not None:
            _check_probability("mutation_prob", mutation_prob)
        self._selection = _selection(selection)
        self._crossover = crossover
        self._crossover_prob = crossover_prob
        self._mutation = mutation or Mutation()
        self._mutation_prob = mutation_prob
        self._replacement = replacement
        self._n_elites = _n_elites(n_elites, replacement, self._population_size)
        self._steady_state = bool(steady_state)

    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        distributions = [space.distributions[name] for name in space.names]
        breeding = evolution.Breeding(
            selection=self._selection,
            crossover=self._crossover_of(np.array(history.ordered)),
            n_parents=self._crossover.n_parents if self._crossover else 2,
            crossover_prob=self._crossover_prob,
            mutation=self._mutation,
            mutation_prob=self._mutation_prob,
        )
        return evolution.breed(
            history,
            self._survivors(history, number),
            breeding=breeding,
            scales=tuple(
                scale_of(distribution) if ordered else None
                for distribution, ordered in zip(distributions, history.ordered, strict=True)
            ),
            snap=column_snap(space),
            rng=rng,
        )

    def _survivors(self, history: History, number: int) -> np.ndarray:
        size = self._population_size
        if not self._steady_state:
            history = evolution.earlier_generations(history, number, size)
        if self._replacement == "tournament":
            return evolution.duels(history, size)
        return evolution.elitism(history, size, n_elites=self._n_elites)

    def _crossover_of(self, ordered: np.ndarray) -> Crossover:
        if self._crossover is None:
            return uniform_crossover
        operator = self._crossover

        def crossover(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            child = uniform_crossover(parents, rng)
            numbers = ordered & ~np.isnan(child)
            if numbers.any():
                child[numbers] = operator.crossover(
                    parents[:, numbers],
                    np.random.RandomState(rng.bit_generator),  # as Optuna has it
                    _host.SINGLE_OBJECTIVE,
                    np.tile([0.0, 1.0], (int(numbers.sum()), 1)),
                )
            return _reflected(child)

        return crossover


def _reflected(row: np.ndarray) -> np.ndarray:
    """Return the row with coordinates beyond an end of [0, 1] mirrored there."""
    mirrored: np.ndarray = np.minimum(abs((row + 1) % 2 - 1), LAST)
    return mirrored


def _selection(selection: str | Selection) -> Selection:
    if callable(selection):
        return selection
    if selection not in SELECTIONS:
        raise ValueError(
            f"`selection` must be one of {tuple(SELECTIONS)} or a function, but got {selection!r}."
        )
    return SELECTIONS[selection]


def _n_elites(n_elites: int | None, replacement: Replacement, population_size: int) -> int:
    if replacement not in get_args(Replacement):
        raise ValueError(
            f"`replacement` must be one of {get_args(Replacement)}, but got {replacement!r}."
        )
    if replacement != "elitism":
        if n_elites is not None:
            raise ValueError(
                "`n_elites` must be None unless `replacement` is 'elitism', but got "
                f"{n_elites} with {replacement!r}."
            )
        return 0
    if n_elites is None:
        return population_size
    return check_int("n_elites", n_elites, high=population_size)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` must be in [0, 1], but got {value}.")
