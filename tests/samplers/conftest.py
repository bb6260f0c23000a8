"""What tests of several samplers share: searches that learn, and a small population."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from optuna_ext import ApproximateGradientSampler
from optuna_ext import EvolutionarySampler
from optuna_ext import NelderMeadSampler
from optuna_ext import ParticleSwarmSampler
from optuna_ext import PopulationBasedTrainingSampler


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


class Population:
    """Six members with four parameters and one weight."""

    size = 6
    space: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "momentum": FloatDistribution(0.0, 0.95),
        "batch_size": IntDistribution(1, 64, log=True),
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
    }

    def sampler(self, **kwargs: Any) -> PopulationBasedTrainingSampler:
        return PopulationBasedTrainingSampler(
            **{"population_size": self.size, "seed": 0, **kwargs}
        )

    def train(self, trial: optuna.Trial) -> float:
        """Go on with the parent's weight, and leave one for the children; the best lr falls."""
        params = {name: trial._suggest(name, dist) for name, dist in self.space.items()}
        parent = trial.user_attrs.get("parent")
        trials = trial.study.trials
        weight, age = (9.0, 0) if parent is None else trials[parent].user_attrs["state"]
        target = -1 - 0.1 * age
        gap = (math.log10(params["lr"]) - target) ** 2 + (params["momentum"] - 0.5) ** 2
        weight = weight * 0.8 + gap + 0.01 * (params["optimizer"] == "sgd")
        trial.set_user_attr("state", [weight, age + 1])
        trial.report(weight, age + 1)
        return float(weight)

    def run(
        self,
        n_trials: int = 8 * size,
        objective: Callable[[optuna.Trial], float] | None = None,
        **kwargs: Any,
    ) -> Study:
        """Train for eight generations, or as said."""
        about = {name: kwargs.pop(name) for name in ("n_jobs", "catch") if name in kwargs}
        study = optuna.create_study(study_name="s", **{"sampler": self.sampler(), **kwargs})
        study.optimize(objective or self.train, n_trials=n_trials, **about)
        return study

    def fates(self, study: Study) -> list[tuple[Any, ...]]:
        """Return what became of every slot, whoever trained it and in whatever order."""
        places = {
            t.number: (t.user_attrs["generation"], t.user_attrs["member"]) for t in study.trials
        }
        return sorted(
            (places[t.number], places.get(t.user_attrs.get("parent", -1)), t.params, t.value)
            for t in study.trials
            if t.state == TrialState.COMPLETE
        )

    def slots(self, study: Study) -> dict[tuple[int, int], FrozenTrial]:
        """Return the last trial of every generation and member."""
        return {(t.user_attrs["generation"], t.user_attrs["member"]): t for t in study.trials}


@pytest.fixture
def population() -> Population:
    """Give the population."""
    return Population()
