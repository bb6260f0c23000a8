from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial
import pytest
from scipy.optimize import differential_evolution
from scipy.optimize import direct
from scipy.optimize import dual_annealing
from scipy.optimize import minimize

from optuna_ext import UnitSpace
from studies._errors import UserError
from studies._problems import Problem
from studies._problems import Settings
from studies._race import Race
from studies._race import run_one
from studies._scipy_searches import check_search
from studies._scipy_searches import search
from studies._scipy_searches import SEARCHES


Vector = npt.NDArray[np.float64]
Function = Callable[[Vector], float]

BOX = [(0.0, 1.0)] * 3
CUBE = UnitSpace({name: FloatDistribution(0, 1) for name in "xyz"})


def _slope(row: Vector) -> float:
    """A bowl whose lowest point is on the edge of the cube: bounds matter."""
    return float(np.sum((row - [0.3, 0.8, 1.2]) ** 2 * [1, 4, 9]))


class Recorder:
    """An objective that keeps what it was asked."""

    def __init__(self, function: Function = _slope) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.numbers: list[int] = []
        self._function = function

    def __call__(self, trial: BaseTrial) -> float:
        row = tuple(trial.suggest_float(name, 0, 1) for name in CUBE.names)
        self.rows.append(row)
        self.numbers.append(trial.number)
        return self._function(np.array(row))


def _search(
    name: str, objective: Recorder, *, maximize: bool = False, n_trials: int = 60, seed: int = 0
) -> Vector:
    return search(name, objective, CUBE, maximize=maximize, n_trials=n_trials, seed=seed)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("n_trials", [1, 7, 400])
def test_the_budget_is_spent_to_the_last_evaluation(name: str, n_trials: int) -> None:
    objective = Recorder()
    values = _search(name, objective, n_trials=n_trials)
    assert objective.numbers == list(range(n_trials))
    assert values.tolist() == [_slope(np.array(row)) for row in objective.rows]


ORACLES: dict[str, Callable[[Function, Vector, Any], object]] = {
    "scipy:nelder-mead": lambda f, x, rng: minimize(f, x, method="Nelder-Mead", bounds=BOX),
    "scipy:powell": lambda f, x, rng: minimize(f, x, method="Powell", bounds=BOX),
    "scipy:cobyqa": lambda f, x, rng: minimize(f, x, method="COBYQA", bounds=BOX),
    "scipy:direct": lambda f, x, rng: direct(f, BOX, vol_tol=0, len_tol=0),
    "scipy:differential-evolution": lambda f, x, rng: differential_evolution(
        f, BOX, x0=x, rng=rng, maxiter=2, polish=False
    ),
    "scipy:dual-annealing": lambda f, x, rng: dual_annealing(f, BOX, x0=x, rng=rng, maxiter=3),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_points_are_those_of_scipy(name: str) -> None:
    rng = np.random.default_rng((5, 0x5C1))
    rows: list[Vector] = []

    def function(row: Vector) -> float:
        rows.append(np.array(row))
        return _slope(np.clip(row, 0, math.nextafter(1, 0)))

    ORACLES[name](function, rng.random(3), rng)
    objective = Recorder()
    n = min(len(rows), 60)
    _search(name, objective, n_trials=n, seed=5)
    assert n >= 25
    assert np.allclose(objective.rows, rows[:n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["scipy:nelder-mead", "scipy:powell", "scipy:cobyqa"])
def test_a_search_that_has_converged_begins_anew_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Vector] = []
    scipys = SEARCHES[name]

    def noted(function: Function, start: Vector, rng: np.random.Generator, n: int) -> object:
        starts.append(start)
        return scipys(function, start, rng, n)

    monkeypatch.setitem(SEARCHES, name, noted)
    objective = Recorder()
    _search(name, objective, n_trials=500)
    assert len(starts) > 1
    assert len({tuple(start) for start in starts}) == len(starts)


@pytest.mark.parametrize("name", SEARCHES)
def test_maximizing_mirrors_minimizing(name: str) -> None:
    low, high = Recorder(), Recorder(lambda row: -_slope(row))
    assert _search(name, low).tolist() == (-_search(name, high, maximize=True)).tolist()
    assert low.rows == high.rows


def test_a_seed_fixes_the_start_of_every_search() -> None:
    # DIRECT begins at the center, COBYQA where its first trust region fits into the bounds.
    starting = SEARCHES.keys() - {"scipy:direct", "scipy:cobyqa"}
    starts: dict[int, set[tuple[float, ...]]] = {0: set(), 1: set()}
    for seed, rows in starts.items():
        for name in starting:
            objective = Recorder()
            _search(name, objective, n_trials=1, seed=seed)
            rows.update(objective.rows)
    assert [len(rows) for rows in starts.values()] == [1, 1]
    assert starts[0] != starts[1]


@pytest.mark.parametrize("name", SEARCHES)
def test_points_without_a_value_are_left_behind(name: str) -> None:
    objective = Recorder(lambda row: math.nan if row[2] > 0.9 else _slope(row))
    values = _search(name, objective, n_trials=200)
    assert len(values) == 200
    assert np.isnan(values).any()
    assert np.nanmin(values) < 2  # 0.81 at the border, 4 to 14 at the corners beside it


def test_a_log_scale_is_searched_as_one() -> None:
    space = UnitSpace({"lr": FloatDistribution(1e-6, 1.0, log=True)})
    values = search(
        "scipy:nelder-mead",
        lambda trial: abs(math.log10(trial.suggest_float("lr", 1e-6, 1.0, log=True)) + 4),
        space,
        maximize=False,
        n_trials=60,
        seed=0,
    )
    assert values.min() < 1e-3


@pytest.mark.parametrize("name", ["scipy:powell", "scipy:dual-annealing"])
def test_it_takes_part_in_a_race(name: str) -> None:
    run = run_one(Race("sphere", Settings(dims=2), n_trials=50), name, 3)
    again = run_one(Race("sphere", Settings(dims=2), n_trials=50), name, 3)
    assert run.values.shape == (50,)
    assert run.values.tolist() == again.values.tolist()
    assert run.best[-1] == run.values.min() < 1e-6
    assert 0 < run.sampler_s < run.wall_s


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (None, "publishes its SPACE"),
        ({}, "continuous, but there is none"),
        ({"x": FloatDistribution(0, 1), "n": IntDistribution(0, 9)}, "continuous, but 'n' is not"),
        ({"x": FloatDistribution(0, 1, step=0.1)}, "continuous, but 'x' is not"),
    ],
)
def test_only_continuous_parameters_are_searched(space: Any, sentence: str) -> None:
    problem = Problem("minimize", lambda seed: Recorder(), space)
    with pytest.raises(UserError, match=sentence):
        check_search("scipy:powell", problem, parallel_trials=1)
