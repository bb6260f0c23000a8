"""Which parameters a member of a population has."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
import pytest

from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import SobolSampler
from optuna_ext.moves import Mutation


if TYPE_CHECKING:
    from tests.samplers.conftest import Population


P = 6  # members of the population


def test_copied_parameters_change_as_they_should(population: Population) -> None:
    study = population.run(30 * P, sampler=population.sampler(resample_probability=0.0))
    factors = set()
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.user_attrs["member"] != trial.user_attrs["member"]:
            assert trial.params["optimizer"] == parent.params["optimizer"]
            assert trial.params["batch_size"] != parent.params["batch_size"]
            factors.add(round(trial.params["lr"] / parent.params["lr"], 6))
    assert factors == {2.0, 0.5}


def test_enqueued_parameters_win_and_take_a_turn(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler())
    good = {"lr": 1e-2, "momentum": 0.5, "batch_size": 8, "optimizer": "adam"}
    study.enqueue_trial(good)
    study.enqueue_trial({"momentum": 0.1})
    study.optimize(population.train, n_trials=P)
    study.enqueue_trial({"momentum": 0.9})
    study.optimize(population.train, n_trials=2 * P)
    assert study.trials[0].params == good
    assert study.trials[1].params["momentum"] == 0.1
    assert study.trials[P].params["momentum"] == 0.9
    assert study.trials[P].user_attrs["member"] == 0
    assert sorted(population.slots(study)) == [(g, m) for g in range(3) for m in range(P)]


def test_the_architecture_stays_with_the_weights(population: Population) -> None:
    study = population.run(
        20 * P,
        sampler=population.sampler(
            architecture=["batch_size", "optimizer"], resample_probability=1.0
        ),
    )
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        for name in ("batch_size", "optimizer"):
            assert trial.params[name] == parent.params[name]
        if parent.number != trial.number - P:
            assert trial.params["lr"] != parent.params["lr"]


def test_branches_of_a_conditional_space(population: Population) -> None:
    def branches(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        value = trial.suggest_float("x", 0, 1)
        if kind == "a":
            value += trial.suggest_float("y", -1, 1) ** 2
        if kind == "b":
            value += abs(trial.suggest_int("n", 1, 9) - 4)
        return value

    study = population.run(
        30 * P, sampler=population.sampler(resample_probability=0.5), objective=branches
    )
    switches = 0
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number == trial.number - P:
            assert trial.params == parent.params
        switches += trial.params["kind"] != parent.params["kind"]
    assert switches > 5


def test_ranges_may_change_on_the_way(population: Population) -> None:
    def changing(trial: optuna.Trial) -> float:
        late = trial.number >= 3 * P
        x = trial.suggest_int("x", 1, 4 if late else 100)
        y = trial.suggest_float("y", 0.0, 0.1 if late else 9.0)
        c = trial.suggest_categorical("c", ["a", "b"])
        return x + y + (c == "a")

    study = population.run(6 * P, objective=changing)
    for trial in study.trials[3 * P :]:
        assert trial.params["x"] <= 4
        assert trial.params["y"] <= 0.1


def test_initial_population_of_any_sampler(population: Population) -> None:
    tpe = optuna.samplers.TPESampler(seed=1, n_startup_trials=2)
    study = population.run(4 * P, sampler=population.sampler(initial_population=tpe))
    expected = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2))
    expected.optimize(population.train, n_trials=P)
    assert [t.params for t in study.trials[:P]] == [t.params for t in expected.trials]
    sobol = optuna.create_study(study_name="s", sampler=SobolSampler(seed=0))
    sobol.optimize(population.train, n_trials=P)
    assert [t.params for t in population.run(P).trials] == [t.params for t in sobol.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_initial_population_of_the_best_trials_of_a_study(
    direction: Literal["minimize", "maximize"], population: Population
) -> None:
    former = optuna.create_study(direction=direction, sampler=SobolSampler(seed=5))
    former.optimize(population.train, n_trials=20)
    former.add_trial(former.best_trial)  # which is not to be there twice
    former.enqueue_trial(former.trials[3].params)
    former.optimize(lambda trial: population.train(trial) * math.nan, n_trials=1)
    sign = -1 if direction == "maximize" else 1
    best = sorted(former.trials[:20], key=lambda t: sign * (t.value or 0.0))
    study = population.run(2 * P, sampler=population.sampler(initial_population=former))
    assert [t.params for t in study.trials[:P]] == [t.params for t in best[:P]]
    small = optuna.create_study()
    small.add_trial(former.best_trial)
    study = population.run(P, sampler=population.sampler(initial_population=small))
    assert study.trials[0].params == former.best_params
    assert len({t.params["lr"] for t in study.trials}) == P


def test_explore_by_a_function(population: Population) -> None:
    def halve(params: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"lr": params["lr"] / 2, "momentum": np.float64(rng.random()), "batch_size": 1000.4}

    study = population.run(sampler=population.sampler(explore=halve))
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number != trial.number - P:
            assert trial.params["lr"] == max(parent.params["lr"] / 2, 1e-4)
            assert trial.params["optimizer"] == parent.params["optimizer"]
            assert trial.params["batch_size"] == 64
            assert type(trial.params["momentum"]) is float


@pytest.mark.parametrize("make", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_explore_by_another_sampler(
    make: Callable[..., optuna.samplers.BaseSampler], population: Population
) -> None:
    study = population.run(
        sampler=population.sampler(explore=make(seed=0), architecture=["optimizer"])
    )
    proposed = set()
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        assert trial.params["optimizer"] == parent.params["optimizer"]
        if parent.number != trial.number - P:
            proposed.add(trial.params["lr"])
        else:
            assert trial.params == parent.params
    assert len(proposed) == 7 * 2
    assert not proposed & {t.params["lr"] for t in study.trials[:P]}


def test_explore_by_another_mutation(population: Population) -> None:
    study = population.run(
        sampler=population.sampler(explore=Mutation(factor=3.0), resample_probability=0.0)
    )
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number != trial.number - P:
            ratio = trial.params["lr"] / parent.params["lr"]
            assert ratio == pytest.approx(3.0) or ratio == pytest.approx(1 / 3)


def test_partial_fixed_parameters(population: Population) -> None:
    with pytest.warns(ExperimentalWarning):
        fixed = optuna.samplers.PartialFixedSampler({"momentum": 0.25}, population.sampler())
    study = population.run(4 * P, sampler=fixed)
    assert {trial.params["momentum"] for trial in study.trials} == {0.25}
    assert all("parent" in trial.user_attrs for trial in study.trials[P:])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"population_size": 1}, ValueError, "`population_size` must be at least 2, but got 1"),
        ({"population_size": 2.5}, TypeError, "`population_size` must be an integer"),
        ({"exploit": "best"}, ValueError, "`exploit` must be one of .*'t-test'.* got 'best'"),
        ({"explore": 1.2}, TypeError, "`explore` must be a Mutation, an Optuna sampler or a func"),
        ({"resample_probability": 1.5}, ValueError, r"`resample_probability` must be in \[0, 1\]"),
        ({"architecture": "units"}, TypeError, "`architecture` must be a collection of names"),
        ({"burn_in": -1}, ValueError, "`burn_in` must be at least 0"),
        ({"lost_after": 0.0}, ValueError, "`lost_after` must be positive, but got 0"),
        ({"initial_population": "sobol"}, TypeError, "`initial_population` must be an Optuna sam"),
        ({"first_trial": -1}, ValueError, "`first_trial` must be at least 0"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PopulationBasedTrainingSampler(**kwargs)


def test_a_study_of_several_objectives_gives_no_initial_population(population: Population) -> None:
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="`initial_population` must be a study with one objecti"):
        population.sampler(initial_population=several)
