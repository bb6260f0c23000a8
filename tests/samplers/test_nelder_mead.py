from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from scipy import optimize

from optuna_ext import NelderMeadSampler


def valley(x: np.ndarray) -> float:
    return float(optimize.rosen(2 * x - [0.3, 0.7, 0.4, 0.1][: len(x)]))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_evaluates_the_points_that_scipy_does(d: int, adaptive: bool, direction: Any) -> None:
    """From the simplex that the sampler has chosen, until scipy meets a bound."""
    sign = 1.0 if direction == "minimize" else -1.0

    def objective(trial: optuna.Trial) -> float:
        return sign * valley(np.array([trial.suggest_float(f"x{i}", -1, 2) for i in range(d)]))

    sampler = NelderMeadSampler(seed=3, adaptive=adaptive, tolerance=1e-6, n_startup_trials=4)
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.enqueue_trial({f"x{i}": 0.21 + 0.05 * i for i in range(d)})
    study.optimize(objective, n_trials=64)
    rows = np.array([list(trial.params.values()) for trial in study.trials])
    start = min(rows[:4], key=valley)

    expected: list[np.ndarray] = []

    def record(x: np.ndarray) -> float:
        expected.append(x.copy())
        return valley(x)

    simplex = np.vstack([start, rows[4 : 4 + d]])
    options = {"initial_simplex": simplex, "adaptive": adaptive, "maxfev": 61}
    optimize.minimize(record, start, method="Nelder-Mead", options=options)
    outside = (np.abs(np.array(expected) - 0.5) > 1.5).any(axis=1)
    n = int(np.argmax(outside)) if outside.any() else 61
    assert n > 12
    np.testing.assert_allclose(rows[4 : 3 + n], expected[1:n], rtol=0, atol=3e-9)


def test_workers_take_the_points_among_which_a_step_decides() -> None:
    def suggest(trial: optuna.Trial) -> np.ndarray:
        return np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(3)])

    study = optuna.create_study(sampler=NelderMeadSampler(seed=0, edge=0.1))
    study.enqueue_trial({"x0": 0.45, "x1": 0.45, "x2": 0.45})
    study.optimize(lambda trial: float(np.abs(suggest(trial) - 0.5).sum()), n_trials=19)
    reflected, expanded, outside, inside = (suggest(study.ask()) for _ in range(4))
    centroid = 2 * reflected - expanded
    np.testing.assert_allclose(outside, (centroid + reflected) / 2)
    np.testing.assert_allclose(inside, (3 * centroid - reflected) / 2)
    corners = np.array([list(t.params.values()) for t in [study.trials[0], *study.trials[16:19]]])
    worst = 2 * centroid - reflected
    assert min(np.abs(corners - worst).sum(axis=1)) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(corners.sum(axis=0) - worst, 3 * centroid)


def test_a_failed_point_is_worst_and_not_tried_again() -> None:
    def fragile(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if x > 0.6:
            raise MemoryError
        return (x - 0.55) ** 2

    study = optuna.create_study(sampler=NelderMeadSampler(seed=0))
    study.optimize(fragile, n_trials=60, catch=MemoryError)
    assert study.best_value < 1e-3
    assert len({trial.params["x"] for trial in study.trials}) == 60


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"edge": 0}, ValueError, r"`edge` must be in \(0, 0.5\], but got 0"),
        ({"edge": 0.6}, ValueError, r"`edge` must be in \(0, 0.5\], but got 0.6"),
        ({"tolerance": -1}, ValueError, r"`tolerance` must be in \[0, `edge`\)"),
        ({"tolerance": 0.3}, ValueError, r"`edge` is 0.25, but got 0.3"),
        ({"n_startup_trials": 0}, ValueError, "`n_startup_trials` must be at least 1"),
        ({"n_startup_trials": 1.5}, TypeError, "`n_startup_trials` must be an integer"),
        ({"startup_sampler": "sobol"}, TypeError, "`startup_sampler` must be an Optuna sampler"),
        ({"failed": "drop"}, ValueError, "`failed` must be one of .* but got 'drop'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NelderMeadSampler(**kwargs)
