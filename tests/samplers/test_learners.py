"""What every sampler that learns promises."""

from __future__ import annotations

from collections.abc import Callable
import math
import pickle
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
import pytest


Learner = Callable[..., BaseSampler]
Objective = Callable[[optuna.Trial], float]
ParamsOf = Callable[..., list[dict[str, Any]]]


def test_64_trials_are_ahead_of_500_random_ones(learner: Learner, objective: Objective) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=learner(seed=seed))
        study.optimize(objective, n_trials=64)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=500)
    assert np.median(best) < study.best_value


def test_maximize_is_minimize_of_the_negative(
    learner: Learner, objective: Objective, params_of: ParamsOf
) -> None:
    study = optuna.create_study(direction="maximize", sampler=learner(seed=1))
    study.optimize(lambda trial: -objective(trial), n_trials=50)
    assert [trial.params for trial in study.trials] == params_of(learner(seed=1))


def test_workers_agree_on_a_seed_of_the_studys_name(learner: Learner, params_of: ParamsOf) -> None:
    assert params_of(learner()) == params_of(learner()) != params_of(learner(seed=0))


def test_a_pruned_trial_counts_with_its_last_report(
    learner: Learner, objective: Objective, params_of: ParamsOf
) -> None:
    def pruned(trial: optuna.Trial) -> float:
        value = objective(trial)
        trial.report(math.inf, 0)
        trial.report(value, 1)
        if trial.number % 3:
            raise optuna.TrialPruned
        return value

    study = optuna.create_study(study_name="s", sampler=learner(seed=1))
    study.optimize(pruned, n_trials=50)
    assert [trial.params for trial in study.trials] == params_of(learner(seed=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_failures_count_as_worst_on_demand(
    learner: Learner, bad: float | None, objective: Objective
) -> None:
    """Where a large width fails, be it by an exception or by what it returns."""

    def fragile(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.params["width"] <= 100:
            return value
        if bad is None:
            raise MemoryError
        return bad

    study = optuna.create_study(sampler=learner(seed=0, failed="worst"))
    study.optimize(fragile, n_trials=80, catch=MemoryError)
    assert len({str(trial.params) for trial in study.trials}) == 80
    assert study.best_value < 0.1
    assert sum(trial.params["width"] > 100 for trial in study.trials) < 40


def test_ignored_failures_leave_no_trace(learner: Learner, objective: Objective) -> None:
    def flaky(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number % 5 == 4:
            raise ConnectionError
        return value

    study = optuna.create_study(sampler=learner(seed=0, failed="ignore"))
    study.optimize(flaky, n_trials=80, catch=ConnectionError)
    assert study.best_value < 0.5


def test_enqueued_trials_count(learner: Learner, objective: Objective) -> None:
    study = optuna.create_study(sampler=learner(seed=0))
    good = {"lr": 1e-3, "depth": 4, "width": 64, "act": "gelu"}
    study.enqueue_trial(good)
    study.enqueue_trial({"depth": 5})
    study.optimize(objective, n_trials=40)
    assert study.trials[0].params == good
    assert study.trials[1].params["depth"] == 5
    later = [trial.value or 0.0 for trial in study.trials[20:]]
    assert np.median(later) < 1.5  # that of random trials is about 4


def test_hyperband(learner: Learner, objective: Objective) -> None:
    def reported(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    study = optuna.create_study(study_name="s", sampler=learner(seed=0), pruner=pruner)
    study.optimize(reported, n_trials=80)
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert study.best_value < 1.0


def test_partial_fixed_parameters(learner: Learner, objective: Objective) -> None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fixed = optuna.samplers.PartialFixedSampler({"depth": 4}, learner(seed=0))
    study = optuna.create_study(sampler=fixed)
    study.optimize(objective, n_trials=64)
    assert {trial.params["depth"] for trial in study.trials} == {4}
    assert study.best_value < 0.5


def test_one_instance_serves_studies_in_turns(
    learner: Learner, objective: Objective, params_of: ParamsOf
) -> None:
    shared = learner(seed=3)
    studies = [optuna.create_study(sampler=shared, direction=d) for d in ("minimize", "maximize")]
    for _ in range(50):
        studies[0].optimize(objective, n_trials=1)
        studies[1].optimize(lambda trial: trial.suggest_float("other", 0, 1), n_trials=1)
    assert [trial.params for trial in studies[0].trials] == params_of(learner(seed=3))


@pytest.mark.parametrize("function", ["objective", "conditional", "on_a_grid"])
@pytest.mark.parametrize("n_running", [1, 4])
def test_a_new_instance_for_every_trial_is_as_one_for_all(
    learner: Learner, function: str, n_running: int, request: pytest.FixtureRequest
) -> None:
    """Whatever a sampler remembers, it would find again."""
    objective = request.getfixturevalue(function)

    def batches(fresh: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=learner(seed=4))
        running: list[optuna.Trial] = []
        for number in range(75):
            if fresh:
                study.sampler = learner(seed=4)
            running.append(study.ask())
            value = objective(running[-1])
            running[-1].set_user_attr("value", value)
            if len(running) == n_running:  # they end in another order than they have begun
                ended = running.pop(number * 7 % 3 % n_running)
                study.tell(ended, ended.user_attrs["value"])
        return [trial.params for trial in study.trials]

    assert batches(fresh=True) == batches(fresh=False)


def test_pickled_sampler_goes_on(
    learner: Learner, objective: Objective, params_of: ParamsOf
) -> None:
    storage = optuna.storages.InMemoryStorage()
    first = learner(seed=3)
    params_of(first, 25, storage=storage)
    again = pickle.loads(pickle.dumps(first))
    study = optuna.load_study(study_name="s", storage=storage, sampler=again)
    study.optimize(objective, n_trials=25)
    assert [trial.params for trial in study.trials] == params_of(learner(seed=3))


def test_several_objectives_are_refused(learner: Learner, objective: Objective) -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=learner())
    with pytest.raises(ValueError, match="needs a study with one objective"):
        study.ask()
