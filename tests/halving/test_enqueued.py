from __future__ import annotations

import pickle
from typing import Any

from optuna.samplers import RandomSampler
import pytest

from optuna_ext import SuccessiveHalving


def test_enqueued_parameters_are_born(study_of_nine: Any, train_for: Any) -> None:
    study = study_of_nine()
    training = train_for(9)
    study.optimize(training, n_trials=3)  # one of them may be promoted
    study.enqueue_trial({"x": 0.0, "kind": "plain"})
    study.optimize(training, n_trials=8)
    enqueued = study.trials[3]
    assert enqueued.params == {"x": 0.0, "kind": "plain"}
    assert enqueued.user_attrs == {"rung": 0}
    assert 3 in [t.user_attrs.get("parent") for t in study.trials]  # it is the best


@pytest.mark.parametrize(("parent", "rung"), [(0, 1), (99, 0)])
def test_the_user_may_choose_a_parent(
    parent: int, rung: int, study_of_nine: Any, train_for: Any
) -> None:
    study = study_of_nine()
    training = train_for(9)
    study.optimize(training, n_trials=1)
    study.enqueue_trial({"x": 0.0, "kind": "plain"}, user_attrs={"parent": parent})
    study.optimize(training, n_trials=1)
    trial = study.trials[1]
    assert (trial.user_attrs["rung"], trial.params) == (rung, {"x": 0.0, "kind": "plain"})
    assert trial.last_step == [1, 3][rung]


def test_a_parent_that_is_not_there_in_another_process(study_of: Any) -> None:
    study = study_of(SuccessiveHalving(max_resource=9, base_sampler=RandomSampler(seed=0)))
    study.enqueue_trial({}, user_attrs={"parent": 99})
    trial = study.ask()
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    assert 0 <= trial.suggest_float("x", 0, 1) <= 1
    study.tell(trial, 0.0)
