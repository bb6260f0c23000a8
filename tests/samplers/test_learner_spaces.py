"""What every sampler that learns promises of search spaces."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import optuna
from optuna.samplers import BaseSampler


Learner = Callable[..., BaseSampler]
Objective = Callable[[optuna.Trial], float]


def test_conditional_space(learner: Learner, conditional: Objective) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=learner(seed=seed))
        study.optimize(conditional, n_trials=100)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(conditional, n_trials=300)
    assert np.median(best) < study.best_value


def test_one_name_with_another_range_in_every_branch(learner: Learner) -> None:
    def branches(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["sgd", "adam"])
        low, high, best = (1e-3, 1.0, -1.2) if kind == "sgd" else (1e-5, 1e-2, -4.3)
        lr = trial.suggest_float("lr", low, high, log=True)
        x = trial.suggest_float("x", 0, 1)
        return abs(math.log10(lr) - best) + abs(x - 0.7) + (kind == "sgd")

    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=learner(seed=seed))
        study.optimize(branches, n_trials=64)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(branches, n_trials=64)
    assert np.median(best) < study.best_value


def test_many_values_are_never_repeated(learner: Learner) -> None:
    """Moves that end between two of them lead to one of them."""

    def many(trial: optuna.Trial) -> float:
        a = trial.suggest_int("linear", 0, 10_000, step=10)
        b = trial.suggest_int("log", 1, 5_000, log=True)
        c = trial.suggest_float("stepped", 0, 1, step=1e-3)
        return abs(a - 3_000) / 5_000 + abs(math.log(b / 40)) / 4 + abs(c - 0.123)

    study = optuna.create_study(sampler=learner(seed=0))
    study.optimize(many, n_trials=80)
    assert len({str(trial.params) for trial in study.trials}) == 80


def test_changing_ranges(learner: Learner) -> None:
    def changing(trial: optuna.Trial) -> float:
        x = trial.suggest_int("x", 1, 10 if trial.number < 30 else 4)
        y = trial.suggest_float("y", -1, 1) if trial.number > 15 else 0.5
        return x + y**2

    study = optuna.create_study(sampler=learner(seed=0))
    study.optimize(changing, n_trials=90)
    assert study.best_value < 1.01
