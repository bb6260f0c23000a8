"""What every sampler that learns promises to workers."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
import subprocess
import sys
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
import pytest

from optuna_ext import sqlite


Learner = Callable[..., BaseSampler]
Objective = Callable[[optuna.Trial], float]


def test_batches_of_8_are_ahead_of_as_many_random_ones(
    learner: Learner, objective: Objective
) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=learner(seed=seed))
        for _ in range(8):
            trials = [study.ask() for _ in range(8)]
            values = [objective(trial) for trial in trials]
            for trial, value in zip(trials, values, strict=True):
                study.tell(trial, value)
        assert len({str(trial.params) for trial in study.trials}) == 64
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=128)
    assert np.median(best) < study.best_value


def test_threads_repeat_nothing(learner: Learner, objective: Objective) -> None:
    study = optuna.create_study(sampler=learner(seed=0))
    study.optimize(objective, n_trials=60, n_jobs=4)
    assert len({str(trial.params) for trial in study.trials}) == 60


def test_more_workers_than_one_step_can_use(learner: Learner, objective: Objective) -> None:
    study = optuna.create_study(sampler=learner(seed=0))
    for _ in range(3):
        trials = [study.ask() for _ in range(40)]
        values = [objective(trial) for trial in trials]
        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value)
    assert len({str(trial.params) for trial in study.trials}) == 120


SCRIPT = """
import sys, optuna, optuna_ext
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(
    study_name="s",
    storage=optuna_ext.sqlite(sys.argv[1]),
    sampler=getattr(optuna_ext, sys.argv[2])(),
    load_if_exists=True,
)
for _ in range(25):
    trial = study.ask()
    x, n = trial.suggest_float("x", -1, 1), trial.suggest_int("n", 1, 9)
    y = trial.suggest_float("y", 1e-3, 1, log=True)
    is_a = trial.suggest_categorical("c", ["a", "b"]) == "a"
    study.tell(trial, x ** 2 + (n - 3) ** 2 + y + is_a)
"""


def work(learner: Learner, objective: Objective, path: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=sqlite(path), sampler=learner(seed=0))
    study.optimize(objective, n_trials=n_trials)


def test_two_processes_after_each_other_are_as_one(learner: Learner, tmp_path: Path) -> None:
    """Each with its own hashes of texts, from which no random number may come."""
    name, path = learner.__name__, tmp_path / "study.db"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", SCRIPT, path, name], check=True)
    two = optuna.load_study(study_name="s", storage=sqlite(path))

    one = optuna.create_study(study_name="s", sampler=learner())
    for trial in two.trials:
        again = one.ask(trial.distributions)
        assert again.params == trial.params
        one.tell(again, trial.value)
    assert len(one.trials) == 50


class Interrupted(optuna.storages.InMemoryStorage):
    """Lets others act at chosen moments: before the k-th time a trial reads or writes."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[tuple[int, Callable[[], None]]] = []  # the k of a trial, who comes then
        self._n_calls = 0

    def _tick(self) -> None:
        self._n_calls += 1
        if self.others and self._n_calls > self.others[0][0]:
            _, act = self.others.pop(0)
            n_calls, self._n_calls = self._n_calls, 0
            act()
            self._n_calls = n_calls

    def start(self) -> None:
        self._n_calls = 0

    def get_all_trials(self, *args: Any, **kwargs: Any) -> list[optuna.trial.FrozenTrial]:
        self._tick()
        return super().get_all_trials(*args, **kwargs)

    def set_trial_system_attr(self, *args: Any) -> None:
        self._tick()
        super().set_trial_system_attr(*args)

    def set_trial_param(self, *args: Any) -> None:
        self._tick()
        super().set_trial_param(*args)


@pytest.mark.parametrize("n_before", [1, 18])
def test_whenever_workers_meet_they_repeat_nothing(
    learner: Learner, n_before: int, on_a_grid: Objective
) -> None:
    """Three trials, each of which starts at any moment of the one before; samplers of their own.

    With 18 trials before they are past start-up.
    """
    storage = Interrupted()

    def suggest() -> None:
        study = optuna.load_study(study_name="s", storage=storage, sampler=learner(seed=0))
        trial = study.ask()
        storage.start()
        on_a_grid(trial)

    study = optuna.create_study(study_name="s", storage=storage, sampler=learner(seed=0))
    study.optimize(on_a_grid, n_trials=n_before)
    before = study.trials
    for second in range(7):
        for third in range(7):
            optuna.delete_study(study_name="s", storage=storage)
            study = optuna.create_study(study_name="s", storage=storage)
            study.add_trials(before)
            storage.others = [(second, suggest), (third, suggest)]
            suggest()
            params = [str(trial.params) for trial in study.trials]
            assert len(set(params)) == len(params) == n_before + 3 - len(storage.others)
            storage.others.clear()


def test_four_processes_lose_and_repeat_nothing(
    learner: Learner, objective: Objective, tmp_path: Path, processes: ForkServerContext
) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(study_name="s", storage=sqlite(path))
    workers = [
        processes.Process(target=work, args=(learner, objective, path, 15)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 60
    assert len({str(trial.params) for trial in study.trials}) == 60
