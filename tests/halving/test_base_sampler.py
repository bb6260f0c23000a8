from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.samplers import RandomSampler
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import SobolSampler
from optuna_ext import SuccessiveHalving


class _Spy(RandomSampler):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: list[list[FrozenTrial]] = []
        self.told: list[int] = []

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.seen.append(study.get_trials(deepcopy=False))

    def after_trial(self, study: Study, trial: FrozenTrial, *args: Any) -> None:
        self.told.append(trial.number)


def test_the_base_sampler_sees_one_budget_and_no_segments(
    study_of_nine: Any, train_for: Any
) -> None:
    spy = _Spy()
    study = study_of_nine(base_sampler=spy)
    training = train_for(9)
    study.optimize(training, n_trials=120)
    trials = study.get_trials()
    born = [t.number for t in trials if t.user_attrs.get("parent") is None]
    assert spy.told == born
    assert len(spy.seen) == len(born)
    budgets: list[int] = []
    for seen in spy.seen:
        assert [t.number for t in seen] == list(range(len(seen)))
        complete = [t for t in seen if t.state == TrialState.COMPLETE]
        assert {t.number for t in complete} <= set(born)
        if complete:
            (budget,) = {max(t.intermediate_values) for t in complete}
            budgets.append(budget)
            for t in complete:
                assert t.value == min(t.intermediate_values.values())
                assert t.params == trials[t.number].params
    assert budgets == sorted(budgets)
    assert set(budgets) == {1, 3, 9}  # the last with ten whole trainings
    running = {t.number for t in spy.seen[-1] if t.state == TrialState.RUNNING}
    waiting = {t.number for t in spy.seen[-1] if t.state == TrialState.WAITING}
    assert running <= set(born)
    assert waiting.isdisjoint(born)


def test_the_base_sampler_sees_who_was_given_up(study_of: Any) -> None:
    """A model has to learn where the objective stops trainings, as when they diverge."""
    spy = _Spy()
    study = study_of(SuccessiveHalving(min_resource=2, max_resource=8, base_sampler=spy))

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 1)
        if x < 0.6:
            raise optuna.TrialPruned
        trial.report(x, 2)
        raise optuna.TrialPruned

    study.optimize(objective, n_trials=5)
    for seen in spy.seen[-1][:-1]:
        given_up = seen.params["x"] < 0.6
        assert seen.state == (TrialState.PRUNED if given_up else TrialState.COMPLETE)
        assert seen.value == seen.params["x"]
    assert {seen.state for seen in spy.seen[-1]} == {
        TrialState.PRUNED,
        TrialState.COMPLETE,
        TrialState.RUNNING,
    }


@pytest.mark.parametrize(
    "base",
    [
        lambda: TPESampler(seed=0, n_startup_trials=5),
        lambda: SobolSampler(seed=0),
        lambda: optuna.samplers.GPSampler(
            seed=0, n_startup_trials=5, warn_independent_sampling=False
        ),
    ],
)
def test_any_base_sampler(
    base: Callable[[], BaseSampler], study_of_nine: Any, train_for: Any, check_lineages: Any
) -> None:
    pytest.importorskip("torch")
    study = study_of_nine(base_sampler=base())
    study.optimize(train_for(9), n_trials=30)
    check_lineages(study)


def test_a_range_that_has_changed_since(study_of_nine: Any) -> None:
    study = study_of_nine(n_trials_per_round=3)
    for value, x in ((0.0, 0.9), (1.0, 0.2), (1.0, 0.3)):
        study.enqueue_trial({"x": x})
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    trial = study.ask()
    assert trial.user_attrs["parent"] == 0
    assert trial.suggest_float("x", 0, 0.5) == pytest.approx(0.5)
    assert 0 <= trial.suggest_float("new", 0, 1) <= 1
