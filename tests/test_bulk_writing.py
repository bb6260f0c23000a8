"""When a storage that writes in bulk does so, and what other processes see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
import pickle
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState
import pytest

from optuna_ext import bulk_storage
from optuna_ext import sqlite
from optuna_ext._bulk import BulkStorage


if TYPE_CHECKING:
    from tests.conftest import NewStudy
    from tests.conftest import Opened
    from tests.conftest import Plain


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestWhenItIsWritten:
    def test_told_trials_at_once_and_reports_later(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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

    def test_reports_are_written_by_themselves(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
        path = tmp_path / "study.db"
        with opened(path, interval=0.01) as storage:
            new_study(storage).ask().report(1.0, 1)
            with plain(path) as theirs:
                eventually(lambda: theirs.trials[0].intermediate_values == {1: 1.0})

    def test_a_batch_is_written_together(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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

    def test_reserved_trials_that_nobody_took(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, plain: Plain, new_study: NewStudy
    ) -> None:
        path = tmp_path / "study.db"
        storage = bulk_storage(sqlite(path, timeout=0.01), interval=0.01)
        assert isinstance(storage, BulkStorage)
        study = new_study(storage)
        trial = study.ask()
        with closing(sqlite3.connect(path)) as c:
            c.execute("BEGIN IMMEDIATE")
            trial.report(1.0, 1)
            eventually(lambda: "Cannot write to the study for now" in caplog.text)
            c.rollback()
        with plain(path) as theirs:
            eventually(lambda: theirs.trials[0].intermediate_values == {1: 1.0})
        storage.close()
        storage.backend.engine.dispose()

    def test_the_end_of_the_program_writes_the_rest(self, tmp_path: Path, plain: Plain) -> None:
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

    def test_a_killed_process_loses_no_trial_that_was_told(
        self, tmp_path: Path, plain: Plain
    ) -> None:
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
    def test_three_writers_at_once(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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
            "trials = study.trials\n"  # once: others are still at work
            "assert [t.number for t in trials] == list(range(len(trials)))\n"
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

    def test_each_sees_the_other(
        self, tmp_path: Path, opened: Opened, new_study: NewStudy
    ) -> None:
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
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        opened: Opened,
        plain: Plain,
        new_study: NewStudy,
    ) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage)
            good, contested = study.ask(), study.ask()
            with plain(path) as theirs:
                theirs.tell(1, state=TrialState.FAIL)
            with storage.batch():
                study.tell(good, 2.0)
                study.tell(contested, 1.0)
            assert "ended by another process keep its result" in caplog.text
            storage.set_trial_user_attr(study.ask()._trial_id, "k", 1)
        with plain(path) as theirs:
            assert [trial.value for trial in theirs.trials] == [2.0, None, None]
            assert theirs.trials[1].state == TrialState.FAIL

    def test_a_study_is_deleted_with_a_lost_trial(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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

    def test_a_lost_trial_is_read_again(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
        path = tmp_path / "study.db"
        with opened(path, interval=0.01) as storage:
            study = new_study(storage)
            trial = study.ask()
            with plain(path) as theirs:
                theirs.tell(0, 7.0)
            study.tell(trial, 1.0)
            eventually(lambda: study.best_value == 7.0)
            assert study.trials[0].value == 7.0

    def test_a_pickled_storage_is_one_more(
        self, tmp_path: Path, opened: Opened, new_study: NewStudy
    ) -> None:
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
