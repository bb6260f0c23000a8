"""Whose weights a member of a population goes on with."""

from __future__ import annotations

import math
from multiprocessing.context import ForkServerContext
from pathlib import Path
import pickle
import threading
import time
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import TrialState
import pytest

from optuna_ext import SobolSampler
from optuna_ext import sqlite
from optuna_ext import WarmupSampler
from optuna_ext.moves.population import Truncation
from optuna_ext.moves.population import TTest


if TYPE_CHECKING:
    from tests.samplers.conftest import Population


P = 6  # members of the population


def test_a_generation_after_the_other(population: Population) -> None:
    study = population.run(sampler=population.sampler(exploit=Truncation(0.3)))  # two of six
    trials = population.slots(study)
    assert sorted(trials) == [(g, m) for g in range(8) for m in range(P)]
    replaced = 0
    for (generation, member), trial in trials.items():
        assert trial.number == generation * P + member
        if generation == 0:
            assert "parent" not in trial.user_attrs
            continue
        before = [trials[generation - 1, m] for m in range(P)]
        ranking = sorted(before, key=lambda t: t.value or 0.0)
        parent = study.trials[trial.user_attrs["parent"]]
        if before[member] in ranking[-2:]:
            assert parent in ranking[:2]
            replaced += 1
            assert trial.params != parent.params
            for name, distribution in population.space.items():
                assert distribution._contains(distribution.to_internal_repr(trial.params[name]))
        else:
            assert parent == before[member]
            assert trial.params == parent.params
    assert replaced == 7 * 2


@pytest.mark.parametrize("seed", range(3))
def test_a_population_does_not_collapse(seed: int, population: Population) -> None:
    """However narrow the optimum: somebody tries twice or half of what a donor goes on with."""

    def needle(trial: optuna.Trial) -> float:
        return abs(math.log(trial.suggest_float("lr", 1e-4, 1.0, log=True) / 0.01))

    study = population.run(
        40 * P, needle, sampler=population.sampler(seed=seed, resample_probability=0.0)
    )
    for first in range(P, 40 * P, P):
        rates = [trial.params["lr"] for trial in study.trials[first : first + P]]
        assert max(rates) > 1.999 * min(rates)
    assert study.best_value < 0.5


def best_constant() -> float:
    """Return what twenty intervals with the best of all learning rates come to."""
    ends = []
    for lr in np.linspace(-4, 0, 100):
        weight = 9.0
        for age in range(20):
            weight = weight * 0.8 + (lr + 1 + 0.1 * age) ** 2
        ends.append(weight)
    return min(ends)


def test_a_population_follows_a_schedule_that_no_constant_can(population: Population) -> None:
    final = []
    for seed in range(5):
        study = population.run(20 * 12, sampler=population.sampler(population_size=12, seed=seed))
        final.append(min(t.value or 0.0 for t in study.trials[-12:]))
    assert np.median(final) < 0.75 * best_constant()


@pytest.mark.parametrize(
    "exploit", ["truncation", "tournament", TTest(n_evaluations=3, alpha=0.3)]
)
@pytest.mark.parametrize("n_jobs", [2, 4, P + 3])
def test_threads_train_the_same_lineages(
    exploit: Any, n_jobs: int, population: Population
) -> None:
    lock = threading.Lock()
    random = np.random.default_rng(n_jobs)

    def uneven(trial: optuna.Trial) -> float:
        with lock:
            pause = random.exponential(0.003)
        time.sleep(pause)
        return population.train(trial)

    one = population.run(sampler=population.sampler(exploit=exploit))
    many = population.run(
        sampler=population.sampler(exploit=exploit), objective=uneven, n_jobs=n_jobs
    )
    assert population.fates(one) == population.fates(many)
    assert len(population.fates(many)) == 8 * P
    parents = [t.user_attrs.get("parent") for t in one.trials[P:]]
    assert any(parent != number for number, parent in enumerate(parents))


def work(path: str, population: Population, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=sqlite(path), sampler=population.sampler())
    study.optimize(population.train, n_trials=n_trials)


def test_processes_train_the_same_lineages(
    tmp_path: Path, processes: ForkServerContext, population: Population
) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(study_name="s", storage=sqlite(path))
    workers = [processes.Process(target=work, args=(path, population, 2 * P)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert population.fates(study) == population.fates(population.run(6 * P))


def test_a_new_instance_for_every_trial_is_as_one_for_all(population: Population) -> None:
    study = optuna.create_study(study_name="s")
    for _ in range(8 * P):
        study.sampler = pickle.loads(pickle.dumps(population.sampler()))
        study.optimize(population.train, n_trials=1)
    assert population.fates(study) == population.fates(population.run())


def test_maximize_is_minimize_of_the_negative(population: Population) -> None:
    down = population.run()
    up = population.run(objective=lambda trial: -population.train(trial), direction="maximize")
    assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_workers_agree_on_a_seed_of_the_studys_name(population: Population) -> None:
    assert population.fates(
        population.run(sampler=population.sampler(seed=None))
    ) == population.fates(population.run(sampler=population.sampler(seed=None)))
    assert population.fates(
        population.run(sampler=population.sampler(seed=None))
    ) != population.fates(population.run())


def test_generations_may_be_asked_for_at_once(population: Population) -> None:
    study = optuna.create_study(study_name="s", sampler=population.sampler())
    for _ in range(8):
        trials = [study.ask() for _ in range(P)]
        for trial in reversed(trials):
            study.tell(trial, population.train(trial))
    assert population.fates(study) == population.fates(population.run())


def test_asking_for_more_than_can_be_known_is_an_error(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler())
    first = [study.ask() for _ in range(P)]
    with pytest.raises(RuntimeError, match="this thread has asked for 0, 1, 2, 3, 4, 5 without"):
        study.ask()
    assert study.trials[-1].state == TrialState.FAIL
    for trial in first:
        study.tell(trial, population.train(trial))
    second = [study.ask() for _ in range(P - 1)]  # the failed one has had its turn
    assert [trial.user_attrs["member"] for trial in second] == [1, 2, 3, 4, 5]


def test_asking_for_more_is_no_error_while_nothing_depends_on_it(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler(exploit=Truncation(0.2)))
    first = [study.ask() for _ in range(P)]
    for trial in first[:5]:
        study.tell(trial, float(trial.number))
    trial = study.ask()  # whatever the sixth will be, the first is not among the worst two
    assert trial.user_attrs["parent"] == 0


def test_asynchronous_trials_wait_for_nobody(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler(synchronous=False))
    trials = [study.ask() for _ in range(3 * P)]  # nothing is known: all are newborn
    assert all("parent" not in trial.user_attrs for trial in trials)
    assert len({trial.suggest_float("lr", 1e-4, 1.0, log=True) for trial in trials}) == 3 * P
    for trial in trials[: P - 1]:
        study.tell(trial, float(trial.number))
    trial = study.ask()
    assert trial.user_attrs["member"] == 0  # whose last interval is still running
    assert trial.user_attrs["parent"] in (0, 1)  # the best of what is finished


def test_asynchronous_members_are_compared_with_what_is_known(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler(population_size=4, synchronous=False))
    for value in (0.0, 1.0, 2.0, 3.0):
        study.tell(study.ask(), value)
    second = [study.ask() for _ in range(4)]
    assert [trial.user_attrs["parent"] for trial in second] == [0, 1, 2, 0]
    for trial in (second[0], second[1]):  # for the others, the first generation counts
        study.tell(trial, 2.5)
    parents = [study.ask().user_attrs["parent"] for _ in range(4)]
    assert parents == [4, 5, 4, 2]  # two are still at their interval, and copy the best there is


def test_one_asynchronous_worker_is_as_one_synchronous(population: Population) -> None:
    assert population.fates(
        population.run(sampler=population.sampler(synchronous=False))
    ) == population.fates(population.run())


def test_asynchronous_threads_learn_as_well(population: Population) -> None:
    final = []
    for seed in range(5):
        sampler = population.sampler(population_size=12, synchronous=False, seed=seed)
        study = population.run(20 * 12, sampler=sampler, n_jobs=3)
        final.append(min(t.value or 0.0 for t in study.trials[-12:]))
    assert np.median(final) < best_constant()


def test_a_population_after_something_else(population: Population) -> None:
    sampler = WarmupSampler(SobolSampler(seed=3), 5, population.sampler(first_trial=5))
    study = population.run(5 + 3 * P, sampler=sampler)
    assert all("member" not in trial.user_attrs for trial in study.trials[:5])
    assert [t.user_attrs["member"] for t in study.trials[5:]] == [*range(P)] * 3
    assert all(t.user_attrs["parent"] >= 5 for t in study.trials[5 + P :])


def test_trials_of_others_are_nobodys_parents(population: Population) -> None:
    study = population.run(
        3 * P - 2, sampler=SobolSampler(seed=0), objective=lambda t: t.suggest_float("x", 0, 1)
    )
    study.sampler = population.sampler()
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2 * P + 2)
    assert all(t.user_attrs.get("parent", 99) >= 3 * P - 2 for t in study.trials)
    assert all("parent" in t.user_attrs for t in study.trials[-P:])


@pytest.mark.parametrize("other", [{"population_size": P + 1}, {"first_trial": 1}])
def test_a_population_does_not_change_its_size(
    other: dict[str, int], population: Population
) -> None:
    study = population.run(2 * P)
    study.sampler = population.sampler(**other)
    with pytest.raises(ValueError, match=r"trial 11 is member 5 of generation 1, and not . of "):
        study.optimize(population.train, n_trials=1)
    study.sampler = population.sampler()
    study.optimize(population.train, n_trials=2 * P)
    assert study.trials[2 * P].state == TrialState.FAIL  # a turn that was lost
    assert "parent" in study.trials[3 * P].user_attrs


def test_one_instance_serves_studies_in_turns(population: Population) -> None:
    shared = population.sampler()
    one = optuna.create_study(study_name="s", sampler=shared)
    other = optuna.create_study(study_name="t", sampler=shared, direction="maximize")
    for _ in range(4 * P):
        one.optimize(population.train, n_trials=1)
        other.optimize(lambda trial: trial.suggest_float("other", 0, 1), n_trials=1)
    assert population.fates(one) == population.fates(population.run(4 * P))
