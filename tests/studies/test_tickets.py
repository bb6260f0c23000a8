from __future__ import annotations

import getpass
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import optuna
from optuna.storages import RDBStorage
import psutil
import pytest

from optuna_ext import open_storage
from studies import run
from studies._locks import study_lock
from studies._tickets import _is_dead
from studies._tickets import _this_process
from studies._tickets import Tickets
from studies._workers import _cause


if TYPE_CHECKING:
    from tests.studies.conftest import Toy


@pytest.mark.parametrize(
    ("namespace", "state"), [(None, "FAIL"), ("pid:[1]", "RUNNING")], ids=["here", "container"]
)
def test_only_processes_that_can_be_seen_from_here_count_as_dead(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, namespace: str | None, state: str
) -> None:
    """A container with this host name has other processes with the same numbers."""
    assert run.main(toy.arguments("--trials", 1)) == 0
    host, _, created = toy.trials()[0].user_attrs["process"].split()
    dead = next(pid for pid in range(2, 10**6) if not psutil.pid_exists(pid))
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{toy.database}")
    study.ask().set_user_attr("process", f"{host} {dead} {created}")
    if namespace is not None:
        monkeypatch.setattr(os, "readlink", lambda path: namespace)
    assert run.main(toy.arguments("--trials", 3)) == 0
    assert [trial.state.name for trial in toy.trials()] == ["COMPLETE", state, "COMPLETE"]


def test_a_heart_beats_before_its_process_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it would live forever in the eyes of other machines."""
    location = f"journal:{tmp_path}/study"
    storage = open_storage(location)
    study = optuna.create_study(storage=storage)
    tickets = Tickets(study, storage, location=location, total=1)
    tickets.sign_trials()
    written = []
    write = storage.set_trial_user_attr

    def spy(trial_id: int, key: str, value: object) -> None:
        written.append(key)
        write(trial_id, key, value)

    monkeypatch.setattr(storage, "set_trial_user_attr", spy)
    assert tickets.take()
    study.ask()
    tickets.ended()
    assert written[:2] == ["heartbeat", "process"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing moves with the clock")
def test_nobody_dies_of_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = _this_process()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: 0.0)
    assert not _is_dead(signature)
    assert _is_dead(f"{signature}0")  # of a process that had the number before


@pytest.mark.parametrize(("kind", "state"), [("journal:", "FAIL"), ("", "RUNNING")])
def test_a_process_of_another_machine_is_dead_when_its_heart_stops(
    kind: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no process of another machine can be that shares an SQLite file."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    location = f"{kind}{tmp_path}/study"
    storage = open_storage(location)
    study = optuna.create_study(storage=storage)
    for beats in (True, False):
        trial = study.ask()
        trial.set_user_attr("process", "other/pid:[1] 1 1.0")
        trial.set_user_attr("heartbeat", 0)
        tickets = Tickets(study, storage, location=location, total=9, retries=1)
        for count in range(6):
            if beats:
                trial.set_user_attr("heartbeat", count)
            now += 50
            tickets.fail_orphans()
        if beats:
            assert study.trials[-1].state.name == "RUNNING"
            study.tell(trial, 0.0)
    assert study.trials[1].state.name == state
    assert [t.state.name for t in study.trials[2:]] == ["WAITING"] * (state == "FAIL")


def test_a_user_without_a_name_has_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run under any number."""

    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nameless)
    with study_lock("grpc://localhost:13000", optuna.storages.InMemoryStorage(), "s"):
        pass


def test_a_worker_that_a_nameless_signal_killed_is_told_of() -> None:
    assert _cause(-signal.SIGKILL) == "was killed by SIGKILL"
    assert _cause(-signal.SIGRTMIN - 1) == f"was killed by signal {signal.SIGRTMIN + 1}"
    assert _cause(3) == "ended with code 3"
    assert _cause(0) == ""


def test_machines_on_one_server_share_its_lock(new_database: str) -> None:
    first, second, other = (open_storage(new_database) for _ in range(3))
    lock = study_lock(new_database, first, "s")
    taken = threading.Event()

    def take() -> None:
        with study_lock(new_database, second, "s"):
            taken.set()

    with lock:
        with study_lock(new_database, other, "another study"):
            pass
        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.5)
        assert isinstance(first, RDBStorage)
        with first.engine.connect() as connection:  # as if the machine had died
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND granted"
            )
        assert taken.wait(60)
        thread.join()
    with lock:  # it is as good as new
        pass
    for storage in (first, second, other):
        assert isinstance(storage, RDBStorage)
        storage.engine.dispose()
