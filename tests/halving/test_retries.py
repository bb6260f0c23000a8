from __future__ import annotations

from collections import Counter
import pickle
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import SobolSampler
from optuna_ext import SuccessiveHalving


def test_restarts_change_nothing(study_of_nine: Any, train_for: Any) -> None:
    """A new sampler for every trial leads to the same study as one for all of them."""

    def run(*, restart: bool) -> list[tuple[Any, ...]]:
        study = study_of_nine(base_sampler=SobolSampler(seed=0))
        training = train_for(9)
        for _ in range(30):
            if restart:
                study.sampler = pickle.loads(pickle.dumps(study.sampler))
            study.optimize(training, n_trials=1)
        return [(t.params, t.user_attrs, t.intermediate_values) for t in study.trials]

    assert run(restart=True) == run(restart=False)


def test_a_failed_promotion_is_tried_again(study_of_nine: Any, train_for: Any) -> None:
    study = study_of_nine(n_trials_per_round=3)
    training = train_for(9)
    study.optimize(training, n_trials=3)
    for n_failures in range(4):
        trial = study.ask()
        parent = trial.user_attrs.get("parent")
        if n_failures == 3:  # it is left alone after three failures in succession
            assert parent is None
        else:
            assert parent == min(range(3), key=lambda n: study.trials[n].intermediate_values[1])
        study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("synchronous", [True, False])
def test_who_is_given_up_by_the_objective_is_left_alone(synchronous: bool, study_of: Any) -> None:
    """It ends as pruned, as one that is paused, but has not come to the rung that it was to."""
    pair = SuccessiveHalving(
        min_resource=1,
        max_resource=4,
        synchronous=synchronous,
        base_sampler=RandomSampler(seed=0),
    )
    study = study_of(pair)

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(2 ** trial.user_attrs["rung"] // 2 + 1, 5):
            if epoch == 3 and x < 0.5:
                raise optuna.TrialPruned
            trial.report(x, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=80)
    trials = study.get_trials()
    given_up = [t.number for t in trials if t.user_attrs["rung"] == 2 and t.params["x"] < 0.5]
    parents = [t.user_attrs.get("parent") for t in trials]
    assert given_up
    assert not set(given_up) & set(parents)


def test_a_dead_workers_promotion_is_not_lost(study_of_nine: Any, train_for: Any) -> None:
    study = study_of_nine(n_trials_per_round=3)
    study.optimize(train_for(9), n_trials=3)
    orphan = study.ask()
    parent = orphan.user_attrs["parent"]
    assert study.ask().user_attrs.get("parent") is None  # for all we know, the other one lives
    study.tell(orphan, state=TrialState.FAIL)
    assert study.ask().user_attrs["parent"] == parent


def test_a_retried_promotion_is_the_same_again(study_of: Any, train_for: Any) -> None:
    """Optuna's callback queues a copy of the failed trial with its attributes and reports."""
    study = study_of(
        SuccessiveHalving(
            min_resource=1,
            max_resource=27,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    training = train_for(27)
    study.optimize(training, n_trials=3)
    stale = study.ask()
    training_params = study.trials[stale.user_attrs["parent"]].params
    training.checkpoints[4] = 2  # what the store finds: the attribute is copied, too
    stale.report(0.5, 2)
    study.tell(stale, state=TrialState.FAIL)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            user_attrs=study.trials[stale.number].user_attrs,
            system_attrs={
                "failed_trial": stale.number,
                "retry_history": [stale.number],
                "fixed_params": training_params,
            },
            intermediate_values={2: 0.5},
        )
    )
    study.optimize(training, n_trials=1)
    retried = study.trials[-1]
    assert retried.number == 4
    assert retried.user_attrs["parent"] == stale.user_attrs["parent"]
    assert retried.user_attrs["rung"] == 1
    assert (retried.state, retried.last_step) == (TrialState.PRUNED, 3)
    assert retried.params == training_params
    study.optimize(training, n_trials=20)
    counts = Counter(t.user_attrs.get("parent") for t in study.trials if t.state.is_finished())
    assert counts[retried.user_attrs["parent"]] == 2  # the failed one and its retry, no third
