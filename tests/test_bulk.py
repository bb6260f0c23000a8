from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from datetime import timedelta
import logging
import math
from pathlib import Path
import pickle
import sqlite3
import subprocess
import sys
import time

import optuna
from optuna.storages import BaseStorage
from optuna.storages import InMemoryStorage
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest
from sqlalchemy import event

from optuna_ext import _rows
from optuna_ext import bulk_storage
from optuna_ext import sqlite
from optuna_ext._bulk import BulkStorage


NEVER = 1000.0  # seconds between two writes


@contextmanager
def opened(url: str | Path, *, interval: float = NEVER) -> Iterator[BulkStorage]:
    storage = bulk_storage(url, interval=interval)
    assert isinstance(storage, BulkStorage)
    with storage:
        yield storage
    storage.backend.engine.dispose()


@contextmanager
def plain(path: Path) -> Iterator[Study]:
    """The study as Optuna itself reads it."""
    storage = RDBStorage(f"sqlite:///{path}")
    yield optuna.load_study(study_name="s", storage=storage)
    storage.engine.dispose()


def new_study(storage: BaseStorage, **about: object) -> Study:
    about = {"sampler": optuna.samplers.RandomSampler(seed=0), **about}
    return optuna.create_study(study_name="s", storage=storage, **about)  # type: ignore[arg-type]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(study: Study) -> None:
    """One trial of every kind, told and not told."""
    for number in range(6):
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1, log=True)
        trial.suggest_int("width", 8, 64, step=8)
        trial.suggest_categorical("act", ["relu", None, 3, True])
        for step, value in enumerate([number / 3, math.inf, -math.inf]):
            trial.report(value, step)
        trial.set_user_attr("shape", (1, {"a": [None]}))
        trial.set_user_attr("shape", (2, {"a": [None]}))
        trial.set_constraint("small", -1.0)
        if number == 0:
            study.tell(trial, 0.1 + 0.2)
        elif number == 1:
            study.tell(trial, math.inf)
        elif number == 2:
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 3:
            study.tell(trial, state=TrialState.FAIL)
    study.enqueue_trial({"lr": 0.5}, user_attrs={"why": "guess"})
    study.add_trial(optuna.trial.create_trial(value=3.0, user_attrs={"from": "elsewhere"}))


class TestConformance(StorageTestCase):  # type: ignore[misc, unused-ignore]
    @pytest.fixture(params=[NEVER, 0.01])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
        with opened(tmp_path / "study.db", interval=request.param) as storage:
            yield storage


class TestReadingBack:
    def test_by_plain_optuna(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            fill(study)
            mine = study.get_trials()
        with plain(path) as theirs:
            assert theirs.get_trials() == mine
            assert [trial.number for trial in mine] == list(range(8))
            assert [trial.state for trial in mine] == [
                TrialState.COMPLETE,
                TrialState.COMPLETE,
                TrialState.PRUNED,
                TrialState.FAIL,
                TrialState.RUNNING,
                TrialState.RUNNING,
                TrialState.WAITING,
                TrialState.COMPLETE,
            ]
            assert theirs.best_trial == study.best_trial == mine[0]
            self.go_on(theirs)

    @pytest.mark.parametrize("opener", [sqlite, lambda path: RDBStorage(f"sqlite:///{path}")])
    def test_same_as_written_by_plain_optuna(
        self, tmp_path: Path, opener: Callable[[Path], RDBStorage]
    ) -> None:
        found: list[list[FrozenTrial]] = []
        for name in ("bulk", "plain"):
            path = tmp_path / f"{name}.db"
            backend = opener(path)
            storage = bulk_storage(backend, interval=NEVER) if name == "bulk" else backend
            fill(new_study(storage))
            if isinstance(storage, BulkStorage):
                storage.close()
            backend.engine.dispose()
            with plain(path) as study:
                found.append(study.get_trials())
        for ours, theirs in zip(*found, strict=True):
            for moment in ("datetime_start", "datetime_complete"):
                one, two = getattr(ours, moment), getattr(theirs, moment)
                assert (one is None) == (two is None)
                if one is not None:
                    assert abs(one - two) < timedelta(minutes=5)
                    setattr(theirs, moment, one)
            assert ours == theirs

    def test_several_objectives(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage, directions=["minimize", "maximize"])
            trial = study.ask()
            study.tell(trial, (1.0, -math.inf))
            with pytest.raises(RuntimeError, match="single best trial"):
                _ = study.best_trial
        with plain(path) as theirs:
            assert theirs.trials[0].values == [1.0, -math.inf]

    def test_on_postgresql(self, new_database: str) -> None:
        with opened(new_database) as storage:
            study = new_study(storage)
            storage.reserve(study._study_id, 5)
            fill(study)
            mine = study.get_trials()
        backend = RDBStorage(storage.backend.url)
        theirs = optuna.load_study(study_name="s", storage=backend)
        assert theirs.get_trials() == mine
        self.go_on(theirs)
        backend.engine.dispose()

    def go_on(self, study: Study) -> None:
        before = len(study.trials)
        study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1, log=True), n_trials=2)
        assert study.trials[6].params == {"lr": 0.5}  # had been enqueued
        assert len(study.trials) == before + 1

    def test_a_value_that_was_written_can_change(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            trial = new_study(storage).ask()
            for value in (1.0, 2.0, 3.0):
                storage.set_trial_intermediate_value(trial._trial_id, 7, value)
                trial.set_user_attr("k", value)
                if value < 3:
                    storage.flush()
        with plain(path) as study:
            assert study.trials[0].intermediate_values == {7: 3.0}
            assert study.trials[0].user_attrs == {"k": 3.0}

    def test_goes_on_with_what_optuna_wrote(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        backend = sqlite(path)
        fill(new_study(backend))
        backend.engine.dispose()
        with opened(path) as storage:
            study = optuna.load_study(study_name="s", storage=storage)
            best = study.best_trial
            assert best.value == 0.1 + 0.2
            assert study.ask().suggest_float("lr", 1e-4, 1, log=True) == 0.5
            with pytest.raises(ValueError, match="[Cc]annot set different distribution kind"):
                study.ask().suggest_categorical("lr", [1, 2])
            study.tell(4, 0.0)  # a trial that somebody else had begun
        with plain(path) as theirs:
            assert [trial.value for trial in theirs.trials[4:6]] == [0.0, None]
            assert theirs.best_trial.number == 4


class TestWhenItIsWritten:
    def test_told_trials_at_once_and_reports_later(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            told, running = study.ask(), study.ask()
            for trial in (told, running):
                trial.report(1.0, 1)
            with plain(path) as theirs:
                assert [t.intermediate_values for t in theirs.trials] == [{}, {}]
                study.tell(told, 5.0)
                assert theirs.trials[0] == study.trials[0]
                running.report(2.0, 2)
                assert theirs.trials[1].intermediate_values == {1: 1.0}
                storage.flush()
                assert theirs.trials[1].intermediate_values == {1: 1.0, 2: 2.0}

    def test_reports_are_written_by_themselves(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path, interval=0.01) as storage:
            new_study(storage).ask().report(1.0, 1)
            with plain(path) as theirs:
                eventually(lambda: theirs.trials[0].intermediate_values == {1: 1.0})

    def test_a_batch_is_written_together(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            storage.reserve(study._study_id, 3)
            trials = [study.ask() for _ in range(3)]
            with plain(path) as theirs:
                with storage.batch():
                    study.tell(trials[0], 0.0)
                    with storage.batch():
                        study.tell(trials[1], 0.0)
                    assert [t.state for t in theirs.trials] == [TrialState.RUNNING] * 3
                    assert [t.state for t in study.trials][:2] == [TrialState.COMPLETE] * 2
                assert [t.state for t in theirs.trials][:2] == [TrialState.COMPLETE] * 2
                study.tell(trials[2], 0.0)
                assert theirs.trials == study.trials

    def test_reserved_trials_that_nobody_took(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            storage.reserve(study._study_id, 2, user_attrs={"run": [1]})
            trial = study.ask()
            assert trial.user_attrs == {"run": [1]}
            trial.set_user_attr("run", 2)
            study.tell(trial, 1.0)
        with plain(path) as theirs:
            assert [t.state for t in theirs.trials] == [TrialState.COMPLETE, TrialState.FAIL]
            assert [t.user_attrs for t in theirs.trials] == [{"run": 2}, {"run": [1]}]

    def test_a_locked_file_is_written_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "study.db"
        storage = bulk_storage(sqlite(path, timeout=0.01), interval=0.01)
        assert isinstance(storage, BulkStorage)
        study = new_study(storage)
        trial = study.ask()
        with caplog.at_level(logging.WARNING, "optuna_ext"), closing(sqlite3.connect(path)) as c:
            c.execute("BEGIN IMMEDIATE")
            trial.report(1.0, 1)
            eventually(lambda: "Cannot write to the study for now" in caplog.text)
            c.rollback()
        with plain(path) as theirs:
            eventually(lambda: theirs.trials[0].intermediate_values == {1: 1.0})
        storage.close()
        storage.backend.engine.dispose()

    def test_the_end_of_the_program_writes_the_rest(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        script = (
            "import sys, optuna\n"
            "from optuna_ext import bulk_storage\n"
            "storage = bulk_storage(sys.argv[1], interval=1000)\n"
            "optuna.create_study(study_name='s', storage=storage).ask().report(1.0, 1)\n"
        )
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=120)
        with plain(path) as theirs:
            assert theirs.trials[0].intermediate_values == {1: 1.0}

    def test_a_killed_process_loses_no_trial_that_was_told(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        script = (
            "import sys, optuna\n"
            "from optuna_ext import bulk_storage\n"
            "storage = bulk_storage(sys.argv[1], interval=0.05)\n"
            "study = optuna.create_study(study_name='s', storage=storage)\n"
            "while True:\n"
            "    storage.reserve(study._study_id, 4)\n"
            "    trials = [study.ask() for _ in range(4)]\n"
            "    for step in range(20):\n"
            "        for trial in trials:\n"
            "            trial.report(trial.suggest_float('x', 0, 1), step)\n"
            "    with storage.batch():\n"
            "        for trial in trials[:3]:\n"
            "            study.tell(trial, trial.params['x'])\n"
            "    print(*(trial.number for trial in trials[:3]), flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            told = [int(word) for _ in range(20) for word in process.stdout.readline().split()]
            process.kill()
            told += [int(word) for word in process.stdout.read().split()]
        with plain(path) as theirs:
            trials = theirs.trials
            assert [trial.number for trial in trials] == list(range(len(trials)))
            for number in told:
                assert trials[number].state == TrialState.COMPLETE
                assert trials[number].value == trials[number].params["x"]
                assert len(trials[number].intermediate_values) == 20


class TestOtherProcesses:
    def test_three_writers_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        script = (
            "import sys, optuna\n"
            "from optuna_ext import bulk_storage, sqlite\n"
            "storage = (bulk_storage if sys.argv[2] == 'bulk' else sqlite)(sys.argv[1])\n"
            "optuna.logging.disable_default_handler()\n"
            "study = optuna.load_study(study_name='s', storage=storage)\n"
            "def objective(trial):\n"
            "    trial.set_user_attr('writer', sys.argv[2])\n"
            "    trial.report(1.0, 1)\n"
            "    return trial.suggest_float('x', 0, 1)\n"
            "study.optimize(objective, n_trials=40)\n"
            "assert [t.number for t in study.trials] == list(range(len(study.trials)))\n"
        )
        with opened(path) as storage:
            study = new_study(storage)
            for mark in range(20):
                study.enqueue_trial({"x": mark / 20})
            processes = [
                subprocess.Popen([sys.executable, "-c", script, str(path), kind])
                for kind in ("bulk", "bulk", "plain")
            ]
            assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
        with plain(path) as theirs:
            trials = theirs.trials
        assert [trial.number for trial in trials] == list(range(120))
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert all(trial.intermediate_values == {1: 1.0} for trial in trials)
        assert [trial.user_attrs["writer"] for trial in trials].count("plain") == 40
        assert [trial.params["x"] for trial in trials[:20]] == [mark / 20 for mark in range(20)]

    def test_each_sees_the_other(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path, interval=0.01) as one, opened(path, interval=0.01) as two:
            ours = new_study(one)
            theirs = optuna.load_study(study_name="s", storage=two)
            first, second = ours.ask(), theirs.ask()
            assert [first.number, second.number] == [0, 1]
            second.report(3.0, 1)
            eventually(lambda: len(ours.trials) == 2)
            eventually(lambda: ours.trials[1].intermediate_values == {1: 3.0})
            theirs.tell(second, 1.0)
            eventually(lambda: ours.trials[1].state == TrialState.COMPLETE)
            assert ours.best_trial.number == 1
            ours.set_user_attr("k", [1])
            eventually(lambda: theirs.user_attrs == {"k": [1]})

    def test_who_ends_a_trial_first_is_right(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            good, contested = study.ask(), study.ask()
            with plain(path) as theirs:
                theirs.tell(1, state=TrialState.FAIL)
            with caplog.at_level(logging.WARNING, "optuna_ext"), storage.batch():
                study.tell(good, 2.0)
                study.tell(contested, 1.0)
            assert "ended by another process keep its result" in caplog.text
            storage.set_trial_user_attr(study.ask()._trial_id, "k", 1)
        with plain(path) as theirs:
            assert [trial.value for trial in theirs.trials] == [2.0, None, None]
            assert theirs.trials[1].state == TrialState.FAIL

    def test_a_study_is_deleted_with_a_lost_trial(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            other = optuna.create_study(storage=storage, study_name="other")
            lost = study.ask()
            with plain(path) as theirs:
                theirs.tell(lost.number, 1.0)
            lost.report(1.0, 1)
            optuna.delete_study(study_name=study.study_name, storage=storage)
            trial = other.ask()  # SQLite gives it the id of the one that is deleted
            storage._memory.read(storage._memory.study(other._study_id))
            assert trial._trial_id == lost._trial_id
            assert trial._trial_id in storage._memory.own

    def test_a_lost_trial_is_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path, interval=0.01) as storage:
            study = new_study(storage)
            trial = study.ask()
            with plain(path) as theirs:
                theirs.tell(0, 7.0)
            study.tell(trial, 1.0)
            eventually(lambda: study.best_value == 7.0)
            assert study.trials[0].value == 7.0

    def test_a_pickled_storage_is_one_more(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            study.ask().report(1.0, 1)
            copy = pickle.loads(pickle.dumps(storage))
            with copy:
                again = optuna.load_study(study_name="s", storage=copy)
                assert again.trials == study.trials
                assert again.ask().number == 1
            copy.backend.engine.dispose()


class TestBulkStorage:
    def test_what_is_not_wrapped(self, tmp_path: Path) -> None:
        memory = InMemoryStorage()
        assert bulk_storage(memory) is memory
        in_memory = RDBStorage("sqlite://")
        assert bulk_storage(in_memory) is in_memory
        with opened(tmp_path / "study.db") as storage:
            assert bulk_storage(storage) is storage
            wrapped = new_study(storage.backend)._storage
            assert isinstance(bulk_storage(wrapped), BulkStorage)

    def test_unknown_tables_are_left_to_optuna(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, value in {
            "_REVISION": "v99.0.0.a",
            "_TABLES": {**_rows._TABLES, "trials": "trial_id number"},
        }.items():
            with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "optuna_ext"):
                patch.setattr(_rows, name, value)
                storage = bulk_storage(tmp_path / f"{name}.db")
                assert isinstance(storage, RDBStorage)
                fill(new_study(storage))
                storage.engine.dispose()
        assert caplog.text.count("every value is written by itself") == 2

    @pytest.mark.parametrize("interval", [0, -1, math.nan])
    def test_wrong_interval(self, interval: float, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="interval must be greater than 0 seconds, but is"):
            bulk_storage(tmp_path / "study.db", interval=interval)
        with pytest.raises(ValueError, match="interval must be greater than 0 seconds, but is"):
            BulkStorage(RDBStorage("sqlite://"), interval=interval)

    def test_unknown_ids(self, tmp_path: Path) -> None:
        with opened(tmp_path / "study.db") as storage:
            for call in (
                lambda: storage.get_trial(99),
                lambda: storage.set_trial_user_attr(99, "k", 1),
                lambda: storage.reserve(99, 1),
                lambda: storage.get_all_trials(99),
            ):
                with pytest.raises(KeyError):
                    call()

    def test_few_transactions(self, tmp_path: Path) -> None:
        with opened(tmp_path / "study.db") as storage:
            study = new_study(storage)
            statements: list[str] = []

            def note(connection: object, cursor: object, statement: str, *_: object) -> None:
                statements.append(statement.split()[0])

            event.listen(storage.backend.engine, "before_cursor_execute", note)
            storage.reserve(study._study_id, 50)
            trials = [study.ask() for _ in range(50)]
            for trial in trials:
                trial.suggest_float("x", 0, 1)
                for step in range(20):
                    trial.report(1.0, step)
                    trial.should_prune()
            with storage.batch():
                for trial in trials:
                    study.tell(trial, 1.0)
            assert statements.count("BEGIN") == 2
            assert len(statements) < 15
