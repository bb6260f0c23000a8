from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
import pytest

from optuna_ext import SobolSampler
from optuna_ext import WarmupSampler
from optuna_ext.points import sobol


class Constant(RandomSampler):
    """Always proposes the same value, so that one sees who was asked."""

    def __init__(self, value: float) -> None:
        super().__init__(seed=0)
        self._value = value

    def sample_independent(self, *args: object) -> float:
        return self._value


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def test_first_then() -> None:
    study = optuna.create_study(sampler=WarmupSampler(SobolSampler(seed=1), 5, Constant(0.5)))
    study.optimize(objective, n_trials=8)
    expected = [*sobol(5, 1, seed=1)[:, 0], 0.5, 0.5, 0.5]
    assert [trial.params["x"] for trial in study.trials] == expected


def ask_past_the_queue(study: optuna.Study) -> optuna.Trial:
    """Start a new trial though some wait, as a worker does that looked before they came."""
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id))


def test_running_and_failed_trials_count() -> None:
    study = optuna.create_study(sampler=WarmupSampler(Constant(0.0), 3, Constant(1.0)))
    running = study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    assert study.ask().suggest_float("x", 0, 1) == 0.0
    assert study.ask().suggest_float("x", 0, 1) == 1.0
    assert running.suggest_float("x", 0, 1) == 0.0


def test_waiting_trials_do_not_count() -> None:
    study = optuna.create_study(sampler=WarmupSampler(Constant(0.0), 3, Constant(1.0)))
    for _ in range(3):
        study.enqueue_trial({"x": 0.5})
    assert ask_past_the_queue(study).suggest_float("x", 0, 1) == 0.0
    for _ in range(2):
        assert study.ask().suggest_float("x", 0, 1) == 0.5
    assert ask_past_the_queue(study).suggest_float("x", 0, 1) == 1.0


def test_a_trial_keeps_its_sampler() -> None:
    """Though a queued trial starts between its suggestions and would change the count."""
    study = optuna.create_study(sampler=WarmupSampler(Constant(0.0), 2, Constant(1.0)))
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.5})
    late = ask_past_the_queue(study)
    study.ask()
    study.ask()
    assert late.suggest_float("x", 0, 1) == 0.0


def test_parallel_workers_give_first_its_trials() -> None:
    study = optuna.create_study(sampler=WarmupSampler(Constant(0.0), 10, Constant(1.0)))
    study.optimize(objective, n_trials=40, n_jobs=4)
    assert [trial.params["x"] for trial in study.trials] == [0.0] * 10 + [1.0] * 30


def test_resume() -> None:
    storage = optuna.storages.InMemoryStorage()
    for n_trials in (3, 4):
        sampler = WarmupSampler(Constant(0.0), 5, Constant(1.0))
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=sampler, load_if_exists=True
        )
        study.optimize(objective, n_trials=n_trials)
    assert [trial.params["x"] for trial in study.trials] == [0.0] * 5 + [1.0] * 2


def test_relative_samplers_are_handed_through() -> None:
    cmaes = optuna.samplers.CmaEsSampler(n_startup_trials=1, seed=0)
    sampler = WarmupSampler(SobolSampler(seed=0), 8, cmaes)
    study = optuna.create_study(sampler=sampler)
    study.optimize(
        lambda trial: trial.suggest_float("x", 0, 1) ** 2 + trial.suggest_float("y", 0, 1) ** 2,
        n_trials=60,
    )
    assert study.best_value < 0.02


def test_sampler_names_itself() -> None:
    sampler = WarmupSampler(SobolSampler(), 5, RandomSampler())
    assert str(sampler) == "WarmupSampler(SobolSampler, 5, RandomSampler)"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((SobolSampler(), -1, RandomSampler()), ValueError, "`n` must be at least 0"),
        ((SobolSampler(), 2.5, RandomSampler()), TypeError, "`n` must be an integer"),
        ((SobolSampler, 2, RandomSampler()), TypeError, "`first` must be an Optuna sampler"),
        ((SobolSampler(), 2, None), TypeError, "`then` must be an Optuna sampler"),
    ],
)
def test_bad_arguments(
    args: tuple[BaseSampler, int, BaseSampler], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        WarmupSampler(*args)
