"""What every sampler that learns promises."""

from __future__ import annotations

from collections.abc import Callable
import math
from multiprocessing.context import ForkServerContext
from pathlib import Path
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
import pytest

from optuna_ext import ApproximateGradientSampler
from optuna_ext import EvolutionarySampler
from optuna_ext import NelderMeadSampler
from optuna_ext import ParticleSwarmSampler
from optuna_ext import sqlite


Sampler = Callable[..., BaseSampler]
SAMPLERS: list[Sampler] = [
    ApproximateGradientSampler,
    EvolutionarySampler,
    NelderMeadSampler,
    ParticleSwarmSampler,
]
every = pytest.mark.parametrize("sampler", SAMPLERS)


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    depth = trial.suggest_int("depth", 1, 6)
    width = trial.suggest_int("width", 4, 512, log=True)
    act = trial.suggest_categorical("act", ["relu", "tanh", "gelu"])
    loss = (math.log10(lr) + 3) ** 2 + (depth - 4) ** 2 / 4 + (math.log2(width) - 6) ** 2 / 4
    return loss + (act != "gelu")


def run(sampler: BaseSampler, n_trials: int = 50, **kwargs: Any) -> list[dict[str, Any]]:
    study = optuna.create_study(study_name="s", sampler=sampler, **kwargs)
    study.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in study.trials]


@every
def test_64_trials_are_ahead_of_500_random_ones(sampler: Sampler) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=sampler(seed=seed))
        study.optimize(objective, n_trials=64)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=500)
    assert np.median(best) < study.best_value


@every
def test_batches_of_8_are_ahead_of_as_many_random_ones(sampler: Sampler) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=sampler(seed=seed))
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


@every
def test_maximize_is_minimize_of_the_negative(sampler: Sampler) -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler(seed=1))
    study.optimize(lambda trial: -objective(trial), n_trials=50)
    assert [trial.params for trial in study.trials] == run(sampler(seed=1))


@every
def test_workers_agree_on_a_seed_of_the_studys_name(sampler: Sampler) -> None:
    assert run(sampler()) == run(sampler()) != run(sampler(seed=0))


@every
def test_a_pruned_trial_counts_with_its_last_report(sampler: Sampler) -> None:
    def pruned(trial: optuna.Trial) -> float:
        value = objective(trial)
        trial.report(math.inf, 0)
        trial.report(value, 1)
        if trial.number % 3:
            raise optuna.TrialPruned
        return value

    study = optuna.create_study(study_name="s", sampler=sampler(seed=1))
    study.optimize(pruned, n_trials=50)
    assert [trial.params for trial in study.trials] == run(sampler(seed=1))


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_failures_count_as_worst_on_demand(sampler: Sampler, bad: float | None) -> None:
    """Where a large width fails, be it by an exception or by what it returns."""

    def fragile(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.params["width"] <= 100:
            return value
        if bad is None:
            raise MemoryError
        return bad

    study = optuna.create_study(sampler=sampler(seed=0, failed="worst"))
    study.optimize(fragile, n_trials=80, catch=MemoryError)
    assert len({str(trial.params) for trial in study.trials}) == 80
    assert study.best_value < 0.1
    assert sum(trial.params["width"] > 100 for trial in study.trials) < 40


@every
def test_ignored_failures_leave_no_trace(sampler: Sampler) -> None:
    def flaky(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number % 5 == 4:
            raise ConnectionError
        return value

    study = optuna.create_study(sampler=sampler(seed=0, failed="ignore"))
    study.optimize(flaky, n_trials=80, catch=ConnectionError)
    assert study.best_value < 0.5


def conditional(trial: optuna.Trial) -> float:
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    x = trial.suggest_float("x", 0, 1)
    if kind == "a":
        return x + abs(trial.suggest_float("y", -1, 1) - 0.2) + 0.5
    if kind == "b":
        n = trial.suggest_int("n", 1, 20)
        return x + abs(n - 13) / 20 + abs(trial.suggest_float("z", 0, 4) - 3)
    return 2.0 - x


@every
def test_conditional_space(sampler: Sampler) -> None:
    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=sampler(seed=seed))
        study.optimize(conditional, n_trials=100)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(conditional, n_trials=300)
    assert np.median(best) < study.best_value


@every
def test_one_name_with_another_range_in_every_branch(sampler: Sampler) -> None:
    def branches(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["sgd", "adam"])
        low, high, best = (1e-3, 1.0, -1.2) if kind == "sgd" else (1e-5, 1e-2, -4.3)
        lr = trial.suggest_float("lr", low, high, log=True)
        x = trial.suggest_float("x", 0, 1)
        return abs(math.log10(lr) - best) + abs(x - 0.7) + (kind == "sgd")

    best = []
    for seed in range(5):
        study = optuna.create_study(sampler=sampler(seed=seed))
        study.optimize(branches, n_trials=64)
        best.append(study.best_value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(branches, n_trials=64)
    assert np.median(best) < study.best_value


@every
def test_changing_ranges(sampler: Sampler) -> None:
    def changing(trial: optuna.Trial) -> float:
        x = trial.suggest_int("x", 1, 10 if trial.number < 30 else 4)
        y = trial.suggest_float("y", -1, 1) if trial.number > 15 else 0.5
        return x + y**2

    study = optuna.create_study(sampler=sampler(seed=0))
    study.optimize(changing, n_trials=90)
    assert study.best_value < 1.01


@every
def test_enqueued_trials_count(sampler: Sampler) -> None:
    study = optuna.create_study(sampler=sampler(seed=0))
    good = {"lr": 1e-3, "depth": 4, "width": 64, "act": "gelu"}
    study.enqueue_trial(good)
    study.enqueue_trial({"depth": 5})
    study.optimize(objective, n_trials=40)
    assert study.trials[0].params == good
    assert study.trials[1].params["depth"] == 5
    later = [trial.value or 0.0 for trial in study.trials[20:]]
    assert np.median(later) < 1.5  # that of random trials is about 4


@every
def test_hyperband(sampler: Sampler) -> None:
    def reported(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    study = optuna.create_study(study_name="s", sampler=sampler(seed=0), pruner=pruner)
    study.optimize(reported, n_trials=80)
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert study.best_value < 1.0


@every
def test_partial_fixed_parameters(sampler: Sampler) -> None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fixed = optuna.samplers.PartialFixedSampler({"depth": 4}, sampler(seed=0))
    study = optuna.create_study(sampler=fixed)
    study.optimize(objective, n_trials=64)
    assert {trial.params["depth"] for trial in study.trials} == {4}
    assert study.best_value < 0.5


@every
def test_one_instance_serves_studies_in_turns(sampler: Sampler) -> None:
    shared = sampler(seed=3)
    studies = [optuna.create_study(sampler=shared, direction=d) for d in ("minimize", "maximize")]
    for _ in range(50):
        studies[0].optimize(objective, n_trials=1)
        studies[1].optimize(lambda trial: trial.suggest_float("other", 0, 1), n_trials=1)
    assert [trial.params for trial in studies[0].trials] == run(sampler(seed=3))


@every
def test_threads_repeat_nothing(sampler: Sampler) -> None:
    study = optuna.create_study(sampler=sampler(seed=0))
    study.optimize(objective, n_trials=60, n_jobs=4)
    assert len({str(trial.params) for trial in study.trials}) == 60


@every
def test_more_workers_than_one_step_can_use(sampler: Sampler) -> None:
    study = optuna.create_study(sampler=sampler(seed=0))
    for _ in range(3):
        trials = [study.ask() for _ in range(40)]
        values = [objective(trial) for trial in trials]
        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value)
    assert len({str(trial.params) for trial in study.trials}) == 120


@every
@pytest.mark.parametrize("function", ["objective", "conditional", "on_a_grid"])
@pytest.mark.parametrize("n_running", [1, 4])
def test_a_new_instance_for_every_trial_is_as_one_for_all(
    sampler: Sampler, function: str, n_running: int
) -> None:
    """Whatever a sampler remembers, it would find again."""

    def batches(fresh: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler(seed=4))
        running: list[optuna.Trial] = []
        for number in range(75):
            if fresh:
                study.sampler = sampler(seed=4)
            running.append(study.ask())
            value = globals()[function](running[-1])
            running[-1].set_user_attr("value", value)
            if len(running) == n_running:  # they end in another order than they have begun
                ended = running.pop(number * 7 % 3 % n_running)
                study.tell(ended, ended.user_attrs["value"])
        return [trial.params for trial in study.trials]

    assert batches(fresh=True) == batches(fresh=False)


@every
def test_pickled_sampler_goes_on(sampler: Sampler) -> None:
    storage = optuna.storages.InMemoryStorage()
    first = sampler(seed=3)
    run(first, 25, storage=storage)
    again = pickle.loads(pickle.dumps(first))
    study = optuna.load_study(study_name="s", storage=storage, sampler=again)
    study.optimize(objective, n_trials=25)
    assert [trial.params for trial in study.trials] == run(sampler(seed=3))


@every
def test_several_objectives_are_refused(sampler: Sampler) -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler())
    with pytest.raises(ValueError, match="needs a study with one objective"):
        study.ask()


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


def work(sampler: Sampler, path: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=sqlite(path), sampler=sampler(seed=0))
    study.optimize(objective, n_trials=n_trials)


@every
def test_two_processes_after_each_other_are_as_one(sampler: Sampler, tmp_path: Path) -> None:
    """Each with its own hashes of texts, from which no random number may come."""
    name, path = sampler.__name__, tmp_path / "study.db"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", SCRIPT, path, name], check=True)
    two = optuna.load_study(study_name="s", storage=sqlite(path))

    one = optuna.create_study(study_name="s", sampler=sampler())
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


def on_a_grid(trial: optuna.Trial) -> float:
    x, y = trial.suggest_int("x", 1, 9), trial.suggest_int("y", 1, 9)
    return (x - 6) ** 2 + (y - 4) ** 2


@every
@pytest.mark.parametrize("n_before", [1, 18])
def test_whenever_workers_meet_they_repeat_nothing(sampler: Sampler, n_before: int) -> None:
    """Three trials, each of which starts at any moment of the one before; samplers of their own.

    With 18 trials before they are past start-up.
    """
    storage = Interrupted()

    def suggest() -> None:
        study = optuna.load_study(study_name="s", storage=storage, sampler=sampler(seed=0))
        trial = study.ask()
        storage.start()
        on_a_grid(trial)

    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler(seed=0))
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


@every
def test_four_processes_lose_and_repeat_nothing(
    sampler: Sampler, tmp_path: Path, processes: ForkServerContext
) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(study_name="s", storage=sqlite(path))
    workers = [processes.Process(target=work, args=(sampler, path, 15)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 60
    assert len({str(trial.params) for trial in study.trials}) == 60
