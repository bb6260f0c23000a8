"""What becomes of a population whose members fail, die or are pruned."""

from __future__ import annotations

import logging
import math
from multiprocessing.context import ForkServerContext
import os
from pathlib import Path
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import create_trial
from optuna.trial import TrialState
import pytest

from optuna_ext import sqlite


if TYPE_CHECKING:
    from tests.samplers.conftest import Population


P = 6  # members of the population


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_the_lost_are_reborn_from_the_good(
    bad: float | None, synchronous: bool, caplog: pytest.LogCaptureFixture, population: Population
) -> None:
    def fragile(trial: optuna.Trial) -> float:
        value = population.train(trial)
        if trial.number in (P + 2, 3 * P, 3 * P + 1):
            if bad is None:
                raise MemoryError
            return bad
        return value

    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            study = population.run(
                6 * P,
                sampler=population.sampler(synchronous=synchronous),
                objective=fragile,
                catch=MemoryError,
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


def test_a_lost_generation_goes_on_from_the_one_before(population: Population) -> None:
    def fails(trial: optuna.Trial) -> float:
        value = population.train(trial)
        return math.nan if P <= trial.number < 2 * P else value

    study = population.run(3 * P, objective=fails)
    assert all(study.trials[2 * P + m].user_attrs["parent"] in range(P) for m in range(P))


def test_without_any_survivor_all_begin_anew(population: Population) -> None:
    study = population.run(3 * P, objective=lambda trial: population.train(trial) * math.nan)
    assert all("parent" not in trial.user_attrs for trial in study.trials)
    assert len({trial.params["lr"] for trial in study.trials}) == 3 * P
    study.optimize(population.train, n_trials=2 * P)
    assert all("parent" in trial.user_attrs for trial in study.trials[-P:])


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_dead_worker_blocks_nobody(synchronous: bool, population: Population) -> None:
    sampler = population.sampler(synchronous=synchronous, lost_after=0.3)
    study = optuna.create_study(sampler=sampler)
    study.optimize(population.train, n_trials=P - 1)
    thread = threading.Thread(target=study.ask)  # and nobody ever tells
    thread.start()
    thread.join()
    study.optimize(population.train, n_trials=2 * P)
    assert study.trials[P - 1].state == TrialState.RUNNING
    assert study.trials[2 * P - 1].user_attrs["parent"] != P - 1


def test_without_any_finished_interval_the_wait_is_bounded_by_the_option(
    population: Population,
) -> None:
    study = optuna.create_study(sampler=population.sampler(lost_after=0.2))
    thread = threading.Thread(target=lambda: [study.ask() for _ in range(P)])
    thread.start()
    thread.join()
    assert "parent" not in study.ask().user_attrs


def die(path: str, population: Population) -> None:
    study = optuna.load_study(
        study_name="s", storage=sqlite(path, heartbeat=1), sampler=population.sampler()
    )

    def kill(trial: optuna.Trial) -> float:
        population.train(trial)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    study.optimize(kill, n_trials=1)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_heartbeats_tell_who_is_dead(
    tmp_path: Path, processes: ForkServerContext, population: Population
) -> None:
    path = str(tmp_path / "study.db")
    study = optuna.create_study(
        study_name="s",
        storage=sqlite(path, heartbeat=1),
        sampler=population.sampler(lost_after=100.0),
    )
    study.optimize(population.train, n_trials=P - 1)
    worker = processes.Process(target=die, args=(path, population))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    study.optimize(population.train, n_trials=P)  # waits at once
    assert study.trials[P - 1].state == TrialState.FAIL


def test_a_trial_that_was_never_run_is_not_waited_for(population: Population) -> None:
    study = optuna.create_study(sampler=population.sampler())
    study.ask()
    study.optimize(population.train, n_trials=2 * P)
    assert study.trials[0].state == TrialState.RUNNING
    assert study.trials[P].user_attrs["parent"] != 0


def test_an_interrupted_wait_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch, population: Population
) -> None:
    study = optuna.create_study(sampler=population.sampler())
    thread = threading.Thread(target=study.ask)
    thread.start()
    thread.join()
    study.optimize(population.train, n_trials=P - 1)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(population.train, n_trials=1)
    assert study.trials[P].state == TrialState.FAIL


def test_a_retried_trial_takes_its_own_turn(population: Population) -> None:
    """As ``RetryHeartbeatStaleTrialCallback`` enqueues it, after every kind of death."""
    study = optuna.create_study(study_name="s", sampler=population.sampler())
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
            study.tell(trial, population.train(trial))
    assert population.fates(study) == population.fates(population.run())


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=2),
        optuna.pruners.HyperbandPruner(max_resource=9),
    ],
    ids=["median", "hyperband"],
)
def test_pruned_members_count_with_their_last_report(
    pruner: optuna.pruners.BasePruner, population: Population
) -> None:
    def prunable(trial: optuna.Trial) -> float:
        value = population.train(trial)
        if trial.should_prune():
            raise optuna.TrialPruned
        return value

    study = population.run(objective=prunable, pruner=pruner)
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert [t.params for t in study.trials] == [t.params for t in population.run().trials]


def test_burn_in_replaces_only_the_lost(population: Population) -> None:
    def fragile(trial: optuna.Trial) -> float:
        value = population.train(trial)
        return math.nan if trial.number == P + 1 else value

    study = population.run(5 * P, sampler=population.sampler(burn_in=3), objective=fragile)
    for trial in study.trials[P:]:
        parent = trial.user_attrs["parent"]
        if trial.user_attrs["generation"] <= 3:
            assert (parent == trial.number - P) == (trial.number != 2 * P + 1)
    last = [t for t in study.trials if t.user_attrs["generation"] == 4]
    assert sum(t.user_attrs["parent"] != t.number - P for t in last) == 2
