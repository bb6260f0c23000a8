"""Searches on the decision boundaries of Auto-Tune, with the same training steps for each.

The six cases are three data sets times the networks 2-3-1 and 2-5-5-1 (Jacobson & Gonzalez 2020),
corrected: see ``objectives.boundaries``. A search may train ``members`` networks for 350 steps, or
any other way of spending as many.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
import functools
from typing import Any
from typing import Literal

import optuna
from optuna.pruners import BasePruner
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.samplers import RandomSampler
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
from torch import nn
from torch.optim import Optimizer

from objectives import boundaries
from objectives.training import fit
from objectives.training import Recipe
from objectives.training import Task
from optuna_ext import CheckpointStore
from optuna_ext import HypergradientAdam
from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import SobolSampler
from optuna_ext import SuccessiveHalving


STEPS = 350  # of a whole training, as in the paper


@dataclass(frozen=True)
class Case:
    """A data set and a network.

    Attributes:
        dataset: 1, 2 or 3.
        net: The network.
    """

    dataset: int
    net: Literal["simple", "three-layer"]


CASES = tuple(Case(i, net) for i in (1, 2, 3) for net in ("simple", "three-layer"))


@dataclass(frozen=True)
class Budget:
    """What a search may train.

    Attributes:
        members: As many networks, or what costs as much.
        intervals: Into how many parts a training of 350 steps is divided.
    """

    members: int
    intervals: int

    @property
    def steps_per_interval(self) -> int:
        """Steps between two values."""
        return STEPS // self.intervals


@dataclass(frozen=True)
class Outcome:
    """What came of a search.

    Attributes:
        method: Name of the search.
        case: What was searched.
        seed: Of the search and of the first weights.
        test: Accuracy on the test points of the network that is best on the validation points.
        steps: Training steps spent.
        spread: Largest over smallest learning rate of the networks trained last, as many as there
            are members.
    """

    method: str
    case: Case
    seed: int
    test: float
    steps: int
    spread: float


def run_all(
    budget: Budget, seeds: Sequence[int], methods: Sequence[str], cases: Sequence[Case] = CASES
) -> Iterator[Outcome]:
    """Yield the outcomes of all searches, seed by seed."""
    for seed in seeds:
        for case in cases:
            for method in methods:
                yield run_one(method, case, budget, seed)


def run_one(method: str, case: Case, budget: Budget, seed: int) -> Outcome:
    """Run a search until its steps are spent."""
    task = _task(case, budget.steps_per_interval, is_tuned=method == "hypergradient")
    objective = _objective(task, budget, seed, in_intervals=method == "pbt")
    study = METHODS[method](objective, budget, seed)
    best = study.best_trial
    last = [t.params["lr"] for t in study.trials[-budget.members :]]
    return Outcome(
        method=method,
        case=case,
        seed=seed,
        test=best.user_attrs["test_accuracy"],
        steps=_n_intervals(study) * budget.steps_per_interval,
        spread=max(last) / min(last),
    )


Objective = Callable[[Trial], float]


def _pbt(objective: Objective, budget: Budget, seed: int) -> Study:
    sampler = PopulationBasedTrainingSampler(population_size=budget.members, seed=seed)
    study = _study(sampler)
    study.optimize(objective, n_trials=budget.members * budget.intervals)
    return study


def _random(objective: Objective, budget: Budget, seed: int) -> Study:
    study = _study(RandomSampler(seed=seed))
    study.optimize(objective, n_trials=budget.members)
    return study


def _tpe(objective: Objective, budget: Budget, seed: int) -> Study:
    sampler = TPESampler(seed=seed, n_startup_trials=max(2, budget.members // 3))
    study = _study(sampler)
    study.optimize(objective, n_trials=budget.members)
    return study


def _halving(objective: Objective, budget: Budget, seed: int) -> Study:
    halving = SuccessiveHalving(
        max_resource=budget.intervals, base_sampler=SobolSampler(seed=seed), seed=seed
    )
    study = _study(halving.sampler, halving.pruner)

    def stop_when_spent(study: Study, trial: FrozenTrial) -> None:
        del trial
        is_spent = _n_intervals(study) >= budget.members * budget.intervals
        if is_spent and study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            study.stop()

    study.optimize(objective, callbacks=[stop_when_spent])
    return study


def _study(sampler: BaseSampler, pruner: BasePruner | None = None) -> Study:
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or NopPruner())


METHODS: dict[str, Callable[[Objective, Budget, int], Study]] = {
    "pbt": _pbt,
    "random": _random,
    "sobol + halving": _halving,
    "tpe": _tpe,
    "hypergradient": _random,  # of networks that tune their own learning rates
}


def _objective(task: Task, budget: Budget, seed: int, *, in_intervals: bool) -> Objective:
    store = CheckpointStore(":memory:")

    def objective(trial: Trial) -> float:
        return fit(
            trial,
            task,
            epochs=budget.intervals,
            interval=1 if in_intervals else None,
            checkpoints=store,
            device="cpu",  # a network of 13 parameters is slower on a GPU
            seed=10_000 * seed + trial.number,  # of first weights, where nothing is inherited
        )

    return objective


@functools.cache
def _task(case: Case, steps: int, *, is_tuned: bool) -> Task:
    task = boundaries.task(dataset=case.dataset, net=case.net)

    def recipe(params: Mapping[str, Any]) -> Recipe:
        own = replace(task.recipe(params), passes_per_epoch=steps)
        return replace(own, optimizer=_self_tuned(**params)) if is_tuned else own

    return replace(task, recipe=recipe)


def _self_tuned(*, lr: float, beta1: float) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Let Adam begin with a learning rate, and follow its hypergradient (Baydin et al. 2018)."""
    return lambda weights: HypergradientAdam(weights, lr=lr, betas=(beta1, 0.999))


def _n_intervals(study: Study) -> int:
    return sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))
