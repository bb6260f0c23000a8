from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any
import warnings

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.samplers import nsgaii
from optuna.trial import TrialState
import pytest

from optuna_ext import EvolutionarySampler
from optuna_ext.moves import Mutation
from optuna_ext.moves.selection import tournament


Params = list[dict[str, Any]]
Factory = Callable[[], BaseSampler]
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "depth": IntDistribution(1, 6),
    "width": IntDistribution(4, 512, log=True),
    "act": CategoricalDistribution(["relu", "tanh", "gelu"]),
}
CROSSOVERS = [
    nsgaii.BLXAlphaCrossover,
    nsgaii.SBXCrossover,
    nsgaii.SPXCrossover,
    nsgaii.UNDXCrossover,
    nsgaii.UniformCrossover,
    nsgaii.VSBXCrossover,
]


def suggest(trial: optuna.Trial) -> tuple[float, int, int, str]:
    return (
        trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        trial.suggest_int("depth", 1, 6),
        trial.suggest_int("width", 4, 512, log=True),
        trial.suggest_categorical("act", ["relu", "tanh", "gelu"]),
    )


def objective(trial: optuna.Trial) -> float:
    lr, depth, width, act = suggest(trial)
    loss = (math.log10(lr) + 3) ** 2 + (depth - 4) ** 2 / 4 + (math.log2(width) - 6) ** 2 / 4
    return loss + (act != "gelu")


def run(sampler: BaseSampler, n_trials: int = 30, **kwargs: Any) -> Params:
    study = optuna.create_study(study_name="s", sampler=sampler, **kwargs)
    study.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("replacement", ["elitism", "generational", "tournament"])
@pytest.mark.parametrize("steady_state", [True, False])
def test_finds_good_trials(replacement: Any, steady_state: bool) -> None:
    def best(sampler: BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=60)
        return study.best_value

    make = functools.partial(
        EvolutionarySampler, replacement=replacement, steady_state=steady_state
    )
    evolved = [best(make(seed=seed)) for seed in range(5)]
    random = [best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(10)]
    assert np.median(evolved) < np.median(random)


def test_the_defaults_are_far_ahead_of_random() -> None:
    """100 evolved trials against the best of 1000 random ones."""
    studies = []
    for seed in range(5):
        study = optuna.create_study(sampler=EvolutionarySampler(seed=seed))
        study.optimize(objective, n_trials=100)
        studies.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=1000)
    assert np.median(studies) < study.best_value


def test_without_mutation_genes_are_those_of_the_initial_population() -> None:
    initial = run(EvolutionarySampler(seed=0), 8)
    sampler = EvolutionarySampler(seed=0, mutation_prob=0.0)
    for params in run(sampler, 30)[8:]:
        assert all(any(p[k] == pytest.approx(v) for p in initial) for k, v in params.items())


def test_the_initial_population_is_the_samplers() -> None:
    expected = run(optuna.samplers.RandomSampler(seed=5), 12)
    sampler = EvolutionarySampler(
        n_startup_trials=12, startup_sampler=optuna.samplers.RandomSampler(seed=5)
    )
    assert run(sampler, 12) == expected


def test_generations_do_not_see_each_other() -> None:
    """Within a generation, results make no difference."""

    def generation(values: list[float]) -> Params:
        sampler = EvolutionarySampler(seed=0, population_size=4, steady_state=False)
        study = optuna.create_study(sampler=sampler)
        for value in values:
            trial = study.ask()
            suggest(trial)
            study.tell(trial, value)
        return [trial.params for trial in study.trials]

    a = generation([4, 3, 2, 1, 0, 0, 0, 0, 0])
    b = generation([4, 3, 2, 1, 9, 8, 7, 6, 0])
    assert a[:8] == b[:8]
    assert a[8] != b[8]


def test_pruned_trials_count_and_failed_ones_on_demand() -> None:
    def params(state: TrialState, failed: Any = "ignore") -> Params:
        study = optuna.create_study(sampler=EvolutionarySampler(seed=0, failed=failed))
        for number in range(24):
            trial = study.ask()
            value = suggest(trial)[0]
            if number % 3:
                study.tell(trial, value)
            elif state == TrialState.PRUNED:
                trial.report(value, step=1)
                study.tell(trial, state=state)
            elif state == TrialState.COMPLETE:
                study.tell(trial, value)
            else:
                study.tell(trial, state=state)
        return [trial.params for trial in study.trials]

    assert params(TrialState.PRUNED) == params(TrialState.COMPLETE)
    ignored, worst = params(TrialState.FAIL), params(TrialState.FAIL, "worst")
    assert ignored != worst
    assert len({str(p) for p in worst}) == 24


def test_values_that_are_not_numbers_are_worst() -> None:
    def troubled(trial: optuna.Trial) -> float:
        value = objective(trial)
        return math.inf if trial.params["act"] == "relu" else value

    study = optuna.create_study(sampler=EvolutionarySampler(seed=0))
    study.optimize(troubled, n_trials=60)
    late = [trial.params["act"] for trial in study.trials[30:]]
    assert late.count("relu") < 10
    assert study.best_value < 1


def test_no_trial_repeats_another() -> None:
    """5 x 3 x 4 points, most of them tried in batches of 8, running or finished."""

    def small(trial: optuna.Trial) -> float:
        x, a = trial.suggest_int("x", 1, 5), trial.suggest_categorical("a", ["u", "v", "w"])
        return x + len(a) + trial.suggest_float("y", 0.0, 0.3, step=0.1)

    study = optuna.create_study(sampler=EvolutionarySampler(seed=0))
    for _ in range(6):
        trials = [study.ask() for _ in range(8)]
        values = [small(trial) for trial in trials]
        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value)
    later = [tuple(trial.params.values()) for trial in study.trials[8:]]
    assert len(set(later)) == 40
    assert not set(later) & {tuple(trial.params.values()) for trial in study.trials[:8]}


def conditional(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("optimizer", ["sgd", "adam", "none"]) == "sgd":
        return (trial.suggest_float("momentum", 0.0, 0.99) - 0.9) ** 2
    if trial.params["optimizer"] == "adam":
        beta = trial.suggest_float("beta", 0.0, 0.99)
        return (beta - 0.5) ** 2 + (trial.suggest_int("delay", 1, 9) - 3) ** 2 + 0.5
    return 2.0


def test_conditional_space() -> None:
    study = optuna.create_study(sampler=EvolutionarySampler(seed=0))
    study.optimize(conditional, n_trials=60)
    assert study.best_value < 1e-3
    branches = [tuple(trial.params) for trial in study.trials]
    assert set(branches) == {
        ("optimizer", "momentum"),
        ("optimizer", "beta", "delay"),
        ("optimizer",),
    }
    assert branches[20:].count(("optimizer",)) <= 1  # a branch without parameters has one point


@pytest.mark.parametrize("crossover", CROSSOVERS)
def test_optunas_crossovers(crossover: Callable[[], nsgaii.BaseCrossover]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        operator = crossover()
    sampler = EvolutionarySampler(seed=0, crossover=operator, search_space=SPACE)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.HyperbandPruner())
    study.optimize(objective, n_trials=60)
    assert study.best_value < 1.0
    for trial in study.trials:
        for name, value in trial.params.items():
            assert SPACE[name]._contains(SPACE[name].to_internal_repr(value))


def test_selection_may_be_a_function() -> None:
    pressed = functools.partial(tournament, size=5)
    params = run(EvolutionarySampler(seed=0, selection=pressed))
    assert params == run(EvolutionarySampler(seed=0, selection=pressed))
    assert params != run(EvolutionarySampler(seed=0, selection="tournament"))


def test_mutation_may_be_by_factors() -> None:
    sampler = EvolutionarySampler(seed=0, mutation=Mutation(factor=1.25), crossover_prob=0.0)
    params = run(sampler, 40)
    for i, child in enumerate(params[8:], start=8):
        ratios = [abs(math.log(child["lr"] / parent["lr"])) for parent in params[:i]]
        assert any(r == pytest.approx(0) or r == pytest.approx(math.log(1.25)) for r in ratios)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"population_size": 1}, ValueError, "`population_size` must be at least 2, but got 1"),
        ({"population_size": 2.5}, TypeError, "`population_size` must be an integer"),
        ({"selection": "best"}, ValueError, "`selection` must be one of .*'rank'.* got 'best'"),
        ({"crossover": "sbx"}, TypeError, "`crossover` must be a crossover of .* got 'sbx'"),
        (
            {"crossover_prob": 1.1},
            ValueError,
            r"`crossover_prob` must be in \[0, 1\], but got 1.1",
        ),
        ({"mutation": 0.1}, TypeError, "`mutation` must be a Mutation, but got 0.1"),
        ({"mutation_prob": -1}, ValueError, r"`mutation_prob` must be in \[0, 1\], but got -1"),
        ({"replacement": "all"}, ValueError, "`replacement` must be one of .* but got 'all'"),
        ({"n_elites": 9}, ValueError, "`n_elites` must be at most 8, but got 9"),
        (
            {"n_elites": 2, "replacement": "tournament"},
            ValueError,
            "`n_elites` must be None unless `replacement` is 'elitism'",
        ),
        ({"n_startup_trials": -1}, ValueError, "`n_startup_trials` must be at least 0"),
        ({"startup_sampler": "sobol"}, TypeError, "`startup_sampler` must be an Optuna sampler"),
        ({"failed": "drop"}, ValueError, "`failed` must be one of .* but got 'drop'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EvolutionarySampler(**kwargs)
