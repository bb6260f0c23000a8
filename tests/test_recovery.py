from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from optuna_ext import Heartbeat
from optuna_ext import open_storage
from optuna_ext.recovery import HEARTBEAT


INTERVAL = 0.5  # seconds; a busy machine may hold a thread up for part of three of them
WORKER = """
import sys
import time
import optuna
from optuna_ext import Heartbeat, open_storage

study = optuna.load_study(study_name="s", storage=open_storage(sys.argv[1]))
heartbeat = Heartbeat(study, interval=float(sys.argv[2]), retries=1)
trial = study.ask()
with heartbeat.beating(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("note", "kept")
    trial.report(x, 1)
    print("hanging", flush=True)
    time.sleep(600)
"""


class Clock:
    """Stands in for this process's monotonic clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def running_trial(study: optuna.Study, beat: int) -> optuna.Trial:
    """A trial of another worker."""
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.set_user_attr(HEARTBEAT, beat)
    return trial


def pulses(study: optuna.Study, clock: Clock, **options: Any) -> Callable[[float], list[str]]:
    """A function that looks once after some seconds and returns the states of the trials."""
    heartbeat = Heartbeat(study, interval=10, **options)

    def look(seconds: float) -> list[str]:
        clock.now += seconds
        heartbeat._look()
        return [trial.state.name for trial in study.trials]

    look(0)
    return look


class TestWatch:
    def test_three_missed_beats_are_death(self, clock: Clock) -> None:
        study = optuna.create_study()
        running_trial(study, 5)
        look = pulses(study, clock)
        assert [look(10) for _ in range(2)] == [["RUNNING"]] * 2
        assert look(10) == ["FAIL"]

    def test_a_beat_in_time_is_life_whatever_it_says(self, clock: Clock) -> None:
        study = optuna.create_study()
        trial = running_trial(study, 5)
        look = pulses(study, clock)
        for beat in (6, 3, -1, 10**9):
            assert [look(10) for _ in range(2)] == [["RUNNING"]] * 2
            trial.set_user_attr(HEARTBEAT, beat)
            assert look(10) == ["RUNNING"]

    def test_a_suspended_watcher_blames_nobody(self, clock: Clock) -> None:
        study = optuna.create_study()
        running_trial(study, 5)
        look = pulses(study, clock)
        assert look(10_000) == ["RUNNING"]

    def test_trials_of_other_programs_are_left_alone(self, clock: Clock) -> None:
        study = optuna.create_study()
        study.ask()
        look = pulses(study, clock, retries=1)
        assert [look(10) for _ in range(5)][-1] == ["RUNNING"]

    def test_the_clocks_of_other_machines_do_not_matter(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = optuna.create_study()
        trial = running_trial(study, 0)
        look = pulses(study, clock)
        for beat in range(1, 6):
            monkeypatch.setattr(time, "time", lambda beat=beat: (-1) ** beat * 1e9)
            trial.set_user_attr(HEARTBEAT, beat)
            assert look(25) == ["RUNNING"]

    def test_own_trials_live(self, clock: Clock) -> None:
        study = optuna.create_study()
        heartbeat = Heartbeat(study, interval=10)
        with heartbeat.beating(study.ask()):
            for _ in range(5):
                clock.now += 10
                heartbeat._look()
            assert study.trials[0].state == TrialState.RUNNING

    def test_finished_trials_stay_what_they_are(self, clock: Clock) -> None:
        study = optuna.create_study()
        study.tell(running_trial(study, 1), 1.0)
        study.tell(running_trial(study, 1), state=TrialState.FAIL)
        look = pulses(study, clock, retries=1)
        assert [look(10) for _ in range(4)][-1] == ["COMPLETE", "FAIL"]


class TestRetry:
    def test_it_has_what_optunas_own_retry_has(self, clock: Clock) -> None:
        study = optuna.create_study()
        study.enqueue_trial({"x": 0.25})
        running_trial(study, 1).set_user_attr("note", "kept")
        look = pulses(study, clock, retries=1)
        for _ in range(3):
            look(10)
        failed, ours = study.trials
        del failed.user_attrs[HEARTBEAT]
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            RetryHeartbeatStaleTrialCallback()(study, failed)
        theirs = study.trials[-1]
        for name in ("params", "distributions", "user_attrs", "system_attrs", "state"):
            assert getattr(ours, name) == getattr(theirs, name)

    def test_values_up_to_the_checkpoint_are_kept(self, clock: Clock) -> None:
        study = optuna.create_study()
        trial = running_trial(study, 1)
        for step in range(1, 6):
            trial.report(step / 10, step)
        mark = {"artifact": "a", "step": 3, "size": 1, "sha256": "00"}
        trial.set_user_attr("checkpoint", mark)
        look = pulses(study, clock, retries=1)
        for _ in range(3):
            look(10)
        retried = study.trials[-1]
        assert retried.state == TrialState.WAITING
        assert retried.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
        assert retried.user_attrs == {"checkpoint": mark}

    def test_only_deaths_without_progress_use_retries_up(self, clock: Clock) -> None:
        study = optuna.create_study()
        look = pulses(study, clock, retries=1)
        steps = [None, 1, 2, 3, 3]  # where each attempt's last checkpoint is
        for number, step in enumerate(steps):
            trial = study.ask()
            trial.set_user_attr(HEARTBEAT, 0)
            assert trial.number == number
            if step is not None:
                mark = {"artifact": "a", "step": step, "size": 1, "sha256": "00"}
                trial.set_user_attr("checkpoint", mark)
            look(0)
            for _ in range(3):
                look(10)
        assert [trial.state.name for trial in study.trials] == ["FAIL"] * 5
        assert study.trials[-1].system_attrs["retry_history"] == [0, 1, 2, 3]
        assert study.trials[-1].system_attrs["failed_trial"] == 0

    def test_a_retry_that_its_enqueuer_did_not_live_to_enqueue(self, clock: Clock) -> None:
        study = optuna.create_study()
        trial = running_trial(study, 1)
        trial.set_user_attr(HEARTBEAT, "lost")  # by a watcher who then died
        study.tell(trial, state=TrialState.FAIL)
        look = pulses(study, clock, retries=1)
        assert [look(10) for _ in range(3)][-1] == ["FAIL", "WAITING"]
        assert [look(10) for _ in range(4)][-1] == ["FAIL", "WAITING"]

    def test_one_of_two_watchers_enqueues(self, clock: Clock) -> None:
        study = optuna.create_study()
        running_trial(study, 1)
        both = [pulses(study, clock, retries=1) for _ in range(2)]
        for _ in range(8):
            both[0](5), both[1](5)
        assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]

    def test_one_of_two_watchers_enqueues_what_a_third_left(self) -> None:
        study = optuna.create_study()
        trial = running_trial(study, 1)
        trial.set_user_attr(HEARTBEAT, "lost")
        study.tell(trial, state=TrialState.FAIL)
        seen = study.trials[0]
        for _ in range(2):  # both saw it before the first one acted
            Heartbeat(study, retries=1)._give_up(seen)
        assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]

    def test_an_objective_that_raises_is_not_repeated(self, clock: Clock) -> None:
        study = optuna.create_study()
        heartbeat = Heartbeat(study, interval=10, retries=1)

        def fails(trial: optuna.Trial) -> float:
            raise RuntimeError

        study.optimize(heartbeat(fails), n_trials=1, catch=RuntimeError)
        look = pulses(study, clock, retries=1)
        assert [look(10) for _ in range(4)][-1] == ["FAIL"]


class TestBeating:
    def test_it_beats_until_the_end(self) -> None:
        study = optuna.create_study()
        heartbeat = Heartbeat(study, interval=0.01)
        before = set(threading.enumerate())

        def objective(trial: optuna.Trial) -> float:
            seen: set[int] = set()
            while len(seen) < 3:
                seen.add(study.trials[trial.number].user_attrs[HEARTBEAT])
            return 1.0

        study.optimize(heartbeat(objective), n_trials=2, n_jobs=2)
        assert all(trial.user_attrs[HEARTBEAT] >= 2 for trial in study.trials)
        assert set(threading.enumerate()) <= before

    def test_it_outlives_an_outage_of_the_storage(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        study = optuna.create_study()
        trial = study.ask()
        set_user_attr, calls = trial.set_user_attr, []

        def sometimes(key: str, value: Any) -> None:
            calls.append(value)
            if value in (1, 2):
                raise ConnectionError("gone")
            set_user_attr(key, value)

        monkeypatch.setattr(trial, "set_user_attr", sometimes)
        with Heartbeat(study, interval=0.01).beating(trial):
            while study.trials[0].user_attrs.get(HEARTBEAT, 0) < 3:
                time.sleep(0.01)
        assert caplog.messages == ["A heartbeat was lost: gone"] * 2

    def test_a_worker_that_was_given_up_cannot_write_any_more(self) -> None:
        study = optuna.create_study()
        trial = study.ask()
        with Heartbeat(study, interval=0.01).beating(trial):
            study.tell(0, state=TrialState.FAIL)
            with pytest.raises(UpdateFinishedTrialError):
                trial.report(1.0, 1)

    @pytest.mark.parametrize("kind", ["journal:", ""], ids=["journal", "sqlite"])
    def test_a_killed_worker_of_ask_and_tell(self, kind: str, tmp_path: Path) -> None:
        url = f"{kind}{tmp_path}/study"
        study = optuna.create_study(study_name="s", storage=open_storage(url))
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(INTERVAL)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "hanging\n"
            heartbeat = Heartbeat(study, interval=INTERVAL, retries=1)
            assert heartbeat.fail_stale_trials() == []  # it waits for a beat, which comes
            os.kill(worker.pid, signal.SIGKILL)
        assert heartbeat.fail_stale_trials() == [0]
        assert heartbeat.fail_stale_trials() == []
        study.optimize(heartbeat(lambda trial: trial.suggest_float("x", 0, 1)), n_trials=1)
        failed, retried = study.trials
        assert (failed.state, retried.state) == (TrialState.FAIL, TrialState.COMPLETE)
        assert failed.intermediate_values == {1: failed.params["x"]}
        assert retried.params == failed.params
        assert retried.user_attrs == {"note": "kept", HEARTBEAT: 0}
        assert original_of(retried) == 0


def original_of(trial: FrozenTrial) -> int | None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        return RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "`interval` must be greater than 0 seconds, but got 0."),
        ({"interval": float("nan")}, "`interval` must be greater than 0 seconds, but got nan."),
        ({"retries": -1}, "`retries` must be at least 0, but got -1."),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Heartbeat(optuna.create_study(), **options)
