from __future__ import annotations

import math

import numpy as np
import optuna
from optuna.trial import FixedTrial
import pytest
from scipy.optimize import rosen

from studies._functions import CONTINUOUS
from studies._functions import Continuous
from studies._functions import FUNCTIONS
from studies._functions import instance


def _loops(name: str, z: list[float]) -> float:
    """The definitions of BBOB, term by term."""
    d = len(z)
    match name:
        case "sphere":
            return sum(v**2 for v in z)
        case "ellipsoid":
            return sum(10 ** (6 * i / max(d - 1, 1)) * v**2 for i, v in enumerate(z))
        case "rastrigin":
            return sum(v**2 + 10 - 10 * math.cos(2 * math.pi * v) for v in z)
    return float(rosen(max(1.0, math.sqrt(d) / 8) * np.asarray(z) + 1)) if d > 1 else 0.0


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dims", [1, 2, 5, 11])
def test_optimum_has_the_value_0_and_nothing_is_below(name: str, dims: int) -> None:
    for seed in range(5):
        objective = instance(name, dims=dims, seed=seed)
        assert objective(FixedTrial(dict(objective.optimum))) == pytest.approx(0, abs=1e-20)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(objective, n_trials=10)
        assert study.best_value >= 0
        for trial in study.trials:
            for parameter, distribution in trial.distributions.items():
                assert objective.space[parameter] == distribution


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("dims", [1, 3, 100])
def test_continuous_functions_follow_their_definitions(name: str, dims: int) -> None:
    objective = instance(name, dims=dims, seed=7)
    x = np.random.default_rng(0).uniform(-5, 5, dims)
    z = [float(v - objective.optimum[f"x{i}"]) for i, v in enumerate(x)]
    value = objective(FixedTrial({f"x{i}": float(v) for i, v in enumerate(x)}))
    assert value == pytest.approx(_loops(name, z), rel=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_seeds_are_equal_instances_and_others_are_not(name: str) -> None:
    optima = [instance(name, dims=5, seed=seed).optimum for seed in (3, 3, 4)]
    assert optima[0] == optima[1] != optima[2]


def test_optimum_is_not_what_a_sampler_with_the_same_seed_draws_first() -> None:
    shift = list(instance("sphere", dims=5, seed=3).optimum.values())
    for drawn in (
        np.random.default_rng(3).uniform(-4, 4, 5),
        np.random.RandomState(3).uniform(-4, 4, 5),
    ):
        assert not np.isclose(shift, drawn).any()


def test_every_parameter_of_the_mixed_function_matters() -> None:
    objective = instance("mixed", dims=6, seed=1)
    names = {type(distribution).__name__ for distribution in objective.space.values()}
    assert names == {"FloatDistribution", "IntDistribution", "CategoricalDistribution"}
    others = {"x0": 4.9, "x1": 1e-1, "x2": 20, "x3": "a", "x4": 512, "x5": 0.9}
    others |= {"x3": next(c for c in "abcd" if c != objective.optimum["x3"])}
    for name, value in others.items():
        assert objective(FixedTrial({**objective.optimum, name: value})) > 1e-4


def test_conditional_function_asks_only_for_what_exists() -> None:
    objective = instance("conditional", dims=4, seed=0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=40)
    shapes = set()
    for trial in study.trials:
        depth, optimizer = trial.params["depth"], trial.params["optimizer"]
        expected = {"depth", "optimizer", "lr", *(f"width{i}" for i in range(depth))}
        expected |= {"momentum"} if optimizer == "sgd" else set()
        assert set(trial.params) == expected
        shapes.add((depth, optimizer))
    assert len(shapes) == 8


def test_shifts_keep_the_optimum_inside() -> None:
    for name, function in CONTINUOUS.items():
        shifts = [
            value
            for seed in range(50)
            for value in Continuous(function, dims=4, seed=seed).optimum.values()
        ]
        reach = 3 if name == "rosenbrock" else 4
        assert 0.9 * reach < max(shifts) < reach
        assert -reach < min(shifts) < -0.9 * reach
