from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from typing import Any
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
import pytest

from optuna_ext.storage import open_storage
from optuna_ext.storage import sqlite


if TYPE_CHECKING:
    from tests.conftest import Disposed
    from tests.conftest import Objective


N_WAITING = 60


def run_together(
    processes: ForkServerContext, target: Callable[..., Any], *args: object, n: int = 4
) -> list[Any]:
    """The results of ``target(barrier, *args)`` in ``n`` processes."""
    barrier, queue = processes.Barrier(n), processes.Queue()
    workers = [
        processes.Process(target=_call, args=(target, args, barrier, queue)) for _ in range(n)
    ]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=240) for _ in workers]
    for worker in workers:
        worker.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _call(target: Callable[..., Any], args: tuple[Any, ...], barrier: Barrier, queue: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    RDBStorage("sqlite:///:memory:")  # imports what opening a storage will
    try:
        queue.put(target(barrier, *args))
    except Exception as error:  # noqa: BLE001 - reported by the test
        barrier.abort()
        queue.put(error)


def optimize_new_storages(
    barrier: Barrier, objective: Objective, urls: list[str], n_trials: int
) -> None:
    for url in urls:
        barrier.wait(timeout=240)
        storage = open_storage(url)
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    study.optimize(objective, n_trials=n_trials)


def claim_waiting_trials(barrier: Barrier, storage: BaseStorage) -> list[int]:
    study = optuna.load_study(study_name="s", storage=storage)
    barrier.wait(timeout=240)
    claimed: list[int] = []
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        if trial.number < N_WAITING:  # else a new one, because the queue was just emptied
            claimed.append(trial.number)
        study.tell(trial, 0.0)
    return claimed


class TestConformance(StorageTestCase):  # type: ignore[misc, unused-ignore]
    @pytest.fixture
    def storage(self, tmp_path: Path, disposed: Disposed) -> Iterator[BaseStorage]:
        with disposed(sqlite(tmp_path / "study.db")) as storage:
            yield storage


class TestSQLite:
    def pragmas(self, storage: RDBStorage) -> tuple[object, ...]:
        with storage.engine.connect() as connection:
            return tuple(
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout")
            )

    def test_pragmas_of_every_connection(self, tmp_path: Path, disposed: Disposed) -> None:
        normal = 1
        with disposed(sqlite(tmp_path / "study.db")) as storage:
            found = [self.pragmas(storage)]
            # Two connections at once, so that the pool has to open a second one.
            with storage.engine.connect():
                thread = threading.Thread(target=lambda: found.append(self.pragmas(storage)))
                thread.start()
                thread.join()
            with disposed(pickle.loads(pickle.dumps(storage))) as copy:
                found.append(self.pragmas(copy))
        assert found == [("wal", normal, 60_000)] * 3

    def test_only_the_file_is_left_when_closed(
        self, tmp_path: Path, disposed: Disposed, objective: Objective
    ) -> None:
        with disposed(sqlite(tmp_path / "study.db")) as storage:
            optuna.create_study(storage=storage).optimize(objective, n_trials=2)
            assert {path.name for path in tmp_path.iterdir()} == {
                "study.db",
                "study.db-wal",
                "study.db-shm",
            }
        assert [path.name for path in tmp_path.iterdir()] == ["study.db"]

    def test_same_tables_as_optuna(self, tmp_path: Path, disposed: Disposed) -> None:
        def tables(path: Path) -> list[tuple[str, ...]]:
            with closing(sqlite3.connect(path)) as connection:
                return sorted(connection.execute("SELECT type, name, sql FROM sqlite_master"))

        with (
            disposed(RDBStorage(f"sqlite:///{tmp_path}/optuna.db")) as theirs,
            disposed(sqlite(tmp_path / "ours.db")) as ours,
        ):
            assert ours.get_current_version() == theirs.get_head_version()
        assert tables(tmp_path / "ours.db") == tables(tmp_path / "optuna.db")

    def test_opens_what_optuna_wrote_and_the_reverse(
        self, tmp_path: Path, disposed: Disposed, objective: Objective
    ) -> None:
        path = tmp_path / "study.db"
        with disposed(RDBStorage(f"sqlite:///{path}")) as storage:
            optuna.create_study(study_name="s", storage=storage).optimize(objective, n_trials=2)
        with disposed(sqlite(path)) as storage:
            optuna.load_study(study_name="s", storage=storage).optimize(objective, n_trials=2)
            with disposed(RDBStorage(f"sqlite:///{path}")) as plain:
                assert len(optuna.load_study(study_name="s", storage=plain).trials) == 4

    def test_an_empty_file_is_a_new_file(self, tmp_path: Path, disposed: Disposed) -> None:
        path = tmp_path / "study.db"
        path.touch()
        with disposed(sqlite(path)) as storage:
            assert optuna.create_study(storage=storage).trials == []

    def test_home_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disposed: Disposed
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        with disposed(sqlite("~/study.db")):
            assert (tmp_path / "study.db").exists()

    def test_follows_no_later_chdir(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disposed: Disposed
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        with disposed(sqlite("study.db")) as storage:
            monkeypatch.chdir("elsewhere")
            storage.engine.dispose()
            optuna.create_study(study_name="s", storage=storage)
            with disposed(sqlite("../study.db")) as again:
                assert optuna.get_all_study_names(again) == ["s"]

    def test_file_system_without_wal(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        disposed: Disposed,
        objective: Objective,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # SQLite's dot-file locking, meant for network file systems, has no shared memory.
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3,
            "connect",
            lambda path, **kwargs: connect(f"file:{path}?vfs=unix-dotfile", uri=True, **kwargs),
        )
        storage = sqlite(tmp_path / "study.db")
        assert f"The file system of {tmp_path / 'study.db'} has no write-ahead" in caplog.text
        full = 2
        with disposed(storage):
            assert self.pragmas(storage) == ("delete", full, 60_000)
            study = optuna.create_study(storage=storage)
            study.optimize(objective, n_trials=2)
            assert len(study.trials) == 2


class TestWorkers:
    def test_four_processes_on_missing_files(
        self,
        tmp_path: Path,
        processes: ForkServerContext,
        disposed: Disposed,
        objective: Objective,
    ) -> None:
        urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(6)]
        run_together(processes, optimize_new_storages, objective, urls, 25)
        with disposed(open_storage(urls[-1])) as storage:
            trials = optuna.load_study(study_name="s", storage=storage).trials
        assert [trial.number for trial in trials] == list(range(100))
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert {len(trial.intermediate_values) for trial in trials} == {5}

    def test_each_waiting_trial_is_claimed_by_one_worker(
        self, tmp_path: Path, processes: ForkServerContext, disposed: Disposed
    ) -> None:
        with disposed(sqlite(tmp_path / "study.db")) as storage:
            study = optuna.create_study(study_name="s", storage=storage)
            for mark in range(N_WAITING):
                study.enqueue_trial({"mark": mark})
            claimed = run_together(
                processes, claim_waiting_trials, storage
            )  # the storage is pickled
            assert sorted(sum(claimed, [])) == list(range(N_WAITING))

    def test_killed_worker_is_retried_and_loses_nothing(
        self, tmp_path: Path, disposed: Disposed
    ) -> None:
        path = tmp_path / "study.db"
        script = (
            "import sys, time, optuna\n"
            "from optuna_ext import sqlite\n"
            "def objective(trial):\n"
            "    x = trial.suggest_float('x', 0, 1)\n"
            "    trial.report(x, 0)\n"
            "    if trial.number == 3:\n"
            "        print('hanging', flush=True)\n"
            "        time.sleep(600)\n"
            "    return x\n"
            "storage = sqlite(sys.argv[1], heartbeat=1, retries=1)\n"
            "optuna.create_study(study_name='s', storage=storage).optimize(objective)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"hanging\n"
            with closing(sqlite3.connect(path)) as connection:
                # The heart beats in a thread of its own: without one beat nobody can miss it.
                while not connection.execute(
                    "SELECT 1 FROM trial_heartbeats JOIN trials USING (trial_id) WHERE number = 3"
                ).fetchone():
                    time.sleep(0.01)
            worker.kill()
        with disposed(sqlite(path, heartbeat=1, retries=1)) as storage:
            study = optuna.load_study(study_name="s", storage=storage)
            assert [trial.state for trial in study.trials] == [
                *[TrialState.COMPLETE] * 3,
                TrialState.RUNNING,
            ]
            time.sleep(3.2)  # two heartbeats, in whole seconds of SQLite's clock
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            killed, retried = study.trials[3:]
        assert killed.state == TrialState.FAIL
        assert killed.intermediate_values == {0: killed.params["x"]}
        assert retried.state == TrialState.COMPLETE
        assert retried.params == killed.params


class TestPostgreSQL:
    def test_four_processes_on_a_new_database(
        self,
        new_database: str,
        processes: ForkServerContext,
        disposed: Disposed,
        objective: Objective,
    ) -> None:
        run_together(processes, optimize_new_storages, objective, [new_database], 5)
        with disposed(open_storage(new_database, heartbeat=30, retries=1)) as storage:
            trials = optuna.load_study(study_name="s", storage=storage).trials
            assert storage.get_heartbeat_interval() == 30
        assert [trial.number for trial in trials] == list(range(20))
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}

    def test_outlives_a_lost_connection(
        self, new_database: str, disposed: Disposed, objective: Objective
    ) -> None:
        with disposed(open_storage(new_database)) as storage:
            study = optuna.create_study(storage=storage)
            study.optimize(objective, n_trials=1)
            with storage.engine.connect() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            with storage.engine.connect() as first, storage.engine.connect():
                first.exec_driver_sql("SELECT 1")
            study.optimize(objective, n_trials=1)
            assert len(study.trials) == 2

    def test_a_database_that_does_not_exist(self, postgresql: str) -> None:
        with pytest.raises(ConnectionError, match='cannot use .*database "none" does not exist'):
            open_storage(postgresql.replace("/?", "/none?"))
