"""Rows of Optuna's relational tables, written many at a time.

Only this file and ``_sqlite.py`` know the tables. They have not changed since Optuna 3.2; should
they change, :func:`knows_schema` says so, and neither is used.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from datetime import UTC
import importlib
import threading
from typing import Any
from typing import TYPE_CHECKING

from optuna.storages import RDBStorage
from optuna.trial import TrialState

from optuna_ext._logs import get_logger


if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql.schema import Table

_logger = get_logger(__name__)

_REVISION = "v3.2.0.a"  # of the schema, as alembic names it
_TABLES = {
    "studies": "study_id study_name",
    "study_user_attributes": "study_user_attribute_id study_id key value_json",
    "trials": "trial_id number study_id state datetime_start datetime_complete",
    "trial_params": "param_id trial_id param_name param_value distribution_json",
    "trial_values": "trial_value_id trial_id objective value value_type",
    "trial_intermediate_values": "trial_intermediate_value_id trial_id step intermediate_value "
    "intermediate_value_type",
    "trial_user_attributes": "trial_user_attribute_id trial_id key value_json",
    "trial_system_attributes": "trial_system_attribute_id trial_id key value_json",
}
_Key = tuple[int, str | int]  # a trial's id and what tells its rows of one table apart

AT_ONCE = 500  # trials named in one statement: databases limit the number of variables


@dataclass(frozen=True, kw_only=True)
class End:
    """How a trial ended.

    Args:
        state: Its last state.
        at: The moment, in local time.
    """

    state: TrialState
    at: datetime


class Pending:
    """What is to be written about running trials."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[_Key, tuple[Any, ...]]] = {}  # the other columns, by table
        self.replaced: set[tuple[str, _Key]] = set()  # rows that the database may have already
        self.ends: dict[int, End] = {}  # by trial id

    def put(
        self, table: str, trial_id: int, key: str | int, *columns: object, replaces: bool
    ) -> None:
        """Add a row of a trial.

        Args:
            table: One of those that hold a trial's parameters, reports and attributes.
            trial_id: Of the trial.
            key: What tells the row from others of the trial.
            columns: The columns after the key.
            replaces: Whether the trial had such a row before.
        """
        self.rows.setdefault(table, {})[trial_id, key] = columns
        if replaces:
            self.replaced.add((table, (trial_id, key)))

    def trial_ids(self) -> list[int]:
        """Return the ids of the trials that something is written about, in order."""
        named = {trial_id for rows in self.rows.values() for trial_id, _ in rows}
        return sorted(named.union(self.ends))

    def put_back(self, older: Pending) -> None:
        """Add what came earlier; what came later wins."""
        for table, rows in older.rows.items():
            self.rows[table] = rows | self.rows.get(table, {})
        self.replaced |= older.replaced
        self.ends = older.ends | self.ends


def knows_schema(revision: str | None) -> bool:
    """Return whether tables of a revision, as alembic names it, are the ones that we know.

    Optuna opens none whose revision is not its own.
    """
    try:
        tables = _tables()
    except (ImportError, AttributeError):
        return False
    return revision == _REVISION and all(
        name in tables and [column.name for column in tables[name].c] == columns.split()
        for name, columns in _TABLES.items()
    )


class Writer:
    """Writes what has gathered about running trials, one transaction at a time.

    Args:
        storage: Where to.
        interval: Seconds between two writes by the thread that it starts.
    """

    def __init__(self, storage: RDBStorage, *, interval: float) -> None:
        from sqlalchemy import bindparam
        from sqlalchemy import select

        self._engine = storage.engine
        self._tables = _tables()
        trials = self._tables["trials"]
        # What every write needs is put together once, as that takes as long as to send it.
        self._select_running = (
            select(trials.c.trial_id)
            .where(trials.c.trial_id.in_(bindparam("ids", expanding=True)))
            .where(trials.c.state == TrialState.RUNNING)
            .with_for_update()
        )
        self._update_ended = (
            trials.update()
            .where(trials.c.trial_id == bindparam("id"))
            .values(state=bindparam("end"), datetime_complete=bindparam("at"))
        )
        self._inserts = {name: self._tables[name].insert() for name in _TABLES}
        self._interval = interval
        self._stopped = threading.Event()
        self._writing = threading.Lock()
        self.lock = threading.RLock()  # guards what follows
        self.pending = Pending()
        self.lost: set[int] = set()  # ids of trials that somebody else has ended or deleted
        self._thread = threading.Thread(target=self._run, name="optuna_ext-bulk", daemon=True)
        self._thread.start()

    def create(
        self, study_id: int, n: int, user_attrs: Mapping[str, str]
    ) -> list[tuple[int, int, datetime]]:
        """Insert running trials; return the id, number and start of each.

        Args:
            study_id: Of their study.
            n: How many.
            user_attrs: JSON, by name, for all of them.

        Raises:
            KeyError: If there is no such study.
        """
        from sqlalchemy import func
        from sqlalchemy import select

        studies, trials = self._tables["studies"], self._tables["trials"]
        now = datetime.now()
        with self._transaction() as connection:
            # As Optuna does: whoever holds the study's row may hand out its trials' numbers.
            owned = select(studies.c.study_id).where(studies.c.study_id == study_id)
            if connection.execute(owned.with_for_update()).first() is None:
                raise KeyError(f"No study with study_id {study_id} exists.")
            mine = trials.c.study_id == study_id
            first: int = connection.execute(
                select(func.count()).select_from(trials).where(mine)
            ).scalar_one()
            row = {
                "study_id": study_id,
                "state": TrialState.RUNNING,
                "datetime_start": to_utc(now),
            }
            numbers = range(first, first + n)
            connection.execute(
                self._inserts["trials"], [{**row, "number": number} for number in numbers]
            )
            newest = select(trials.c.trial_id).where(mine).order_by(trials.c.trial_id.desc())
            ids = sorted(connection.execute(newest.limit(n)).scalars())
            if user_attrs:
                attributes = self._inserts["trial_user_attributes"]
                attrs = [{"key": key, "value_json": text} for key, text in user_attrs.items()]
                rows = [{"trial_id": trial_id} | attr for trial_id in ids for attr in attrs]
                connection.execute(attributes, rows)
            return [(*both, now) for both in zip(ids, numbers, strict=True)]

    def study_of(self, trial_id: int) -> int:
        """Return the id of a trial's study.

        Raises:
            KeyError: If there is no such trial.
        """
        from sqlalchemy import select

        trials = self._tables["trials"]
        with self._engine.connect() as connection:
            found: int | None = connection.execute(
                select(trials.c.study_id).where(trials.c.trial_id == trial_id)
            ).scalar()
        if found is None:
            raise KeyError(f"No trial with trial_id {trial_id} exists.")
        return found

    def flush(self) -> None:
        """Write all that has gathered, in one transaction."""
        with self._writing:  # in order: what gathers meanwhile comes next
            with self.lock:
                pending, self.pending = self.pending, Pending()
            ids = pending.trial_ids()
            if not ids:
                return
            try:
                with self._transaction() as connection:
                    running = self._running(connection, ids)
                    self._write(connection, pending, running)
            except BaseException:
                with self.lock:
                    self.pending.put_back(pending)
                raise
            lost = set(ids) - running
            with self.lock:
                self.lost |= lost
        if lost:
            _logger.warning("Trials ended by another process keep its result: %s", sorted(lost))

    def close(self) -> None:
        """Let the thread write what is left and end."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:  # garbage is collected in any thread
            self._thread.join()

    def _run(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        stopped = False
        while not stopped:
            stopped = self._stopped.wait(self._interval)
            try:
                self.flush()
            except SQLAlchemyError as error:  # locked, say: kept, and tried again
                reason = str(error).partition("\n")[0]
                _logger.warning("Cannot write to the study for now: %s", reason)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            if self._engine.name == "sqlite":
                # SQLite has no FOR UPDATE: the write lock comes before the first read instead.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def _running(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Return which of the trials still run, and keep others from ending them."""
        running: set[int] = set()
        for start in range(0, len(ids), AT_ONCE):
            some = {"ids": ids[start : start + AT_ONCE]}
            running.update(connection.execute(self._select_running, some).scalars())
        return running

    def _write(self, connection: Connection, pending: Pending, running: set[int]) -> None:
        for name, (trial_id, key) in pending.replaced:
            if trial_id in running:
                table = self._tables[name]
                same = table.c[_TABLES[name].split()[2]] == key
                connection.execute(table.delete().where(table.c.trial_id == trial_id, same))
        for name, rows in pending.rows.items():
            columns = _TABLES[name].split()[1:]  # after the row's own id, which is counted up
            encode = encoder(name)
            entries = [
                dict(zip(columns, (*key, *encode(*row)), strict=True))
                for key, row in rows.items()
                if key[0] in running
            ]
            if entries:
                connection.execute(self._inserts[name], entries)
        ends = [
            {"id": trial_id, "end": end.state, "at": to_utc(end.at)}
            for trial_id, end in pending.ends.items()
            if trial_id in running
        ]
        if ends:
            connection.execute(self._update_ended, ends)


def _models() -> Any:
    return importlib.import_module("optuna.storages._rdb.models")


def _tables() -> dict[str, Table]:
    return {**_models().BaseModel.metadata.tables}


def encoder(table: str) -> Callable[..., Sequence[Any]]:
    """Return what makes columns of a number that may be infinite or NaN."""
    encode: Callable[..., Sequence[Any]]
    if table == "trial_intermediate_values":
        encode = _models().TrialIntermediateValueModel.intermediate_value_to_stored_repr
    elif table == "trial_values":
        encode = _models().TrialValueModel.value_to_stored_repr
    else:
        encode = _as_they_are
    return encode


def _as_they_are(*columns: object) -> Sequence[object]:
    return columns


def to_utc(local: datetime) -> datetime:
    """Return a moment as the tables have it."""
    return local.astimezone(UTC).replace(tzinfo=None)
