"""Trials in an SQLite file are what Optuna reads and writes there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
import math
from pathlib import Path
import pickle
import sqlite3
import threading
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import StorageInternalError
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
import pytest
from sqlalchemy import event

from optuna_ext import _rows
from optuna_ext import sqlite
from optuna_ext._sqlite import AtomicStorage
from optuna_ext._sqlite import SQLiteStorage


if TYPE_CHECKING:
    from tests.conftest import Disposed
    from tests.conftest import NewStudy
    from tests.conftest import Objective


Open = Callable[[Path], RDBStorage]


def by_optuna(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}")


def fill(study: Study) -> None:
    """One trial of every kind, with all that a trial can have."""
    study.set_user_attr("k", {"a": [1, None]})
    for number in range(6):
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1, log=True)
        trial.suggest_int("width", 8, 64, step=8)
        trial.suggest_categorical("act", ["relu", None, 3, True])
        for step, value in enumerate([number / 3, math.inf, -math.inf, math.nan]):
            trial.report(value, step)
        trial.set_user_attr("ü", (1, {"a": [None]}))
        trial.set_user_attr("ü", (2, {"a": [None]}))
        trial.set_constraint("small", -1.0)
        if number < 3:
            study.tell(trial, [0.1 + 0.2, math.inf, -math.inf][number])
        elif number == 3:
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 4:
            study.tell(trial, state=TrialState.FAIL)
    study.enqueue_trial({"lr": 0.5}, user_attrs={"why": "guess"})
    study.add_trial(optuna.trial.create_trial(value=3.0, user_attrs={"from": "elsewhere"}))


@pytest.mark.parametrize(("writer", "reader"), [(sqlite, by_optuna), (by_optuna, sqlite)])
def test_what_one_writes_the_other_reads(
    writer: Open, reader: Open, tmp_path: Path, disposed: Disposed, new_study: NewStudy
) -> None:
    path = tmp_path / "study.db"
    with disposed(writer(path)) as storage:
        written = new_study(storage)
        fill(written)
        with disposed(reader(path)) as other:
            read = optuna.load_study(study_name="s", storage=other)
            # NaN is not itself, but its text is.
            assert [repr(trial) for trial in read.trials] == [repr(t) for t in written.trials]
            assert [trial.number for trial in read.trials] == [*range(8)]
            states = (TrialState.COMPLETE, TrialState.WAITING)
            some = other.get_all_trials(read._study_id, states=states)
            assert [trial.number for trial in some] == [0, 1, 2, 6, 7]
            assert read.user_attrs == written.user_attrs == {"k": {"a": [1, None]}}
            for trial in read.trials:
                alone = other.get_trial(trial._trial_id)
                assert repr(alone) == repr(trial)
                assert [*alone.params] == ["lr", "width", "act"][: len(alone.params)]


def test_values_and_attributes_change_but_parameters_do_not(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy
) -> None:
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        id_ = new_study(storage).ask()._trial_id
        uniform = optuna.distributions.FloatDistribution(0, 1)
        for value in (0.25, 0.5, 0.75):
            storage.set_trial_param(id_, "x", value, uniform)
            storage.set_trial_intermediate_value(id_, 7, value)
            storage.set_trial_system_attr(id_, "k", [value])
        with pytest.raises(ValueError, match="[Cc]annot set different distribution kind"):
            storage.set_trial_param(
                id_, "x", 0.0, optuna.distributions.CategoricalDistribution([1, 2])
            )
        trial = storage.get_trial(id_)
    assert (trial.params, trial.intermediate_values) == ({"x": 0.25}, {7: 0.75})
    assert trial.system_attrs == {"k": [0.75]}


def test_more_trials_than_one_statement_names(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_ext._sqlite.AT_ONCE", 3)
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        study = new_study(storage)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=10)
        trials = storage.get_all_trials(study._study_id)
    assert [trial.value for trial in trials] == [trial.params["x"] for trial in trials]
    assert len(trials) == 10


def test_no_statement_reads_all_trials(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy, objective: Objective
) -> None:
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        study = new_study(storage)
        study.ask()  # and is never told: it is read again and again
        study.optimize(objective, n_trials=1)
        said: list[str] = []

        def listen(connection: sqlite3.Connection, *_: object) -> None:
            connection.set_trace_callback(said.append)

        event.listen(storage.engine, "checkout", listen)
        study.optimize(objective, n_trials=2)
        event.remove(storage.engine, "checkout", listen)
    statements = [text for text in said if text.split()[0] in ("SELECT", "UPDATE", "INSERT")]
    assert len(statements) > 100
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        for text in statements:
            plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
            assert not any(step.startswith(("SCAN trial", "SCAN stud")) for step in plan), text
            # Counting them is done within the index.
            assert not any("USING INDEX ix_trials_study_id (study_id=?)" in step for step in plan)


def test_threads_get_numbers_of_their_own(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy
) -> None:
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        study, other = new_study(storage), optuna.create_study(storage=storage)

        def ask() -> None:
            for _ in range(10):
                study.ask()
                other.ask()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in (study, other):
            assert [trial.number for trial in one.trials] == [*range(40)]


def test_what_is_over_or_unknown(tmp_path: Path, disposed: Disposed, new_study: NewStudy) -> None:
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        study = new_study(storage)
        trial = study.ask()
        study.tell(trial, 1.0)
        with pytest.raises(UpdateFinishedTrialError, match="Trial#0 has already finished"):
            storage.set_trial_user_attr(trial._trial_id, "k", 1)
        for call in (
            lambda: storage.get_trial(99),
            lambda: storage.get_all_trials(99),
            lambda: storage.create_new_trial(99),
            lambda: storage.get_study_user_attrs(99),
            lambda: storage.set_trial_user_attr(99, "k", 1),
        ):
            with pytest.raises(KeyError, match=r"No (trial|study) with \w+_id 99 exists"):
                call()
        assert storage.get_trial(trial._trial_id).user_attrs == {}


def test_attributes_are_written_together_or_not_at_all(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy
) -> None:
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        assert isinstance(storage, SQLiteStorage)
        trial_id = new_study(storage).ask()._trial_id
        with pytest.raises(TypeError, match="not JSON serializable"):
            storage.set_trial_user_attrs(trial_id, {"a": 1, "b": object()})
        assert storage.get_trial(trial_id).user_attrs == {}
        storage.set_trial_user_attrs(trial_id, {"b": 1, "a": [2]})
        storage.set_trial_user_attrs(trial_id, {"b": 3})
        assert [*storage.get_trial(trial_id).user_attrs.items()] == [("b", 3), ("a", [2])]


def test_a_lock_that_never_comes_free_is_an_error_of_the_storage(
    tmp_path: Path, disposed: Disposed, new_study: NewStudy
) -> None:
    path = tmp_path / "study.db"
    with disposed(sqlite(path, timeout=0.01)) as storage:
        trial = new_study(storage).ask()
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageInternalError, match="SQLite cannot read or write the"):
                trial.set_user_attr("k", 1)
            assert storage.get_trial(trial._trial_id).user_attrs == {}  # reading is no matter
        trial.set_user_attr("k", 1)


@pytest.mark.parametrize("known", [True, False])
def test_tables_of_another_optuna_are_left_to_it(
    known: bool,
    tmp_path: Path,
    disposed: Disposed,
    objective: Objective,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not known:
        monkeypatch.setattr(_rows, "_REVISION", "v99.0.0.a")
    with disposed(sqlite(tmp_path / "study.db")) as storage:
        assert type(storage) is (SQLiteStorage if known else AtomicStorage)
        study = optuna.create_study(storage=storage)
        study.optimize(objective, n_trials=2)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
        with disposed(pickle.loads(pickle.dumps(storage))) as copy:
            assert copy.get_all_trials(study._study_id) == study.trials
