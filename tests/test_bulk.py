from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
import math
from pathlib import Path
from typing import TYPE_CHECKING

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


if TYPE_CHECKING:
    from tests.conftest import NewStudy
    from tests.conftest import Opened
    from tests.conftest import Plain


NEVER = 1000.0  # seconds between two writes


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
    def storage(
        self, request: pytest.FixtureRequest, tmp_path: Path, opened: Opened
    ) -> Iterator[BaseStorage]:
        with opened(tmp_path / "study.db", interval=request.param) as storage:
            yield storage


class TestReadingBack:
    def test_by_plain_optuna(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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
        self,
        tmp_path: Path,
        opener: Callable[[Path], RDBStorage],
        plain: Plain,
        new_study: NewStudy,
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

    def test_several_objectives(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
        path = tmp_path / "study.db"
        with opened(path) as storage:
            study = new_study(storage, directions=["minimize", "maximize"])
            trial = study.ask()
            study.tell(trial, (1.0, -math.inf))
            with pytest.raises(RuntimeError, match="single best trial"):
                _ = study.best_trial
        with plain(path) as theirs:
            assert theirs.trials[0].values == [1.0, -math.inf]

    def test_on_postgresql(self, new_database: str, opened: Opened, new_study: NewStudy) -> None:
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

    def test_a_value_that_was_written_can_change(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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

    def test_goes_on_with_what_optuna_wrote(
        self, tmp_path: Path, opened: Opened, plain: Plain, new_study: NewStudy
    ) -> None:
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


class TestBulkStorage:
    def test_what_is_not_wrapped(
        self, tmp_path: Path, opened: Opened, new_study: NewStudy
    ) -> None:
        memory = InMemoryStorage()
        assert bulk_storage(memory) is memory
        in_memory = RDBStorage("sqlite://")
        assert bulk_storage(in_memory) is in_memory
        with opened(tmp_path / "study.db") as storage:
            assert bulk_storage(storage) is storage
            wrapped = new_study(storage.backend)._storage
            assert isinstance(bulk_storage(wrapped), BulkStorage)

    def test_unknown_tables_are_left_to_optuna(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        new_study: NewStudy,
    ) -> None:
        for name, value in {
            "_REVISION": "v99.0.0.a",
            "_TABLES": {**_rows._TABLES, "trials": "trial_id number"},
        }.items():
            with monkeypatch.context() as patch:
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

    def test_unknown_ids(self, tmp_path: Path, opened: Opened) -> None:
        with opened(tmp_path / "study.db") as storage:
            for call in (
                lambda: storage.get_trial(99),
                lambda: storage.set_trial_user_attr(99, "k", 1),
                lambda: storage.reserve(99, 1),
                lambda: storage.get_all_trials(99),
            ):
                with pytest.raises(KeyError):
                    call()

    def test_few_transactions(self, tmp_path: Path, opened: Opened, new_study: NewStudy) -> None:
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
