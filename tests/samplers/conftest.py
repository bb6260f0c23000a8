from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import optuna
from optuna.samplers import BaseSampler
import pytest

from optuna_ext import ApproximateGradientSampler
from optuna_ext import EvolutionarySampler
from optuna_ext import NelderMeadSampler
from optuna_ext import ParticleSwarmSampler


Objective = Callable[[optuna.Trial], float]

_LEARNERS = [
    ApproximateGradientSampler,
    EvolutionarySampler,
    NelderMeadSampler,
    ParticleSwarmSampler,
]


@pytest.fixture(params=_LEARNERS)
def learner(request: pytest.FixtureRequest) -> Callable[..., BaseSampler]:
    """Every sampler that learns from the trials of its study."""
    sampler: Callable[..., BaseSampler] = request.param
    return sampler


def _objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    depth = trial.suggest_int("depth", 1, 6)
    width = trial.suggest_int("width", 4, 512, log=True)
    act = trial.suggest_categorical("act", ["relu", "tanh", "gelu"])
    loss = (math.log10(lr) + 3) ** 2 + (depth - 4) ** 2 / 4 + (math.log2(width) - 6) ** 2 / 4
    return loss + (act != "gelu")


def _conditional(trial: optuna.Trial) -> float:
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    x = trial.suggest_float("x", 0, 1)
    if kind == "a":
        return x + abs(trial.suggest_float("y", -1, 1) - 0.2) + 0.5
    if kind == "b":
        n = trial.suggest_int("n", 1, 20)
        return x + abs(n - 13) / 20 + abs(trial.suggest_float("z", 0, 4) - 3)
    return 2.0 - x


def _on_a_grid(trial: optuna.Trial) -> float:
    x, y = trial.suggest_int("x", 1, 9), trial.suggest_int("y", 1, 9)
    return (x - 6) ** 2 + (y - 4) ** 2


@pytest.fixture
def objective() -> Objective:
    """Of parameters of every kind."""
    return _objective


@pytest.fixture
def conditional() -> Objective:
    """Of branches with parameters of their own."""
    return _conditional


@pytest.fixture
def on_a_grid() -> Objective:
    """Of 81 points."""
    return _on_a_grid


@pytest.fixture
def params_of(objective: Objective) -> Callable[..., list[dict[str, Any]]]:
    """Run a new study with a sampler; give the parameters of its trials."""

    def run(sampler: BaseSampler, n_trials: int = 50, **kwargs: Any) -> list[dict[str, Any]]:
        study = optuna.create_study(study_name="s", sampler=sampler, **kwargs)
        study.optimize(objective, n_trials=n_trials)
        return [trial.params for trial in study.trials]

    return run
