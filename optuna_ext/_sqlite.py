"""Optuna's storage on SQLite, in plain SQL.

RDBStorage makes an object of every row that it reads or writes, which takes ten times as long as
SQLite itself. Here the rows of trials that run are read and written directly, in one transaction
for each call as there, and everything else is left to it.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import closing
from contextlib import contextmanager
from datetime import datetime
from datetime import UTC
import functools
import json
import math
import sqlite3
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.distributions import check_distribution_compatibility
from optuna.distributions import distribution_to_json
from optuna.distributions import json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from optuna_ext._memory import running_trial
from optuna_ext._rows import AT_ONCE
from optuna_ext._rows import encoder
from optuna_ext._rows import to_utc


_INFINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}  # not SQL's numbers

_distribution = functools.lru_cache(maxsize=1024)(json_to_distribution)  # most trials share them


class AtomicStorage(RDBStorage):
    """RDBStorage whose change of a trial's state is atomic on SQLite."""

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        # RDBStorage reads the state with SELECT ... FOR UPDATE, which SQLite does not have: two
        # workers both saw WAITING and ran one enqueued trial twice, or both retried a stale one.
        # Taking the write lock before the read makes it compare-and-set again.
        with self.scoped_session() as session:
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            return super().set_trial_state_values(trial_id, state, values)


class SQLiteStorage(RDBStorage):
    """RDBStorage for a file whose tables are those that ``knows_schema`` checks for."""

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        with self._transaction() as cursor:
            _check_study(cursor, study_id)
            query = "SELECT key, value_json FROM study_user_attributes WHERE study_id = ?"
            return {key: json.loads(text) for key, text in cursor.execute(query, (study_id,))}

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        if template_trial is not None:
            return super()._create_new_trial(study_id, template_trial)
        now = datetime.now()
        with self._transaction("IMMEDIATE") as cursor:
            _check_study(cursor, study_id)
            query = "SELECT COUNT(*) FROM trials WHERE study_id = ?"
            (number,) = cursor.execute(query, (study_id,)).fetchone()
            cursor.execute(
                "INSERT INTO trials (number, study_id, state, datetime_start) "
                "VALUES (?, ?, 'RUNNING', ?)",
                (number, study_id, _to_utc(now)),
            )
            (trial_id,) = cursor.execute("SELECT last_insert_rowid()").fetchone()
            return running_trial(trial_id, number, now)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        with self._transaction("IMMEDIATE") as cursor:
            study_id, _ = _updatable(cursor, trial_id)
            if previous_distribution is None:
                cursor.execute(
                    "SELECT distribution_json FROM trial_params JOIN trials USING (trial_id) "
                    "WHERE study_id = ? AND param_name = ? LIMIT 1",
                    (study_id, param_name),
                )
                found = cursor.fetchone()
                previous_distribution = None if found is None else _distribution(found[0])
            if previous_distribution is not None:
                check_distribution_compatibility(previous_distribution, distribution)
            cursor.execute(
                "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
                "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (trial_id, param_name, param_value_internal, distribution_to_json(distribution)),
            )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        with self._transaction("IMMEDIATE") as cursor:
            _updatable(cursor, trial_id)
            cursor.execute(
                "INSERT INTO trial_intermediate_values "
                "(trial_id, step, intermediate_value, intermediate_value_type) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (trial_id, step) DO UPDATE "
                "SET intermediate_value = excluded.intermediate_value, "
                "intermediate_value_type = excluded.intermediate_value_type",
                (trial_id, step, *_to_columns("trial_intermediate_values", intermediate_value)),
            )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_attrs("trial_user_attributes", trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Write several attributes in one transaction."""
        self._set_attrs("trial_user_attributes", trial_id, attrs)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_attrs("trial_system_attributes", trial_id, {key: value})

    def _set_attrs(self, table: str, trial_id: int, attrs: Mapping[str, Any]) -> None:
        rows = [(trial_id, key, json.dumps(value)) for key, value in attrs.items()]
        with self._transaction("IMMEDIATE") as cursor:
            _updatable(cursor, trial_id)
            cursor.executemany(
                f"INSERT INTO {table} (trial_id, key, value_json) VALUES (?, ?, ?) "
                "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json",
                rows,
            )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        with self._transaction("IMMEDIATE") as cursor:
            _, before = _updatable(cursor, trial_id)
            if state == TrialState.RUNNING and before != TrialState.WAITING:
                return False  # another worker was quicker
            cursor.executemany(
                "INSERT INTO trial_values (trial_id, objective, value, value_type) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (trial_id, objective) DO UPDATE "
                "SET value = excluded.value, value_type = excluded.value_type",
                [
                    (trial_id, i, *_to_columns("trial_values", value))
                    for i, value in enumerate(values or ())
                ],
            )
            query = "UPDATE trials SET state = ? WHERE trial_id = ?"
            cursor.execute(query, (state.name, trial_id))
            if state != TrialState.WAITING:
                moment = "start" if state == TrialState.RUNNING else "complete"
                query = f"UPDATE trials SET datetime_{moment} = ? WHERE trial_id = ?"
                cursor.execute(query, (_to_utc(datetime.now()), trial_id))
        return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._transaction() as cursor:
            found = _trials(cursor, "trial_id = ?", trial_id)
        if not found:
            raise _no_trial(trial_id)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        some = ""
        if states is not None:
            names = ", ".join(f"'{state.name}'" for state in TrialState if state in states)
            some = f" AND state IN ({names})"
        older = ", ".join(str(id_) for id_ in included_trial_ids if id_ <= trial_id_greater_than)
        with self._transaction() as cursor:
            _check_study(cursor, study_id)
            # Not in one query, for which SQLite would look at all trials of the study.
            known = f"study_id = ? AND trial_id IN ({older}){some}"
            found = _trials(cursor, known, study_id) if older else []
            newer = f"study_id = ? AND trial_id > ?{some}"
            return found + _trials(cursor, newer, study_id, trial_id_greater_than)

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Cursor]:
        """Read one state of the file; ``"IMMEDIATE"``: write, while nobody else does.

        Whoever reads before writing has the lock before, so that what was read still holds.
        """
        try:
            with closing(self.engine.raw_connection()) as connection:  # which rolls back
                cursor: Any = connection.cursor()
                cursor.execute(f"BEGIN {kind}")
                yield cursor
                connection.commit()
        except sqlite3.Error as error:
            raise StorageInternalError(
                f"SQLite cannot read or write the study: {error}"
            ) from error


def _check_study(cursor: sqlite3.Cursor, study_id: int) -> None:
    cursor.execute("SELECT 1 FROM studies WHERE study_id = ?", (study_id,))
    if cursor.fetchone() is None:
        raise KeyError(f"No study with study_id {study_id} exists.")


def _updatable(cursor: sqlite3.Cursor, trial_id: int) -> tuple[int, TrialState]:
    """Return the study and the state of a trial that is not over."""
    cursor.execute("SELECT study_id, number, state FROM trials WHERE trial_id = ?", (trial_id,))
    found = cursor.fetchone()
    if found is None:
        raise _no_trial(trial_id)
    study_id, number, state = found[0], found[1], TrialState[found[2]]
    if state.is_finished():
        raise UpdateFinishedTrialError(
            f"Trial#{number} has already finished and can not be updated."  # as Optuna says it
        )
    return study_id, state


def _no_trial(trial_id: int) -> KeyError:
    return KeyError(f"No trial with trial_id {trial_id} exists.")


def _trials(cursor: sqlite3.Cursor, condition: str, *values: object) -> list[FrozenTrial]:
    """Return the trials that fulfill a condition, in order of their ids."""
    columns = "trial_id, number, state, datetime_start, datetime_complete"
    query = f"SELECT {columns} FROM trials WHERE {condition} ORDER BY trial_id"
    found: dict[int, FrozenTrial] = {}
    for trial_id, number, state, start, complete in cursor.execute(query, values):
        trial = running_trial(trial_id, number, _to_local(start))
        trial.state, trial.datetime_complete = TrialState[state], _to_local(complete)
        found[trial_id] = trial
    ids = [*found]
    for start in range(0, len(ids), AT_ONCE):
        _fill(cursor, found, ids[start : start + AT_ONCE])
    return [*found.values()]


def _fill(cursor: sqlite3.Cursor, found: dict[int, FrozenTrial], ids: Sequence[int]) -> None:
    """Read what else belongs to some trials, each kind in the order in which it was written."""

    def rows(table: str, columns: str) -> sqlite3.Cursor:
        some = ", ".join(map(str, ids))
        return cursor.execute(
            f"SELECT trial_id, {columns} FROM {table} WHERE trial_id IN ({some}) ORDER BY rowid"
        )

    for trial_id, name, value, text in rows(
        "trial_params", "param_name, param_value, distribution_json"
    ):
        distribution = _distribution(text)
        found[trial_id].params[name] = distribution.to_external_repr(value)
        found[trial_id].distributions[name] = distribution
    values: dict[int, dict[int, float]] = {}
    for trial_id, objective, value, kind in rows("trial_values", "objective, value, value_type"):
        values.setdefault(trial_id, {})[objective] = _INFINITE.get(kind, value)
    for trial_id, by_objective in values.items():
        found[trial_id].values = [by_objective[objective] for objective in sorted(by_objective)]
    for trial_id, step, value, kind in rows(
        "trial_intermediate_values", "step, intermediate_value, intermediate_value_type"
    ):
        found[trial_id].intermediate_values[step] = _INFINITE.get(kind, value)
    for trial_id, key, text in rows("trial_user_attributes", "key, value_json"):
        found[trial_id].user_attrs[key] = json.loads(text)
    for trial_id, key, text in rows("trial_system_attributes", "key, value_json"):
        found[trial_id].system_attrs[key] = json.loads(text)


def _to_columns(table: str, number: float) -> tuple[float | None, str]:
    stored, kind = encoder(table)(number)
    return stored, kind.name


def _to_utc(local: datetime) -> str:
    return to_utc(local).isoformat(" ", "microseconds")


def _to_local(utc: str | None) -> datetime | None:
    if utc is None:
        return None
    return datetime.fromisoformat(utc).replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
