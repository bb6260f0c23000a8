from __future__ import annotations

from collections.abc import Callable
import logging
import math
from multiprocessing.context import ForkServerContext
import os
from pathlib import Path
import pickle
import signal
import threading
import time
from typing import Any
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import create_trial
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import SobolSampler
from optuna_ext import sqlite
from optuna_ext import WarmupSampler
from optuna_ext.moves import Mutation
from optuna_ext.moves.population import Truncation
from optuna_ext.moves.population import TTest


P = 6
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 0.95),
    "batch_size": IntDistribution(1, 64, log=True),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
}


def pbt(**kwargs: Any) -> PopulationBasedTrainingSampler:
    return PopulationBasedTrainingSampler(**{"population_size": P, "seed": 0, **kwargs})


def train(trial: optuna.Trial) -> float:
    """Go on with the parent's weight, and leave one for the children; the best lr falls."""
    params = {name: trial._suggest(name, distribution) for name, distribution in SPACE.items()}
    parent = trial.user_attrs.get("parent")
    weight, age = (9.0, 0) if parent is None else trial.study.trials[parent].user_attrs["state"]
    target = -1 - 0.1 * age
    gap = (math.log10(params["lr"]) - target) ** 2 + (params["momentum"] - 0.5) ** 2
    weight = weight * 0.8 + gap + 0.01 * (params["optimizer"] == "sgd")
    trial.set_user_attr("state", [weight, age + 1])
    trial.report(weight, age + 1)
    return float(weight)


def run(
    n_trials: int = 8 * P, objective: Callable[[optuna.Trial], float] = train, **kwargs: Any
) -> Study:
    about = {name: kwargs.pop(name) for name in ("n_jobs", "catch") if name in kwargs}
    study = optuna.create_study(study_name="s", **{"sampler": pbt(), **kwargs})
    study.optimize(objective, n_trials=n_trials, **about)
    return study


def fates(study: Study) -> list[tuple[Any, ...]]:
    """Return what became of every slot, whoever trained it and in whatever order."""
    places = {t.number: (t.user_attrs["generation"], t.user_attrs["member"]) for t in study.trials}
    return sorted(
        (places[t.number], places.get(t.user_attrs.get("parent", -1)), t.params, t.value)
        for t in study.trials
        if t.state == TrialState.COMPLETE
    )


def slots(study: Study) -> dict[tuple[int, int], FrozenTrial]:
    return {(t.user_attrs["generation"], t.user_attrs["member"]): t for t in study.trials}


def test_a_generation_after_the_other() -> None:
    study = run(sampler=pbt(exploit=Truncation(0.3)))  # two of six
    trials = slots(study)
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
            for name, distribution in SPACE.items():
                assert distribution._contains(distribution.to_internal_repr(trial.params[name]))
        else:
            assert parent == before[member]
            assert trial.params == parent.params
    assert replaced == 7 * 2


def test_copied_parameters_change_as_they_should() -> None:
    study = run(30 * P, sampler=pbt(resample_probability=0.0))
    factors = set()
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.user_attrs["member"] != trial.user_attrs["member"]:
            assert trial.params["optimizer"] == parent.params["optimizer"]
            assert trial.params["batch_size"] != parent.params["batch_size"]
            factors.add(round(trial.params["lr"] / parent.params["lr"], 6))
    assert factors == {2.0, 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_a_population_does_not_collapse(seed: int) -> None:
    """However narrow the optimum: somebody tries twice or half of what a donor goes on with."""

    def needle(trial: optuna.Trial) -> float:
        return abs(math.log(trial.suggest_float("lr", 1e-4, 1.0, log=True) / 0.01))

    study = run(40 * P, needle, sampler=pbt(seed=seed, resample_probability=0.0))
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


def test_a_population_follows_a_schedule_that_no_constant_can() -> None:
    final = []
    for seed in range(5):
        study = run(20 * 12, sampler=pbt(population_size=12, seed=seed))
        final.append(min(t.value or 0.0 for t in study.trials[-12:]))
    assert np.median(final) < 0.75 * best_constant()


@pytest.mark.parametrize(
    "exploit", ["truncation", "tournament", TTest(n_evaluations=3, alpha=0.3)]
)
@pytest.mark.parametrize("n_jobs", [2, 4, P + 3])
def test_threads_train_the_same_lineages(exploit: Any, n_jobs: int) -> None:
    lock = threading.Lock()
    random = np.random.default_rng(n_jobs)

    def uneven(trial: optuna.Trial) -> float:
        with lock:
            pause = random.exponential(0.003)
        time.sleep(pause)
        return train(trial)

    one = run(sampler=pbt(exploit=exploit))
    many = run(sampler=pbt(exploit=exploit), objective=uneven, n_jobs=n_jobs)
    assert fates(one) == fates(many)
    assert len(fates(many)) == 8 * P
    parents = [t.user_attrs.get("parent") for t in one.trials[P:]]
    assert any(parent != number for number, parent in enumerate(parents))


def work(path: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=sqlite(path), sampler=pbt())
    study.optimize(train, n_trials=n_trials)


def test_processes_train_the_same_lineages(tmp_path: Path, processes: ForkServerContext) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(study_name="s", storage=sqlite(path))
    workers = [processes.Process(target=work, args=(path, 2 * P)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert fates(study) == fates(run(6 * P))


def test_a_new_instance_for_every_trial_is_as_one_for_all() -> None:
    study = optuna.create_study(study_name="s")
    for _ in range(8 * P):
        study.sampler = pickle.loads(pickle.dumps(pbt()))
        study.optimize(train, n_trials=1)
    assert fates(study) == fates(run())


def test_maximize_is_minimize_of_the_negative() -> None:
    down = run()
    up = run(objective=lambda trial: -train(trial), direction="maximize")
    assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_workers_agree_on_a_seed_of_the_studys_name() -> None:
    assert fates(run(sampler=pbt(seed=None))) == fates(run(sampler=pbt(seed=None)))
    assert fates(run(sampler=pbt(seed=None))) != fates(run())


def test_generations_may_be_asked_for_at_once() -> None:
    study = optuna.create_study(study_name="s", sampler=pbt())
    for _ in range(8):
        trials = [study.ask() for _ in range(P)]
        for trial in reversed(trials):
            study.tell(trial, train(trial))
    assert fates(study) == fates(run())


def test_asking_for_more_than_can_be_known_is_an_error() -> None:
    study = optuna.create_study(sampler=pbt())
    first = [study.ask() for _ in range(P)]
    with pytest.raises(RuntimeError, match="this thread has asked for 0, 1, 2, 3, 4, 5 without"):
        study.ask()
    assert study.trials[-1].state == TrialState.FAIL
    for trial in first:
        study.tell(trial, train(trial))
    second = [study.ask() for _ in range(P - 1)]  # the failed one has had its turn
    assert [trial.user_attrs["member"] for trial in second] == [1, 2, 3, 4, 5]


def test_asking_for_more_is_no_error_while_nothing_depends_on_it() -> None:
    study = optuna.create_study(sampler=pbt(exploit=Truncation(0.2)))
    first = [study.ask() for _ in range(P)]
    for trial in first[:5]:
        study.tell(trial, float(trial.number))
    trial = study.ask()  # whatever the sixth will be, the first is not among the worst two
    assert trial.user_attrs["parent"] == 0


def test_asynchronous_trials_wait_for_nobody() -> None:
    study = optuna.create_study(sampler=pbt(synchronous=False))
    trials = [study.ask() for _ in range(3 * P)]  # nothing is known: all are newborn
    assert all("parent" not in trial.user_attrs for trial in trials)
    assert len({trial.suggest_float("lr", 1e-4, 1.0, log=True) for trial in trials}) == 3 * P
    for trial in trials[: P - 1]:
        study.tell(trial, float(trial.number))
    trial = study.ask()
    assert trial.user_attrs["member"] == 0  # whose last interval is still running
    assert trial.user_attrs["parent"] in (0, 1)  # the best of what is finished


def test_asynchronous_members_are_compared_with_what_is_known() -> None:
    study = optuna.create_study(sampler=pbt(population_size=4, synchronous=False))
    for value in (0.0, 1.0, 2.0, 3.0):
        study.tell(study.ask(), value)
    second = [study.ask() for _ in range(4)]
    assert [trial.user_attrs["parent"] for trial in second] == [0, 1, 2, 0]
    for trial in (second[0], second[1]):  # for the others, the first generation counts
        study.tell(trial, 2.5)
    parents = [study.ask().user_attrs["parent"] for _ in range(4)]
    assert parents == [4, 5, 4, 2]  # two are still at their interval, and copy the best there is


def test_one_asynchronous_worker_is_as_one_synchronous() -> None:
    assert fates(run(sampler=pbt(synchronous=False))) == fates(run())


def test_asynchronous_threads_learn_as_well() -> None:
    final = []
    for seed in range(5):
        sampler = pbt(population_size=12, synchronous=False, seed=seed)
        study = run(20 * 12, sampler=sampler, n_jobs=3)
        final.append(min(t.value or 0.0 for t in study.trials[-12:]))
    assert np.median(final) < best_constant()


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_the_lost_are_reborn_from_the_good(
    bad: float | None, synchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fragile(trial: optuna.Trial) -> float:
        value = train(trial)
        if trial.number in (P + 2, 3 * P, 3 * P + 1):
            if bad is None:
                raise MemoryError
            return bad
        return value

    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            study = run(
                6 * P, sampler=pbt(synchronous=synchronous), objective=fragile, catch=MemoryError
            )
    finally:
        optuna.logging.disable_propagation()
    for number in (P + 2, 3 * P, 3 * P + 1):
        parent = study.trials[study.trials[number + P].user_attrs["parent"]]
        assert parent.number not in (P + 2, 3 * P, 3 * P + 1)
        first = number - number % P
        seen = study.trials[first : first + P] if synchronous else study.trials[first : number + P]
        rivals = [t.value or 0.0 for t in seen if t.state == TrialState.COMPLETE]
        assert (parent.value or 0.0) <= np.median([v for v in rivals if math.isfinite(v)])
        assert f"Member {number % P} is lost: trial {number + P} goes on from" in caplog.text
    assert not any(t.user_attrs.get("parent") in (P + 2, 3 * P, 3 * P + 1) for t in study.trials)


def test_a_lost_generation_goes_on_from_the_one_before() -> None:
    def fails(trial: optuna.Trial) -> float:
        value = train(trial)
        return math.nan if P <= trial.number < 2 * P else value

    study = run(3 * P, objective=fails)
    assert all(study.trials[2 * P + m].user_attrs["parent"] in range(P) for m in range(P))


def test_without_any_survivor_all_begin_anew() -> None:
    study = run(3 * P, objective=lambda trial: train(trial) * math.nan)
    assert all("parent" not in trial.user_attrs for trial in study.trials)
    assert len({trial.params["lr"] for trial in study.trials}) == 3 * P
    study.optimize(train, n_trials=2 * P)
    assert all("parent" in trial.user_attrs for trial in study.trials[-P:])


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_dead_worker_blocks_nobody(synchronous: bool) -> None:
    sampler = pbt(synchronous=synchronous, lost_after=0.3)
    study = optuna.create_study(sampler=sampler)
    study.optimize(train, n_trials=P - 1)
    thread = threading.Thread(target=study.ask)  # and nobody ever tells
    thread.start()
    thread.join()
    study.optimize(train, n_trials=2 * P)
    assert study.trials[P - 1].state == TrialState.RUNNING
    assert study.trials[2 * P - 1].user_attrs["parent"] != P - 1


def test_without_any_finished_interval_the_wait_is_bounded_by_the_option() -> None:
    study = optuna.create_study(sampler=pbt(lost_after=0.2))
    thread = threading.Thread(target=lambda: [study.ask() for _ in range(P)])
    thread.start()
    thread.join()
    assert "parent" not in study.ask().user_attrs


def die(path: str) -> None:
    study = optuna.load_study(study_name="s", storage=sqlite(path, heartbeat=1), sampler=pbt())

    def kill(trial: optuna.Trial) -> float:
        train(trial)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    study.optimize(kill, n_trials=1)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_heartbeats_tell_who_is_dead(tmp_path: Path, processes: ForkServerContext) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(
        study_name="s", storage=sqlite(path, heartbeat=1), sampler=pbt(lost_after=100.0)
    )
    study.optimize(train, n_trials=P - 1)
    worker = processes.Process(target=die, args=(path,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    study.optimize(train, n_trials=P)  # waits at once
    assert study.trials[P - 1].state == TrialState.FAIL


def test_a_trial_that_was_never_run_is_not_waited_for() -> None:
    study = optuna.create_study(sampler=pbt())
    study.ask()
    study.optimize(train, n_trials=2 * P)
    assert study.trials[0].state == TrialState.RUNNING
    assert study.trials[P].user_attrs["parent"] != 0


def test_an_interrupted_wait_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=pbt())
    thread = threading.Thread(target=study.ask)
    thread.start()
    thread.join()
    study.optimize(train, n_trials=P - 1)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(train, n_trials=1)
    assert study.trials[P].state == TrialState.FAIL


def test_a_retried_trial_takes_its_own_turn() -> None:
    """As ``RetryHeartbeatStaleTrialCallback`` enqueues it, after every kind of death."""
    study = optuna.create_study(study_name="s", sampler=pbt())
    for number in range(9 * P):
        if sum(t.state == TrialState.COMPLETE for t in study.trials) == 8 * P:
            break
        trial = study.ask()
        if number in (2, P + 1, 3 * P, 3 * P + 1, 4 * P):
            if number != 2:  # which dies before it suggests anything
                trial.suggest_float("lr", 1e-4, 1.0, log=True)
            study.tell(trial, state=TrialState.FAIL)
            dead = study.trials[number]
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=dead.params,
                    distributions=dead.distributions,
                    user_attrs=dead.user_attrs,
                    system_attrs={"failed_trial": number, **dead.system_attrs},
                )
            )
        else:
            study.tell(trial, train(trial))
    assert fates(study) == fates(run())


def test_enqueued_parameters_win_and_take_a_turn() -> None:
    study = optuna.create_study(sampler=pbt())
    good = {"lr": 1e-2, "momentum": 0.5, "batch_size": 8, "optimizer": "adam"}
    study.enqueue_trial(good)
    study.enqueue_trial({"momentum": 0.1})
    study.optimize(train, n_trials=P)
    study.enqueue_trial({"momentum": 0.9})
    study.optimize(train, n_trials=2 * P)
    assert study.trials[0].params == good
    assert study.trials[1].params["momentum"] == 0.1
    assert study.trials[P].params["momentum"] == 0.9
    assert study.trials[P].user_attrs["member"] == 0
    assert sorted(slots(study)) == [(g, m) for g in range(3) for m in range(P)]


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=2),
        optuna.pruners.HyperbandPruner(max_resource=9),
    ],
    ids=["median", "hyperband"],
)
def test_pruned_members_count_with_their_last_report(pruner: optuna.pruners.BasePruner) -> None:
    def prunable(trial: optuna.Trial) -> float:
        value = train(trial)
        if trial.should_prune():
            raise optuna.TrialPruned
        return value

    study = run(objective=prunable, pruner=pruner)
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert [t.params for t in study.trials] == [t.params for t in run().trials]


def test_burn_in_replaces_only_the_lost() -> None:
    def fragile(trial: optuna.Trial) -> float:
        value = train(trial)
        return math.nan if trial.number == P + 1 else value

    study = run(5 * P, sampler=pbt(burn_in=3), objective=fragile)
    for trial in study.trials[P:]:
        parent = trial.user_attrs["parent"]
        if trial.user_attrs["generation"] <= 3:
            assert (parent == trial.number - P) == (trial.number != 2 * P + 1)
    last = [t for t in study.trials if t.user_attrs["generation"] == 4]
    assert sum(t.user_attrs["parent"] != t.number - P for t in last) == 2


def test_the_architecture_stays_with_the_weights() -> None:
    study = run(
        20 * P, sampler=pbt(architecture=["batch_size", "optimizer"], resample_probability=1.0)
    )
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        for name in ("batch_size", "optimizer"):
            assert trial.params[name] == parent.params[name]
        if parent.number != trial.number - P:
            assert trial.params["lr"] != parent.params["lr"]


def test_branches_of_a_conditional_space() -> None:
    def branches(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        value = trial.suggest_float("x", 0, 1)
        if kind == "a":
            value += trial.suggest_float("y", -1, 1) ** 2
        if kind == "b":
            value += abs(trial.suggest_int("n", 1, 9) - 4)
        return value

    study = run(30 * P, sampler=pbt(resample_probability=0.5), objective=branches)
    switches = 0
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number == trial.number - P:
            assert trial.params == parent.params
        switches += trial.params["kind"] != parent.params["kind"]
    assert switches > 5


def test_ranges_may_change_on_the_way() -> None:
    def changing(trial: optuna.Trial) -> float:
        late = trial.number >= 3 * P
        x = trial.suggest_int("x", 1, 4 if late else 100)
        y = trial.suggest_float("y", 0.0, 0.1 if late else 9.0)
        c = trial.suggest_categorical("c", ["a", "b"])
        return x + y + (c == "a")

    study = run(6 * P, objective=changing)
    for trial in study.trials[3 * P :]:
        assert trial.params["x"] <= 4
        assert trial.params["y"] <= 0.1


def test_initial_population_of_any_sampler() -> None:
    tpe = optuna.samplers.TPESampler(seed=1, n_startup_trials=2)
    study = run(4 * P, sampler=pbt(initial_population=tpe))
    expected = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2))
    expected.optimize(train, n_trials=P)
    assert [t.params for t in study.trials[:P]] == [t.params for t in expected.trials]
    sobol = optuna.create_study(study_name="s", sampler=SobolSampler(seed=0))
    sobol.optimize(train, n_trials=P)
    assert [t.params for t in run(P).trials] == [t.params for t in sobol.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_initial_population_of_the_best_trials_of_a_study(
    direction: Literal["minimize", "maximize"],
) -> None:
    former = optuna.create_study(direction=direction, sampler=SobolSampler(seed=5))
    former.optimize(train, n_trials=20)
    former.add_trial(former.best_trial)  # which is not to be there twice
    former.enqueue_trial(former.trials[3].params)
    former.optimize(lambda trial: train(trial) * math.nan, n_trials=1)
    sign = -1 if direction == "maximize" else 1
    best = sorted(former.trials[:20], key=lambda t: sign * (t.value or 0.0))
    study = run(2 * P, sampler=pbt(initial_population=former))
    assert [t.params for t in study.trials[:P]] == [t.params for t in best[:P]]
    small = optuna.create_study()
    small.add_trial(former.best_trial)
    study = run(P, sampler=pbt(initial_population=small))
    assert study.trials[0].params == former.best_params
    assert len({t.params["lr"] for t in study.trials}) == P


def test_explore_by_a_function() -> None:
    def halve(params: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"lr": params["lr"] / 2, "momentum": np.float64(rng.random()), "batch_size": 1000.4}

    study = run(sampler=pbt(explore=halve))
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number != trial.number - P:
            assert trial.params["lr"] == max(parent.params["lr"] / 2, 1e-4)
            assert trial.params["optimizer"] == parent.params["optimizer"]
            assert trial.params["batch_size"] == 64
            assert type(trial.params["momentum"]) is float


@pytest.mark.parametrize("make", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_explore_by_another_sampler(make: Callable[..., optuna.samplers.BaseSampler]) -> None:
    study = run(sampler=pbt(explore=make(seed=0), architecture=["optimizer"]))
    proposed = set()
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        assert trial.params["optimizer"] == parent.params["optimizer"]
        if parent.number != trial.number - P:
            proposed.add(trial.params["lr"])
        else:
            assert trial.params == parent.params
    assert len(proposed) == 7 * 2
    assert not proposed & {t.params["lr"] for t in study.trials[:P]}


def test_explore_by_another_mutation() -> None:
    study = run(sampler=pbt(explore=Mutation(factor=3.0), resample_probability=0.0))
    for trial in study.trials[P:]:
        parent = study.trials[trial.user_attrs["parent"]]
        if parent.number != trial.number - P:
            ratio = trial.params["lr"] / parent.params["lr"]
            assert ratio == pytest.approx(3.0) or ratio == pytest.approx(1 / 3)


def test_a_population_after_something_else() -> None:
    sampler = WarmupSampler(SobolSampler(seed=3), 5, pbt(first_trial=5))
    study = run(5 + 3 * P, sampler=sampler)
    assert all("member" not in trial.user_attrs for trial in study.trials[:5])
    assert [t.user_attrs["member"] for t in study.trials[5:]] == [*range(P)] * 3
    assert all(t.user_attrs["parent"] >= 5 for t in study.trials[5 + P :])


def test_trials_of_others_are_nobodys_parents() -> None:
    study = run(
        3 * P - 2, sampler=SobolSampler(seed=0), objective=lambda t: t.suggest_float("x", 0, 1)
    )
    study.sampler = pbt()
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2 * P + 2)
    assert all(t.user_attrs.get("parent", 99) >= 3 * P - 2 for t in study.trials)
    assert all("parent" in t.user_attrs for t in study.trials[-P:])


@pytest.mark.parametrize("other", [{"population_size": P + 1}, {"first_trial": 1}])
def test_a_population_does_not_change_its_size(other: dict[str, int]) -> None:
    study = run(2 * P)
    study.sampler = pbt(**other)
    with pytest.raises(ValueError, match=r"trial 11 is member 5 of generation 1, and not . of "):
        study.optimize(train, n_trials=1)
    study.sampler = pbt()
    study.optimize(train, n_trials=2 * P)
    assert study.trials[2 * P].state == TrialState.FAIL  # a turn that was lost
    assert "parent" in study.trials[3 * P].user_attrs


def test_partial_fixed_parameters() -> None:
    with pytest.warns(ExperimentalWarning):
        fixed = optuna.samplers.PartialFixedSampler({"momentum": 0.25}, pbt())
    study = run(4 * P, sampler=fixed)
    assert {trial.params["momentum"] for trial in study.trials} == {0.25}
    assert all("parent" in trial.user_attrs for trial in study.trials[P:])


def test_one_instance_serves_studies_in_turns() -> None:
    shared = pbt()
    one = optuna.create_study(study_name="s", sampler=shared)
    other = optuna.create_study(study_name="t", sampler=shared, direction="maximize")
    for _ in range(4 * P):
        one.optimize(train, n_trials=1)
        other.optimize(lambda trial: trial.suggest_float("other", 0, 1), n_trials=1)
    assert fates(one) == fates(run(4 * P))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"population_size": 1}, ValueError, "`population_size` must be at least 2, but got 1"),
        ({"population_size": 2.5}, TypeError, "`population_size` must be an integer"),
        ({"exploit": "best"}, ValueError, "`exploit` must be one of .*'t-test'.* got 'best'"),
        ({"explore": 1.2}, TypeError, "`explore` must be a Mutation, an Optuna sampler or a func"),
        ({"resample_probability": 1.5}, ValueError, r"`resample_probability` must be in \[0, 1\]"),
        ({"architecture": "units"}, TypeError, "`architecture` must be a collection of names"),
        ({"burn_in": -1}, ValueError, "`burn_in` must be at least 0"),
        ({"lost_after": 0.0}, ValueError, "`lost_after` must be positive, but got 0"),
        ({"initial_population": "sobol"}, TypeError, "`initial_population` must be an Optuna sam"),
        ({"first_trial": -1}, ValueError, "`first_trial` must be at least 0"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PopulationBasedTrainingSampler(**kwargs)


def test_a_study_of_several_objectives_gives_no_initial_population() -> None:
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="`initial_population` must be a study with one objecti"):
        pbt(initial_population=several)
