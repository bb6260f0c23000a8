from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler
import pytest

from optuna_ext import ParticleSwarmSampler
from optuna_ext import SobolSampler


def objective(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 1e-4, 1, log=True)
    return float((x - 0.3) ** 2 + (np.log10(y) + 3) ** 2)


def run(sampler: optuna.samplers.BaseSampler, n_trials: int) -> list[dict[str, Any]]:
    study = optuna.create_study(study_name="s", sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("n_particles", [2, 10])
def test_the_first_positions_are_the_startup_samplers(n_particles: int) -> None:
    swarm = run(ParticleSwarmSampler(n_particles=n_particles, seed=1), n_particles + 1)
    sobol = run(SobolSampler(seed=1), n_particles + 1)
    assert swarm[:n_particles] == sobol[:n_particles]
    assert swarm[n_particles] != sobol[n_particles]
    random = ParticleSwarmSampler(n_particles=5, startup_sampler=RandomSampler(seed=2))
    assert run(random, 5) == run(RandomSampler(seed=2), 5)


def test_numbers_move_on_their_own_scale() -> None:
    """A study of x in [0, 1] and one of 10**-4x on a logarithmic scale visit the same points."""
    linear = optuna.create_study(sampler=ParticleSwarmSampler(seed=0))
    linear.optimize(lambda trial: abs(trial.suggest_float("x", 0, 1) - 0.3), n_trials=40)
    log = optuna.create_study(sampler=ParticleSwarmSampler(seed=0))
    log.optimize(
        lambda trial: abs(-np.log10(trial.suggest_float("x", 1e-4, 1, log=True)) / 4 - 0.7),
        n_trials=40,
    )
    x = [trial.params["x"] for trial in linear.trials]
    np.testing.assert_allclose(
        [1 + np.log10(trial.params["x"]) / 4 for trial in log.trials], x, atol=1e-9
    )


@pytest.mark.parametrize("topology", ["global", "ring"])
def test_the_swarm_gathers(topology: Any) -> None:
    params = run(ParticleSwarmSampler(seed=0, topology=topology), 200)
    late = np.array([[p["x"], np.log10(p["y"])] for p in params[150:]])
    np.testing.assert_allclose(np.median(late, axis=0), [0.3, -3.0], atol=0.03)


def test_a_large_integer_range_is_searched_to_its_optimum() -> None:
    study = optuna.create_study(sampler=ParticleSwarmSampler(seed=0))
    study.optimize(lambda trial: abs(trial.suggest_int("n", 0, 1000) - 617), n_trials=100)
    assert study.best_value <= 1


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_particles": 1}, ValueError, "`n_particles` must be at least 2, but got 1"),
        ({"n_particles": 2.5}, TypeError, "`n_particles` must be an integer"),
        ({"topology": "star"}, ValueError, "`topology` must be one of .*'ring'.* got 'star'"),
        ({"startup_sampler": "sobol"}, TypeError, "`startup_sampler` must be an Optuna sampler"),
        ({"failed": "drop"}, ValueError, "`failed` must be one of .* but got 'drop'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ParticleSwarmSampler(**kwargs)
